"""Several labels an image in nested folders: an image has those of every folder on its way."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import labelled
import numpy as np
import pytest

from xfer.core.errors import DataError, LabelledDataError
from xfer.core.types import Dataset
from xfer.data import Canidae, Folder, Manifest, Shards
from xfer.data.pack import pack

Rows = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """Digits in ``tree``, each in folders of its labels, one in another; and rows of what is so."""
    root = tmp_path_factory.mktemp("nested")
    rows = []
    for name, labels in labelled.digits(root / "flat", 60, unlabelled=6):
        nested = "/".join([*labels, name])
        put(root / "flat" / name, root / "tree" / nested)
        rows.append((f"tree/{nested}", labels))
    return root, rows


def put(image: Path, where: Path) -> Path:
    where.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(image, where)
    return where


def read(root: Path, *, training: bool = True, known: tuple[str, ...] = ()) -> Dataset:
    return Folder(root=str(root), leakage="ignore").labelled(training, known)


def by_name(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The labels of every image by its name."""
    pairs = (
        (name, tuple(c for c, value in zip(dataset.classes, row, strict=True) if value == 1))
        for samples in dataset.splits.values()
        for name, row in zip(samples.names, samples.labels.tolist(), strict=True)
    )
    return dict(pairs)


def test_labels_are_the_folders_on_the_way(place: tuple[Path, Rows]) -> None:
    """Counted here by walking the folders, and the same as a CSV file of them."""
    root, rows = place
    found = read(root / "tree")
    walked = {}
    for folder, _, files in os.walk(root / "tree"):
        way = os.path.relpath(folder, root / "tree")
        labels = () if way == "." else tuple(sorted(way.split("/")))
        walked |= {os.path.normpath(f"{way}/{name}"): labels for name in files}
    assert by_name(found) == walked and len(walked) == 66
    assert set().union(*walked.values()) == set(found.classes)
    listed = Manifest(file=str(labelled.write_cells(root / "cells.csv", rows)), leakage="ignore")
    of_csv = {k.removeprefix("tree/"): v for k, v in by_name(listed.labelled(True)).items()}
    assert of_csv == walked
    assert sum(not labels for labels in walked.values()) == 6
    counts = [int(line.split()[1]) for line in found.remarks if "no label at all" in line]
    assert sum(counts) == 6
    # 2 is even/prime, 1 is straight, 4 even/straight: one label at two depths.
    assert any("several depths are one label: prime; round; straight" in r for r in found.remarks)
    assert any("on the way to an image: even; prime; round; straight" in r for r in found.remarks)
    assert not any("outside" in remark for remark in found.remarks)


