"""Folds: even, apart by groups, a function of seed, repeat and names, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pictures import folders, picture

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, DataError
from xfer.data import Digits, Folder, Manifest
from xfer.data.folds import divided, fold_facts, fold_words, holds_out, inner
from xfer.plan.make import make_plan
from xfer.plan.table import table
from xfer.training import logistic


def listed(root: Path, rows: list[tuple[str, str, str]], head: str = "path,label,film") -> Path:
    """A CSV file of pictures, each row with its group."""
    for name, *_ in rows:
        picture(hash(name) % 1000).save(root / name)
    path = root / "images.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([head.split(","), *rows])
    return path


def films(root: Path, per_class: int = 12, films: int = 4) -> Path:
    rows = [
        (f"{label}{i:02d}.png", label, f"film {i % films}")
        for label in ("cat", "dog")
        for i in range(per_class)
    ]
    return listed(root, rows)


def refuse(number: int, spec, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        spec.dataset(training=True)
    assert caught.value.number == number


def test_all_images_of_data_without_val_are_in_the_folds(tmp_path: Path) -> None:
    root = folders(tmp_path, {"cat": 10, "dog": 15})
    data = Folder(str(root), folds=5, repeats=3).dataset(training=True)
    train = data.splits["train"]
    assert set(data.splits) == {"train"} and len(train) == 25
    assert train.folds is not None and train.folds.shape == (3, 25)
    for row in train.folds:
        for fold in range(5):
            held = train.labels[row == fold]
            assert [int((held == c).sum()) for c in (0, 1)] == [2, 3]
    assert not (train.folds[0] == train.folds[1]).all(), "every repeat divides anew"


def test_val_and_test_that_are_there_stay_held_out(tmp_path: Path) -> None:
    counts = {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2, "test/cat": 1}
    root = folders(tmp_path, counts | {"test/dog": 1})
    whole = Folder(str(root), folds=3).dataset(training=True)
    assert {name: len(s) for name, s in whole.splits.items()} == {"train": 12, "val": 4, "test": 2}
    assert whole.splits["val"].folds is None


def test_a_fold_is_the_part_that_the_whole_has(tmp_path: Path) -> None:
    root = folders(tmp_path, {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2})
    train = Folder(str(root), folds=3, repeats=2).dataset(training=True).splits["train"]
    for number in range(6):
        part = Folder(str(root), folds=3, repeats=2, fold=number).dataset(training=True)
        held = train.folds[number // 3] == number % 3
        assert set(part.splits) == {"train", "val"}
        assert part.splits["val"].names == tuple(np.array(train.names)[held])
        assert part.splits["train"].names == tuple(np.array(train.names)[~held])


def test_the_order_of_the_lines_decides_nothing(tmp_path: Path) -> None:
    path = films(tmp_path)
    before = Manifest(file=str(path), folds=3, group="film").dataset(True).splits["train"]
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]))
    after = Manifest(file=str(path), folds=3, group="film").dataset(True).splits["train"]
    assert before.names == after.names[::-1]
    assert (before.folds == after.folds[:, ::-1]).all()
    other = Manifest(file=str(path), folds=3, group="film", split_seed=1).dataset(True)
    assert not (other.splits["train"].folds == after.folds).all()


def test_a_group_is_never_on_both_sides(tmp_path: Path) -> None:
    path = films(tmp_path, films=5)
    train = Manifest(file=str(path), folds=3, repeats=4, group="film").dataset(True).splits["train"]
    assert set(train.groups) == {f"film {i}" for i in range(5)}
    for row in train.folds:
        sides = {group: set(row[np.array(train.groups) == group]) for group in train.groups}
        assert all(len(side) == 1 for side in sides.values())
    apart = Manifest(file=str(path), columns=("path", "label"), folds=3).dataset(True)
    assert any(
        len(set(apart.splits["train"].folds[0][np.array(train.groups) == g])) > 1
        for g in train.groups
    ), "without groups they are torn apart, or this test shows nothing"


def test_folders_are_groups_across_classes_and_loose_images_stand_alone(tmp_path: Path) -> None:
    counts = {"cat/a": 3, "cat/b": 3, "cat": 3, "dog/a": 3, "dog/c/deep": 3, "dog/c": 1}
    root = folders(tmp_path, counts)
    train = Folder(str(root), folds=2, group="FOLDER").dataset(True).splits["train"]
    of = dict(zip(train.names, train.groups, strict=True))
    assert of["cat/a/00.jpg"] == of["dog/a/00.jpg"] == "a/"
    assert of["dog/c/deep/00.jpg"] == of["dog/c/00.jpg"] == "c/"
    assert of["cat/00.jpg"] == "cat/00.jpg"
    split = {name: f"train/{name}" for name in counts}
    below = folders(tmp_path / "split", {place: counts[name] for name, place in split.items()})
    same = Folder(str(below), folds=2, group="FOLDER").dataset(True).splits["train"]
    assert sorted(set(same.groups) - {n for n in same.groups if n.endswith(".jpg")}) == [
        "a/",
        "b/",
        "c/",
    ]


def test_the_folds_that_are_proposed_suit_every_class(tmp_path: Path) -> None:
    root = str(folders(tmp_path, {"ant": 4, "cat": 3, "dog": 9}))
    with pytest.raises(DataError, match=r"class 'cat' has 3 images") as caught:
        Folder(root, folds=5).dataset(training=True)
    count = int(caught.value.fix.partition("data.folds=")[2].partition(",")[0])
    assert Folder(root, folds=count).dataset(training=True).splits["train"].folds is not None


def test_groups_are_read_where_what_is_trained_on_is_not(tmp_path: Path) -> None:
    """Of splits with folders, an evaluation does not list ``train``."""
    names = {f"{s}/{c}/{s}{g}": 1 for s in ("train", "val") for c in ("cat", "dog") for g in "ab"}
    root = folders(tmp_path / "in", names)
    whole = Folder(str(root), group="FOLDER").dataset(True).splits
    held_out = Folder(str(root), group="FOLDER").dataset(False).splits
    assert [*held_out] == ["val"] and [*held_out["val"].groups] == [*whole["val"].groups]


def test_what_cannot_be_divided_is_refused_in_one_sentence(tmp_path: Path) -> None:
    few = folders(tmp_path / "few", {"cat": 4, "dog": 9})
    refuse(350, Folder(str(few), folds=5), r"class 'cat' has 4 images, fewer than the 5 folds")
    refuse(354, Folder(str(few), folds=2, group="FOLDER"), "no image lies in a folder")
    (tmp_path / "one").mkdir()
    rows = [(f"{c}{i}.png", c, "one" if c == "cat" else f"f{i}") for c in ("cat", "dog")
            for i in range(6)]  # fmt: skip
    one = str(listed(tmp_path / "one", rows))
    refuse(351, Manifest(file=one, folds=3, group="film"), "all 6 images of class 'cat'")
    refuse(352, Manifest(file=one, folds=3, group="flim"), "no single column 'flim'")
    (tmp_path / "three").mkdir()
    three = str(films(tmp_path / "three", films=3))
    refuse(353, Manifest(file=three, folds=5, group="film"), "3 groups cannot be divided into 5")
    (tmp_path / "empty").mkdir()
    empty = str(listed(tmp_path / "empty", [(n, c, "") if n == "cat1.png" else (n, c, g)
                                            for n, c, g in rows]))  # fmt: skip
    refuse(352, Manifest(file=empty, folds=3, group="film"), "column 'film' is empty")


def test_the_remedy_of_too_few_images_works_when_it_is_typed(tmp_path: Path) -> None:
    few = folders(tmp_path, {"cat": 4, "dog": 9})
    with pytest.raises(DataError) as caught:
        Folder(str(few), folds=5).dataset(True)
    assert caught.value.fix.startswith("type data.folds=4")
    assert Folder(str(few), folds=4).dataset(True).splits["train"].folds is not None


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        (["data.repeats=3"], 6),
        (["data.fold=1"], 6),
        (["data.fold=0"], 6),
        (["data.folds=5", "data.repeats=3", "data.fold=15"], 7),
        (["data.folds=5", "stages=[export]", "head=keep"], 8),
        (["data.folds=5", "stages=[lr_find,fit]"], 8),
        (["data.folds=5", "stages=[fit,worth]"], 8),
        (["data.folds=5", "head=knn"], 27),
        (["data.folds=5", "head=prototype"], 27),
        (["data.folds=5", "data.group=FOLDER"], 10),
        (["data.folds=5", "data.val_fraction=0.1"], 11),
        (["data.folds=5", "sweep.sampler=tpe", "sweep.n_trials=2", "sweep.pruner=median"], 12),
    ],
)
def test_keys_that_do_not_go_together(typed: list[str], number: int) -> None:
    with pytest.raises(CombinationError) as caught:
        compose_specs(["experiment=digits_freeze", *typed])
    assert caught.value.number == number and caught.value.exit == 2


def test_a_model_of_all_images_has_nothing_to_be_evaluated_on() -> None:
    spec = Digits(digits=(0, 1), folds=5)
    with pytest.raises(DataError, match="fitted on all of them") as caught:
        spec.dataset(training=False)
    assert caught.value.number == 355


def test_the_plan_shows_folds_groups_and_sizes(tmp_path: Path) -> None:
    plan = make_plan(compose_specs(["experiment=digits_freeze", "data.folds=4", "data.repeats=2"]))
    facts = plan.facts["folds"]
    assert facts["folds"] == 4 and facts["repeats"] == 2 and sum(facts["sizes"][1]) == 896
    assert "4 folds x 2 repeats of 224 images" in table(plan)
    data = Manifest(file=str(films(tmp_path)), folds=3, group="film")
    said = fold_words(fold_facts(data.dataset(True), data) or {})
    assert said.endswith("4 groups by film")


def test_inner_folds_respect_groups_and_leave_in_a_class_of_one_group() -> None:
    labels = np.array([0] * 9 + [1] * 6 + [2] * 4)
    groups = ["a", "b", "c"] * 3 + ["a", "d"] * 3 + ["e"] * 4
    fold_of = inner(labels, groups, 5, 0)
    assert fold_of is not None
    assert (fold_of[labels == 2] == -1).all(), "group e alone has class 2"
    for group in "abcd":
        assert len(set(fold_of[np.array(groups) == group])) == 1
    assert (inner(labels[:6], ["a"] * 3 + ["b"] * 3, 5, 0) != 7).all()
    assert inner(labels, None, 5, 0) is None


def test_whether_an_image_is_held_out_is_known_without_folds() -> None:
    drawn, seen = np.random.default_rng(0), set()
    for _ in range(60):
        labels = drawn.integers(0, 3, drawn.integers(1, 8))
        groups = [str(name) for name in drawn.integers(0, 4, len(labels))]
        apart = inner(labels, groups, 3, 0)
        assert apart is not None
        assert holds_out(labels, groups, 3) == (apart >= 0).any()
        assert holds_out(labels, (), 3) == (logistic.folds(labels, 3, 0) >= 0).any()
        seen.add((holds_out(labels, groups, 3), holds_out(labels, (), 3)))
    assert len(seen) == 3


def test_it_is_scikit_learn_that_divides() -> None:
    from sklearn.model_selection import StratifiedKFold

    labels = np.repeat([0, 1, 2], [11, 17, 30])
    theirs = np.empty(58, int)
    splitter = StratifiedKFold(4, shuffle=True, random_state=7)
    for fold, (_, held) in enumerate(splitter.split(labels, labels)):
        theirs[held] = fold
    assert (divided(labels, None, 4, 7) == theirs).all()


def test_a_group_an_image_is_divided_into_as_many_parts_as_a_class_has_images() -> None:
    """Fewer than were asked for, where they are more: that had been none at all."""
    labels, groups = np.repeat([0, 1], 4), [str(i) for i in range(8)]
    fold_of = inner(labels, groups, 5, 0)
    assert fold_of is not None and sorted(set(fold_of.tolist())) == [0, 1, 2, 3]
    assert holds_out(labels, groups, 5)
