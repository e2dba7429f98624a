"""Groups of images are on one side of every split and fold, with one label an image and several."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import labelled
import numpy as np
import pytest
from pictures import folders
from sklearn.model_selection import StratifiedGroupKFold

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, DataError, LabelledDataError
from xfer.core.seeds import derive
from xfer.core.types import Dataset
from xfer.data import ArrayFiles, Manifest
from xfer.training.multilabel_logistic import label_folds

Rows = list[tuple[str, list[str]]]
FORMS = ("cells", "columns", "json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """120 digits of 30 patients, and 6 empty pictures of three more, in three forms of a list."""
    root = tmp_path_factory.mktemp("groups")
    rows = labelled.digits(root, 120, unlabelled=6)
    drawn = np.random.default_rng(0).integers(0, 30, 120)
    patients = [f"p{n:02}" for n in drawn] + ["e0", "e1", "e2"] * 2
    names = list(labelled.LABELS)
    cells = [f"{n},{'|'.join(has)},{p}" for (n, has), p in zip(rows, patients, strict=True)]
    (root / "cells.csv").write_text("\n".join(["path,label,patient", *cells]))
    yes = [[str(int(name in has)) for name in names] for _, has in rows]
    lines = [f"{n},{','.join(y)},{p}" for (n, _), y, p in zip(rows, yes, patients, strict=True)]
    (root / "columns.csv").write_text("\n".join([f"path,{','.join(names)},patient", *lines]))
    entries = [
        {"path": n, "labels": has, "group": p} for (n, has), p in zip(rows, patients, strict=True)
    ]
    (root / "cells.json").write_text(json.dumps(entries))
    return root, rows


def of(root: Path, form: str = "cells", **how: object) -> Dataset:
    json_too = form == "json"
    file = root / ("cells.json" if json_too else f"{form}.csv")
    given = {"leakage": "ignore", "group": "group" if json_too else "patient", **how}
    return Manifest(file=str(file), **given).labelled(True)  # type: ignore[arg-type]


def patients(root: Path) -> dict[str, str]:
    rows = [line.split(",") for line in (root / "cells.csv").read_text().splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


@pytest.mark.parametrize("form", FORMS)
def test_no_group_is_in_two_splits(place: tuple[Path, Rows], form: str) -> None:
    root, rows = place
    found, patient = of(root, form, test_fraction=0.1), patients(root)
    sides = {s: {patient[name] for name in samples.names} for s, samples in found.splits.items()}
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"]
    assert not sides["val"] & sides["test"] and set().union(*sides.values()) == set(
        patient.values()
    )
    sizes = {split: len(samples) / len(rows) for split, samples in found.splits.items()}
    assert abs(sizes["val"] - 0.2) < 0.05 and abs(sizes["test"] - 0.1) < 0.05
    ungrouped = of(root, "cells", group="patient", test_fraction=0.1)
    assert {s: list(x.names) for s, x in found.splits.items()} == {
        s: list(x.names) for s, x in ungrouped.splits.items()
    }  # in whatever form they are listed
    counts = ", ".join(f"{split} has {len(sides[split])}" for split in ("train", "val", "test"))
    assert any(line.endswith(f"none of them in two splits: {counts}") for line in found.remarks)


@pytest.mark.parametrize("folds", [None, 3])
def test_groups_of_one_image_each_are_a_remark(place: tuple[Path, Rows], folds: int | None) -> None:
    """As ``data.group=path`` makes them."""
    root, rows = place
    labelled.write_cells(root / "bare.csv", rows)
    said = f"groups by path: each of the {len(rows)} images is a group by itself"
    alone = of(root, "bare", group="path", folds=folds)
    assert any(line.startswith(said) for line in alone.remarks)
    assert not any("by itself" in line for line in of(root, folds=folds).remarks)


def test_held_out_groups_are_stratified_by_the_combinations_of_labels(
    place: tuple[Path, Rows],
) -> None:
    """One part of five of the splitter of scikit-learn, called here; its shares of labels are
    nearer to those of all images than those of groups that are drawn."""
    root, rows = place
    patient, names = patients(root), sorted(name for name, _ in rows)
    labels = dict(rows)
    kinds = ["|".join(labels[name]) for name in names]
    few = {kind for kind, n in Counter(kinds).items() if n < 5}
    seed = derive("groups held out", 0) % 2**32
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    order = {kind: i for i, kind in enumerate(dict.fromkeys("|".join(has) for _, has in rows))}
    codes = [order[kind] if kind not in few else -1 for kind in kinds]
    held = next(iter(splitter.split(names, codes, [patient[name] for name in names])))[1]
    assert sorted(of(root).splits["val"].names) == sorted(names[i] for i in held)


def test_no_group_is_in_two_folds_and_the_order_of_lines_is_nothing(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    root, _ = place
    found, patient = of(root, folds=4, repeats=2), patients(root)
    train = found.splits["train"]
    assert train.folds is not None
    for column in train.folds:
        fold_of: dict[str, set[int]] = {}
        for name, fold in zip(train.names, column.tolist(), strict=True):
            fold_of.setdefault(patient[name], set()).add(fold)
        assert all(len(folds) == 1 for folds in fold_of.values())
        assert min(np.bincount(column)) > 20
    lines = (root / "cells.csv").read_text().splitlines()
    (root / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    turned = of(root, "turned", folds=4, repeats=2).splits["train"]
    assert turned.folds is not None
    assert dict(zip(turned.names, turned.folds.T.tolist(), strict=True)) == dict(
        zip(train.names, train.folds.T.tolist(), strict=True)
    )


def test_inner_folds_keep_groups_together(place: tuple[Path, Rows]) -> None:
    train = of(place[0]).splits["train"]
    folds = label_folds(train.labels, 5, 0, list(train.groups))
    for group in set(train.groups):
        assert len({f for f, g in zip(folds, train.groups, strict=True) if g == group}) == 1
    assert set(folds.tolist()) == {0, 1, 2, 3, 4}
    two = ["a"] * 40 + ["b"] * (len(train) - 40)
    assert set(label_folds(train.labels, 5, 0, two).tolist()) == {0, 1}
    assert set(label_folds(train.labels, 5, 0, ["a"] * len(train)).tolist()) == {-1}


def test_groups_of_one_label_an_image_are_held_out_whole(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 12, "dog": 12})
    rows = [f"{label}/{p.name},{label},f{i // 3}" for label in ("cat", "dog")
            for i, p in enumerate(sorted((root / label).iterdir()))]  # fmt: skip
    (root / "films.csv").write_text("\n".join(["path,label,film", *rows]))
    how = {"leakage": "ignore", "group": "film", "val_fraction": 0.25}
    found = Manifest(file=str(root / "films.csv"), **how).dataset(True)  # type: ignore[arg-type]
    sides = {s: set(samples.groups) for s, samples in found.splits.items()}
    assert not sides["train"] & sides["val"] and sides["train"] | sides["val"] == {
        "f0", "f1", "f2", "f3"
    }  # fmt: skip
    assert len(found.splits["val"]) == 6


BAD = {
    "a group on both sides": ("p1 train,p1 val,p2 train", "E108: .*'p1' is in train and in val"),
    "one group": ("p1,p1,p1", "E107: .*1 group cannot be divided into train and val"),
    "no group": ("p1,,p2", "E352: .*'patient' is empty"),
}


@pytest.mark.parametrize("bad", BAD)
def test_groups_that_cannot_be_apart_are_refused(
    place: tuple[Path, Rows], tmp_path: Path, bad: str
) -> None:
    root, rows = place
    given, match = BAD[bad]
    each = [one.partition(" ") for one in given.split(",")]
    split = ",split" if any(one[2] for one in each) else ""
    lines = [f"path,label,patient{split}"]
    for i, (name, has) in enumerate(rows[:60]):
        group, _, part = each[i % len(each)]
        lines.append(f"{root / name},{'|'.join(has)},{group}" + (f",{part}" if split else ""))
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=match) as caught:
        of(tmp_path, "bad")
    assert isinstance(caught.value, LabelledDataError) == match.startswith("E10")


def test_a_json_list_and_a_wrong_column_are_refused_and_the_fix_works(
    place: tuple[Path, Rows],
) -> None:
    root, _ = place
    with pytest.raises(DataError, match=r"E352: .*Fix: type data.group=group"):
        of(root, "json", group="patient")
    of(root, "json", group="group")
    with pytest.raises(DataError, match=r"E352: .*did you mean 'patient'"):
        of(root, "columns", group="patients")


def test_groups_in_arrays(place: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = place
    from PIL import Image

    images = np.stack([np.asarray(Image.open(root / name)) for name, _ in rows])
    labels = np.array([[int(n in has) for n in labelled.LABELS] for _, has in rows])
    patient = np.array(list(patients(root).values()))
    path = tmp_path / "x.npz"
    np.savez(path, images=images, labels=labels, patient=patient)
    found = ArrayFiles(root=str(path), leakage="ignore", group="patient").labelled(True)
    sides = {split: set(samples.groups) for split, samples in found.splits.items()}
    assert not sides["train"] & sides["val"] and len(sides["train"] | sides["val"]) == 33


def test_worth_heeds_no_groups() -> None:
    with pytest.raises(CombinationError, match=r"E008: data\.group: worth divides"):
        compose_specs(["data.root=x", "data.group=FOLDER", "stages=[worth]"])


def test_what_a_json_list_calls_a_group_is_one_where_that_is_asked_for(
    place: tuple[Path, Rows],
) -> None:
    found = of(place[0], "json", group=None)
    assert len(found.splits["val"]) > 20 and not found.splits["train"].groups


@pytest.mark.parametrize(("form", "number"), [("cells", "E313"), ("columns", "E388")])
def test_a_column_of_groups_that_was_not_named_is_named_by_the_error(
    place: tuple[Path, Rows], form: str, number: str
) -> None:
    with pytest.raises(DataError, match=f"{number}: .*'patient'") as refused:
        of(place[0], form, group=None)
    typed = re.search(r"add data\.group=(\S+)$", refused.value.fix)
    assert typed
    assert len(of(place[0], form, group=typed[1]).splits["train"].groups) > 60


def test_a_column_that_is_not_there_is_none_of_path_label_and_split(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    lines = [f"{place[0] / name},{'|'.join(has)}" for name, has in place[1]]
    (tmp_path / "bare.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(DataError, match=r"E352: .*Fix: add that column, or drop data\.group$"):
        of(tmp_path, "bare", group="patient")
    of(tmp_path, "bare", group=None)