def test_splits_are_no_labels_and_a_known_network_has_its_own(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    root, rows = place
    for i, (name, _) in enumerate(rows):
        split = ("train", "train", "val", "test")[i % 4]
        put(root / name, tmp_path / split / name.removeprefix("tree/"))
    put(root / rows[0][0], tmp_path / "beside.png")
    found = read(tmp_path)
    assert {name: len(samples) for name, samples in found.splits.items()} == {
        "train": 34, "val": 16, "test": 16
    }  # fmt: skip
    assert found.classes == read(root / "tree").classes
    assert any("left out" in line and "beside.png" in line for line in found.remarks)
    evaluated = read(tmp_path, training=False, known=("even", "other", *found.classes[1:]))
    assert "train" not in evaluated.splits and not evaluated.splits["val"].labels[:, 1].any()
    hashes = {split: samples.sha256 for split, samples in found.splits.items()}
    assert read(tmp_path).splits["val"].sha256 == hashes["val"]
    moved = next(name for name, _ in rows[2::4] if name.startswith("tree/even/"))
    here = tmp_path / "val" / moved.removeprefix("tree/")
    put(here, tmp_path / "val" / "prime" / here.name)
    here.unlink()
    assert read(tmp_path).splits["val"].sha256 != hashes["val"]
    put(here.parents[2] / "prime" / here.name, tmp_path / "val" / "zebra" / "1.png")
    with pytest.raises(DataError, match=r"E386: .*zebra/1.png: the network does not know .*zebra"):
        read(tmp_path, training=False, known=found.classes)


def test_flat_folders_are_one_label_each(place: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = place
    for name, labels in rows[:40]:
        put(root / name, tmp_path / labels[0] / Path(name).name)
    labels = read(tmp_path).splits["train"].labels
    assert (labels.sum(axis=1) == 1).all()
    assert sorted(by_name(read(tmp_path))) == sorted(
        name for s in Folder(root=str(tmp_path), leakage="ignore").dataset(True).splits.values()
        for name in s.names
    )  # fmt: skip


def test_the_photographs_of_the_tutorial_are_read_so_too(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    root, rows = place
    for i, (name, _) in enumerate(rows[:12]):
        folder = tmp_path / ("val" if i < 4 else "train") / ("dogs", "wolves")[i % 2]
        put(root / name, folder / f"{i}.png")
    found = Canidae(root=str(tmp_path), leakage="ignore").labelled(True)
    assert found.classes == ("dogs", "wolves") and found.splits["val"].labels.sum() == 4


def test_folds_spread_what_lies_in_nested_folders(place: tuple[Path, Rows]) -> None:
    found = Folder(root=str(place[0] / "tree"), leakage="ignore", folds=3).labelled(True)
    train = found.splits["train"]
    assert train.folds is not None and np.bincount(train.folds[0]).tolist() == [22, 22, 22]


BAD = {
    "dog/beach/dog": "E104: .*two folders .* called 'dog'",
    "e\u0301te\u0301/\u00e9t\u00e9": "E104: ",  # one name in both forms of Unicode
    "dog/ ": "E103: .*a name that no label can have",
    "?dog": "E103: .*unknown",
    "even/empty/": "E307: .*even/empty: holds no images",
    "dog/small/train": "E371: .*'dog/small' is a data set",
    "Validation/dog": "E303: .*did you mean 'val'",
}


@pytest.mark.parametrize("bad", BAD)
def test_folders_that_are_no_labels_are_refused(
    place: tuple[Path, Rows], tmp_path: Path, bad: str
) -> None:
    root, rows = place
    for name, labels in rows:
        put(root / name, tmp_path / "/".join([*labels, Path(name).name]))
    read(tmp_path)
    put(root / rows[0][0], tmp_path / bad / "1.png")
    if bad.endswith("/"):
        (tmp_path / bad / "1.png").unlink()
    with pytest.raises(DataError, match=BAD[bad]) as caught:
        read(tmp_path)
    assert isinstance(caught.value, LabelledDataError) == BAD[bad].startswith("E10")


def test_one_folder_that_holds_all_is_no_label(place: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = place
    for name, labels in rows[:40]:
        put(root / name, tmp_path / "all" / "/".join([*labels, Path(name).name]))
    with pytest.raises(DataError, match=r"E305: .*data\.root=\S+/all\?"):
        read(tmp_path)
    read(tmp_path / "all")
    put(root / "flat" / "empty00.png", tmp_path / "0.png")  # which lacks it
    assert "all" in read(tmp_path).classes


def test_names_that_differ_in_capitals_are_remarked_on(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    root, rows = place
    for i, (name, labels) in enumerate(rows[:40]):
        folders = [labels[0].capitalize() if i % 2 else labels[0], *labels[1:]]
        put(root / name, tmp_path / "/".join([*folders, Path(name).name]))
    pairs = "['Prime', 'prime'], ['Round', 'round'], ['Straight', 'straight']"
    assert f"classes that look the same: {pairs}" in read(tmp_path).remarks


@pytest.mark.parametrize("top", ["", "train"])
def test_the_folders_above_the_labels_are_groups_where_that_is_asked_for(
    place: tuple[Path, Rows], tmp_path: Path, top: str
) -> None:
    """Twelve patients, of whom each image has the labels of its inner folders alone."""
    root, rows = place
    truth, group_of = {}, {}
    for i, (name, labels) in enumerate(rows):
        path = "/".join(filter(None, [top, f"p{i % 12}", *labels, Path(name).name]))
        put(root / name, tmp_path / "in" / path)
        truth[path], group_of[path] = tuple(sorted(labels)), f"p{i % 12}/"
    how = {"leakage": "ignore", "group": "FOLDER"}
    found = Folder(root=str(tmp_path / "in"), **how).labelled(True)
    assert by_name(found) == truth and found.classes == tuple(sorted(labelled.LABELS))
    sides = {s: dict(zip(x.names, x.groups, strict=True)) for s, x in found.splits.items()}
    assert sides["train"] | sides["val"] == group_of
    assert sides["val"] and not {*sides["train"].values()} & {*sides["val"].values()}
    assert any("outermost folders are groups, and no labels: p0; " in r for r in found.remarks)
    out = pack(Folder(str(tmp_path / "in"), **how), str(tmp_path / "out"), 1, several=True)
    assert by_name(Shards(root=str(out), **how).labelled(True)) == truth


def test_a_pack_has_the_labels_of_its_folders(place: tuple[Path, Rows], tmp_path: Path) -> None:
    root, rows = place
    out = pack(Folder(str(root / "tree")), str(tmp_path / "out"), 1, several=True)
    one, two = read(root / "tree"), Shards(str(out), leakage="ignore").labelled(True)
    assert one.classes == two.classes and by_name(one) == by_name(two)
    hashes = [{k: s.sha256 for k, s in found.splits.items()} for found in (one, two)]
    assert hashes[0] == hashes[1]
    with tarfile.open(out / "images-000000.tar") as tar:  # by another reader
        tar.extractall(tmp_path / "unpacked", filter="data")
    for name, labels in rows:
        said = (tmp_path / "unpacked" / name.removeprefix("tree/")).with_suffix(".json")
        assert json.loads(said.read_text()) == {"labels": labels}
    again = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    pack(Folder(str(root / "tree")), str(out), 1, several=True)  # finished before: nothing is new
    assert again == {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    put(root / "flat" / "0000.png", tmp_path / "odd" / "dog " / "1.png")
    with pytest.raises(DataError, match=r"E384: .*'dog ' would not be read as it is"):
        pack(Folder(str(tmp_path / "odd")), str(tmp_path / "none"), 1, several=True)
