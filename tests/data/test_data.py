from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, folders, picture, seed
from shipped import SHIPPED

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, DataError
from xfer.data import Canidae, Digits, Folder, Manifest, Mnist, Shards
from xfer.data.pack import pack
from xfer.data.scan import examine


def counts(dataset) -> dict[str, list[int]]:
    """Images of every class, split by split."""
    n = len(dataset.classes)
    return {
        split: np.bincount(s.labels, minlength=n).tolist() for split, s in dataset.splits.items()
    }


def names(dataset) -> dict[str, tuple[str, ...]]:
    return {split: samples.names for split, samples in dataset.splits.items()}


def refuse(spec, match: str, training: bool = True, number: int | None = None) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        spec.dataset(training)
    error = caught.value
    assert error.exit == 3 and error.number > 300 and len(str(error).splitlines()) == 1
    assert number is None or error.number == number
    return error


FULL = {"train/cat": 4, "train/dog": 3, "val/cat": 2, "val/dog": 2}


# Folders: what is read


def test_split_folders_are_taken_as_they_are(tmp_path):
    root = folders(tmp_path, FULL | {"test/cat": 1, "test/dog": 1})
    found = Folder(str(root)).dataset(training=True)
    assert found.classes == ("cat", "dog")
    assert counts(found) == {"train": [4, 3], "val": [2, 2], "test": [1, 1]}
    train = found.splits["train"]
    assert train.names[:1] == ("train/cat/00.jpg",) and train.names == tuple(sorted(train.names))
    assert train.labels.dtype == np.int64 and train.labels.tolist() == [0] * 4 + [1] * 3
    expected = picture(seed("train/dog/00.jpg"))
    assert np.abs(np.asarray(train.images[4]).astype(int) - np.asarray(expected)).mean() < 8


def test_real_photographs_are_read(assets):
    found = Folder(str(assets / "Canidae")).dataset(training=True)
    assert found.classes == ("dogs", "wolves") and found.remarks == ()
    assert counts(found) == {"train": [120, 120], "val": [30, 30]}
    assert found.splits["val"].images[0].mode == "RGB"


def test_validation_is_split_off_train_and_the_test_folder_stays(tmp_path):
    root = folders(tmp_path, {"train/a": 10, "train/b": 20, "test/a": 2, "test/b": 2})
    found = Folder(str(root), test_fraction=0.5).dataset(training=True)
    assert counts(found) == {"train": [8, 16], "val": [2, 4], "test": [2, 2]}
    assert all(name.startswith("train/") for name in found.splits["val"].names)
    assert counts(Folder(str(root)).dataset(training=False)) == {"val": [2, 4], "test": [2, 2]}


def test_a_test_part_can_be_split_off_train_beside_a_val_folder(tmp_path):
    root = folders(tmp_path, {"train/a": 10, "train/b": 20, "val/a": 2, "val/b": 2})
    spec = Folder(str(root), val_fraction=0.9, test_fraction=0.2)
    found = spec.dataset(training=True)
    assert counts(found) == {"train": [8, 16], "val": [2, 2], "test": [2, 4]}
    assert names(spec.dataset(training=False))["test"] == names(found)["test"]


def test_class_folders_alone_are_split_class_by_class(tmp_path):
    root = folders(tmp_path, {"a": 10, "b": 20, "c": 2})
    found = Folder(str(root)).dataset(training=True)
    assert counts(found) == {"train": [8, 16, 1], "val": [2, 4, 1]}
    found = Folder(str(folders(root, {"c": 3})), test_fraction=0.1).dataset(training=True)
    assert counts(found) == {"train": [7, 14, 1], "val": [2, 4, 1], "test": [1, 2, 1]}
    every = [name for split in names(found).values() for name in split]
    assert len(set(every)) == len(every) == 33


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.05, 0.9), (0.98, 0.01), (0.34, 0.33)])
@pytest.mark.parametrize("n", [3, 4, 7, 50])
def test_every_split_gets_an_image_of_every_class(tmp_path, val, test, n):
    root = folders(tmp_path, {"a": n, "b": n})
    spec = Folder(str(root), val_fraction=val, test_fraction=test)
    found = counts(spec.dataset(training=val + test < 1))
    sizes = {split: row[0] for split, row in found.items()}
    assert sum(sizes.values()) == n and min(sizes.values()) >= 1
    assert abs(sizes["val"] - n * val) <= 2


def test_the_split_does_not_depend_on_the_file_system(tmp_path):
    one = folders(tmp_path / "one", {"a": 12, "b": 9})
    two = tmp_path / "two"
    for path in sorted(one.rglob("*.jpg"), reverse=True):  # another order of creation
        (two / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, two / path.parent.name)
    first, second = (Folder(str(root)).dataset(training=True) for root in (one, two))
    assert names(first) == names(second)
    assert [s.sha256 for s in first.splits.values()] == [s.sha256 for s in second.splits.values()]
    other = Folder(str(one), split_seed=1).dataset(training=True)
    assert names(other) != names(first) and counts(other) == counts(first)


def test_a_new_image_moves_no_other_from_val_to_train_or_back(tmp_path):
    root = folders(tmp_path, {"a": 20, "b": 20})
    before = Folder(str(root)).dataset(training=True)
    picture(999).save(root / "a" / "new.jpg")
    after = Folder(str(root)).dataset(training=True)
    gone = set(before.splits["val"].names) - set(after.splits["val"].names)
    assert len(gone) <= 1  # a whole number of images may round otherwise, or the new one pushes
    assert len(set(before.splits["train"].names) & set(after.splits["val"].names)) <= 1


def test_evaluation_sees_the_images_that_training_held_out(tmp_path):
    spec = Folder(str(folders(tmp_path, {"a": 9, "b": 6})), test_fraction=0.2)
    training, evaluation = spec.dataset(training=True), spec.dataset(training=False)
    assert "train" not in evaluation.splits
    for split in ("val", "test"):
        assert evaluation.splits[split].names == training.splits[split].names
        assert evaluation.splits[split].sha256 == training.splits[split].sha256


def test_a_new_folder_is_scored_whole(tmp_path):
    root = folders(tmp_path, {"a": 3, "b": 1})
    spec = Folder(str(root), val_fraction=1.0)
    assert counts(spec.dataset(training=False)) == {"val": [3, 1]}
    refuse(spec, r"there is no 'train' part.*val_fraction=0\.2", number=304)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_needs_no_train_folder_and_does_not_look_into_one(tmp_path, split):
    root = folders(tmp_path, {f"{split}/a": 2, f"{split}/b": 1})
    assert counts(Folder(str(root)).dataset(training=False)) == {split: [2, 1]}
    folders(tmp_path, {"val/a": 1, "val/b": 1, "train/a": 1, "train/other": 1})
    (root / "train" / "a" / "00.jpg").write_bytes(b"broken")
    (root / "train" / "empty").mkdir()
    assert "train" not in Folder(str(root)).dataset(training=False).splits


def test_folders_inside_a_class_folder_are_walked(tmp_path):
    root = folders(tmp_path, {"a/x/y": 2, "a": 2, "b/x": 4})
    found = Folder(str(root), val_fraction=0.5).dataset(training=True)
    assert counts(found) == {"train": [2, 2], "val": [2, 2]}
    every = {name for split in names(found).values() for name in split}
    assert {"a/x/y/00.jpg", "a/00.jpg", "b/x/00.jpg"} <= every


def test_suffixes_count_in_any_case(tmp_path):
    root = folders(tmp_path, {"a": 4, "b": 4})
    for path, suffix in zip(sorted((root / "a").iterdir()), (".JPG", ".Jpeg"), strict=False):
        path.rename(path.with_suffix(suffix))
    assert sum(map(len, Folder(str(root)).dataset(training=True).splits.values())) == 8


def test_classes_are_sorted_as_plain_strings(tmp_path):
    root = folders(tmp_path, dict.fromkeys(("10", "2", "b", "B", "é", "_", "a"), 2))
    found = Folder(str(root)).dataset(training=True)
    assert found.classes == ("10", "2", "B", "_", "a", "b", "é")


def test_classes_may_be_called_train_and_test(tmp_path):
    root = folders(tmp_path, {"train": 3, "bus": 3, "training": 3})
    assert Folder(str(root)).dataset(training=True).classes == ("bus", "train", "training")


def test_the_root_may_be_relative_a_link_or_in_the_home_folder(tmp_path, monkeypatch):
    root = folders(tmp_path / "data", FULL)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = names(Folder(str(root)).dataset(training=True))
    for text in ("data", "./link/", "~/data", "data/../link"):
        found = Folder(text).dataset(training=True)
        assert names(found) == expected
        monkeypatch.chdir("/")  # a worker elsewhere still finds the files
        assert found.splits["val"].images[0].size == (24, 16)
        monkeypatch.chdir(tmp_path)


def test_names_that_are_no_utf8_are_classes_and_files(tmp_path):
    odd = os.fsdecode(b"k\xe4fer")
    root = folders(tmp_path, {odd: 3, "new\nline": 3})
    for path in sorted((root / odd).iterdir()):
        path.rename(path.with_name(os.fsdecode(b"\xff") + path.name))
    found = Folder(str(root)).dataset(training=True)
    assert found.classes == (odd, "new\nline")
    assert found.splits["train"].images[0].mode == "RGB"
    assert all(remark.isprintable() and remark.encode() for remark in found.remarks)


def test_names_that_python_has_read_as_ascii_are_refused_in_words(tmp_path, monkeypatch):
    root = folders(tmp_path, {"k\u00e4fer": 3, "wolf": 3})
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(DataError, match=r"E710: .*k\u00e4fer.*PYTHONUTF8=1") as caught:
        Folder(str(root)).dataset(training=True)
    assert caught.value.exit == 3
    (root / "k\u00e4fer").rename(root / "ant")
    assert Folder(str(root)).dataset(training=True).classes == ("ant", "wolf")


# Folders: what is left out, and told


def test_hidden_and_foreign_entries_are_left_out_and_counted(tmp_path):
    root = folders(tmp_path, FULL | {"train/.ipynb_checkpoints": 1, "__MACOSX/train": 1})
    for name in (".hidden.jpg", "._00.jpg", "Thumbs.db", "desktop.ini", "notes.txt", "jpg"):
        (root / "train" / "cat" / name).write_text("x")
    picture().save(root / "train" / "stray.png")
    (root / "README.md").write_text("about")
    (root / "annotations").mkdir()
    found = Folder(str(root)).dataset(training=True)
    assert counts(found) == {"train": [4, 3], "val": [2, 2]}
    told = [remark for remark in found.remarks if remark.startswith("left out")]
    assert told == [
        "left out (beside the splits): 'annotations'",
        "left out (hidden): '__MACOSX' and 3 more",
        "left out (images outside the class folders): 'train/stray.png'",
        "left out (not an image suffix): 'train/cat/Thumbs.db' and 3 more",
    ]


def test_a_circle_of_links_is_not_entered(tmp_path):
    root = folders(tmp_path, {"a": 3, "b/deep": 3})
    (root / "a" / "self").symlink_to("..")
    (root / "b" / "deep" / "up").symlink_to(root)
    (root / "again").symlink_to(".")
    (root / "more").symlink_to("a")
    (root / "above").symlink_to("..")
    found = Folder(str(root)).dataset(training=True)
    assert found.classes == ("a", "b") and sum(map(len, found.splits.values())) == 6
    assert (
        "left out (linked folders that lead back or are already read): 'a/self' and 4 more"
        in found.remarks
    )


def test_links_to_class_folders_elsewhere_and_to_files_are_followed(tmp_path):
    elsewhere = folders(tmp_path / "elsewhere", {"x": 3, "y": 3})
    root = tmp_path / "data"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to(elsewhere / "x")
    for path in (elsewhere / "y").iterdir():
        (root / "b" / path.name).symlink_to(path)
    found = Folder(str(root)).dataset(training=True)
    assert counts(found) == {"train": [2, 2], "val": [1, 1]}
    assert not any("left out" in remark for remark in found.remarks)
    assert "read through links to other folders: 'a'" in found.remarks


def linked(tmp_path: Path) -> Path:
    """Class folders with links in them: out of the root, in circles out there, and to nothing."""
    root = folders(tmp_path / "data", {"a": 3, "b": 3, "b/.ipynb_checkpoints": 1})
    folders(tmp_path / "x", {"deep": 1, "deep/__MACOSX": 1})
    folders(tmp_path, {"y": 2})
    (root / "a" / "more").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "over").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "back").symlink_to(tmp_path / "x")
    (tmp_path / "y" / "home").symlink_to(root)
    (tmp_path / "y" / "self").symlink_to("self")
    (root / "b" / "twice").symlink_to(tmp_path / "x" / "deep")
    (root / "gone").symlink_to(tmp_path / "unmounted")
    return root


def test_training_prediction_and_python_walk_alike_and_say_what_they_left_out(tmp_path, caplog):
    from xfer.evaluation.predict import find

    root = linked(tmp_path)
    data = Folder(str(root), leakage="warn").dataset(training=True)
    trained = sorted(name for split in data.splits.values() for name in split.names)
    assert trained == [
        *(f"a/0{i}.jpg" for i in range(3)),
        *("a/more/deep/00.jpg", "a/more/over/00.jpg", "a/more/over/01.jpg"),
        *(f"b/0{i}.jpg" for i in range(3)),
        "b/twice/00.jpg",
    ]
    told = [remark for remark in data.remarks if remark.startswith(("left", "read through"))]
    back = "linked folders that lead back or are already read"
    assert told == [
        "left out (broken links): 'a/more/over/self' and 1 more",
        "left out (hidden): 'a/more/deep/__MACOSX' and 2 more",
        f"left out ({back}): 'a/more/over/back' and 1 more",
        "read through links to other folders: 'a/more' and 2 more",
    ]
    # A folder that two classes link to is an image of both, but needs one answer.
    once = [name for name in trained if name != "b/twice/00.jpg"]
    for text, expected in (
        *(("a", trained[:6]), ("b", trained[6:])),
        *(("", once), ("**/*.jpg", once), ("**/deep/*.jpg", ["a/more/deep/00.jpg"])),
    ):
        caplog.clear()
        found = find([str(root / text)])
        assert [Path(name).relative_to(root).as_posix() for name in found.names] == expected
        assert "left out (hidden)" in caplog.text and "read through links" in caplog.text
    answered = xfer.load(SHIPPED).predict(root)
    assert [Path(a.path).relative_to(root).as_posix() for a in answered] == once
    caplog.clear()
    find([f"{root}/b/*"])
    assert "left out (hidden): " in caplog.text and "b/.ipynb_checkpoints'" in caplog.text
    assert "does not enter: name them): " in caplog.text and "b/twice'" in caplog.text


def test_a_list_reads_what_it_names_through_links_and_in_hidden_folders(tmp_path):
    root = linked(tmp_path)
    rows = "".join(
        f"{name},{name[0]}\n"
        for name in ("a/more/over/00.jpg", "b/.ipynb_checkpoints/00.jpg", "a/00.jpg", "b/01.jpg")
    )
    (root / "list.csv").write_text(f"path,label\n{rows}")
    found = Manifest(str(root / "list.csv")).dataset(training=True)
    assert sum(map(len, found.splits.values())) == 4


def test_a_pipe_is_named_and_never_opened(tmp_path):
    root = folders(tmp_path, FULL)
    os.mkfifo(root / "train" / "cat" / "pipe.jpg")
    refuse(Folder(str(root)), r"pipe\.jpg.*not a regular file", number=310)


def test_the_folder_is_the_same_after_it_was_read(tmp_path):
    root = folders(tmp_path, FULL)

    def state() -> list[object]:
        return [
            (p, p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in sorted(root.rglob("*"))
        ]

    before = state()
    Folder(str(root)).dataset(training=True)
    assert state() == before


def test_a_small_validation_part_and_imbalance_are_told(tmp_path):
    root = folders(tmp_path, {"train/a": 21, "train/b": 1, "val/a": 1, "val/b": 1})
    assert Folder(str(root)).dataset(training=True).remarks == (
        "classes are imbalanced: 22 images of 'a', 2 of 'b'",
        "val has 2 images: each is 50.0 points of accuracy",
    )
    folders(root, {"train/b": 2, "val/a": 15, "val/b": 15})
    assert Folder(str(root)).dataset(training=True).remarks == ()


def test_an_image_on_both_sides_of_the_split_is_told(tmp_path):
    root = folders(tmp_path, FULL)
    shutil.copy(root / "train" / "cat" / "01.jpg", root / "val" / "cat" / "copy.jpg")
    twins = "1 ('val/cat/copy.jpg' is 'train/cat/01.jpg')"
    remarks = Folder(str(root)).dataset(training=True).remarks
    assert f"held-out images that are also in train: {twins}" in remarks


def test_the_hash_of_a_split_follows_names_classes_and_bytes(tmp_path):
    root = folders(tmp_path, FULL)

    def hashes() -> list[str]:
        found = Folder(str(root)).dataset(training=True)
        return [found.splits[split].sha256 for split in ("train", "val")]

    first = hashes()
    lines = "".join(
        f"{name}\0{name.split('/')[1]}\0{digest}\n"
        for name in names(Folder(str(root)).dataset(training=True))["train"]
        for _, digest, *_ in examine([root / name], root)
    )
    assert first[0] == hashlib.sha256(lines.encode()).hexdigest()
    picture(77).save(root / "train" / "cat" / "00.jpg")
    second = hashes()
    assert second[0] != first[0] and second[1] == first[1]
    (root / "val" / "cat" / "00.jpg").rename(root / "val" / "cat" / "0.jpg")
    assert hashes()[1] != second[1]


# Folders: what is refused


def test_a_missing_root_is_named_with_the_nearest_folder(tmp_path):
    folders(tmp_path / "my_images", FULL)
    error = refuse(Folder(str(tmp_path / "my_imges")), "there is no such folder", number=301)
    assert f"did you mean {tmp_path / 'my_images'}?" in error.fix
    assert "one folder of images per class" in error.fix
    for text in (str(tmp_path / "x" / "y"), "~nobody-of-this-name/x", str(tmp_path / ("x" * 300))):
        refuse(Folder(text), "there is no such|home folder|longer than a path")
    (tmp_path / "data.zip").write_bytes(b"PK")
    refuse(Folder(str(tmp_path / "data.zip")), "is a file, not a folder.*unpack", number=301)


def test_a_root_without_class_folders_says_what_to_do(tmp_path):
    refuse(Folder(str(tmp_path)), "no class folders.*one folder per class", number=302)
    picture().save(tmp_path / "a.jpg")
    refuse(Folder(str(tmp_path)), r"images outside the class folders.*a\.jpg", number=302)
    folders(tmp_path, {"train/a": 2, "train/b": 2})
    (tmp_path / "val").mkdir()
    refuse(Folder(str(tmp_path)), "val: holds no class folders", number=302)


def test_a_root_that_is_one_level_too_high_is_seen(tmp_path):
    folders(tmp_path / "set", FULL)
    refuse(Folder(str(tmp_path)), rf"did you mean data\.root={tmp_path}/set\?", number=305)


def test_a_misspelt_split_is_to_be_renamed(tmp_path):
    root = folders(tmp_path, {"train/a": 2, "train/b": 2, "vla/a": 1, "vla/b": 1})
    error = refuse(Folder(str(root)), "vla: .*did you mean 'val'", number=303)
    assert error.fix == f"rename the folder to {root / 'val'}"
    (root / "vla").rename(error.fix.removeprefix("rename the folder to "))
    assert set(Folder(str(root)).dataset(training=True).splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "validation", "test"),
        ("Training", "", "Testing"),
        ("TRAIN", "valid", ""),
        ("training_data", "", "testing_data"),
        ("seg_train", "val", "seg_test"),
        ("trainset", "valid-images 2", "test"),
    ],
)
def test_splits_are_read_under_the_names_that_others_give_them(tmp_path, train, val, test):
    called = {"train": train, "val": val, "test": test}
    shapes = {split: {f"{name}/{c}": 5 for c in "ab"} for split, name in called.items() if name}
    root = folders(tmp_path, {k: n for shape in shapes.values() for k, n in shape.items()})
    found = Folder(str(root)).dataset(training=True)
    assert found.classes == ("a", "b") and set(found.splits) == {"train", "val", *shapes}
    for split, name in called.items():
        told = f"the folder '{name}' is the split {split}" in found.remarks
        assert told == (name not in ("", split))
        of_split = found.splits[split].names if name else ()
        assert all(image.startswith(f"{name}/") for image in of_split)
    seen = Folder(str(root)).dataset(training=False)
    assert set(seen.splits) == set(found.splits) - {"train"} and seen.remarks == found.remarks
    labelled = Folder(str(root)).labelled(True)
    assert labelled.classes == ("a", "b") and set(labelled.splits) == set(found.splits)
    out = pack(Folder(str(root)), str(tmp_path.with_name(f"{tmp_path.name}-shards")), 1)
    packed = Shards(str(out)).dataset(training=True).splits
    assert {s: x.names for s, x in packed.items()} == {s: x.names for s, x in found.splits.items()}


def test_two_folders_of_one_split_are_refused(tmp_path):
    root = folders(tmp_path, FULL | {"validation/cat": 1, "validation/dog": 1})
    refuse(Folder(str(root)), "validation: is called as the split 'val'.*'val' beside", number=303)
    shutil.rmtree(root / "validation")
    Folder(str(root)).dataset(training=True)


def test_folders_beside_a_split_that_only_begin_as_it_does_are_left_out(tmp_path):
    beside = {"train_backup/cat": 1, "train_backup/dog": 1, "train_logs/version_0/cat": 1}
    found = Folder(str(folders(tmp_path, FULL | beside))).dataset(training=True)
    assert not any(name.startswith("train_") for s in found.splits.values() for name in s.names)
    assert found.remarks[0] == "left out (beside the splits): 'train_backup' and 1 more"


def test_splits_one_level_too_deep_are_to_be_moved_up(tmp_path):
    shape = {f"{name}/{name}/{c}": 5 for name in ("seg_train", "seg_test") for c in "ab"}
    root = str(folders(tmp_path, shape))
    for name in ("seg_test", "seg_train"):
        error = refuse(Folder(root), f"{name}: holds one folder, '{name}'", number=303)
        subprocess.run(error.fix.removeprefix("type "), shell=True, check=True)
        shutil.rmtree(tmp_path / name)
    assert set(Folder(root).dataset(training=True).splits) == {"train", "val", "test"}


def test_classes_that_are_called_as_splits_stay_classes(tmp_path):
    root = folders(tmp_path, {"valid/1": 3, "valid/2": 3, "invalid/1": 3, "invalid/2": 3})
    refuse(Folder(str(root)), "did you mean 'val'", number=303)  # and no split without a train
    both = {"train station/1": 5, "train station/2": 5, "test tube/3": 5, "test tube/4": 5}
    found = Folder(str(folders(tmp_path / "both", both))).dataset(training=True)
    assert found.classes == ("test tube", "train station")
    assert Folder(str(folders(tmp_path / "flat", {"valid": 5, "Train": 5}))).dataset(
        training=True
    ).classes == ("Train", "valid")


def test_a_root_whose_classes_lie_deeper_is_remarked_on_with_the_root_to_type(tmp_path):
    def told(root, **how):
        remarks = Folder(str(root), **how).dataset(training=True).remarks
        return [line for line in remarks if "no classes of their own" in line]

    deep = {f"set/{c}": 5 for c in ("1", "2", "3")}
    root = folders(tmp_path / "my data", deep | {"examples": 5})
    (line,) = told(root)
    assert line.startswith("folders below a class folder") and ": 3, such as 'set/1';" in line
    deeper = compose_specs(shlex.split(line.rpartition("type ")[2])).data.root
    assert Folder(deeper).dataset(training=True).classes == ("1", "2", "3") and not told(deeper)
    assert told(root, group="FOLDER") == []  # who types that knows
    (root / "set" / "x.jpg").write_bytes(encoded("JPEG", 9))
    assert told(root) == []
    sets = {f"{name}/{c}": 5 for name in ("first", "second") for c in "ab"}
    (line,) = told(folders(tmp_path / "b", sets))
    assert line.endswith("if they are, call the folders above them train, val and test")
    for name, split in (("first", "train"), ("second", "test")):
        (tmp_path / "b" / name).rename(tmp_path / "b" / split)
    assert Folder(str(tmp_path / "b")).dataset(training=True).classes == ("a", "b")
    split = folders(tmp_path / "c", {f"train/{c}": 5 for c in ("x/1", "x/2", "y/1", "y/2")})
    assert ": 4, such as 'train/x/1'; if they are, call" in told(split)[0]


def test_an_empty_class_folder_is_named(tmp_path):
    root = folders(tmp_path, FULL)
    (root / "val" / "emu").mkdir()
    (root / "val" / "emu" / "list.txt").write_text("x")
    refuse(
        Folder(str(root)),
        r"val/emu: holds no images; left out .*list\.txt'\. Fix: add images or remove",
        number=307,
    )


def test_classes_that_differ_between_splits_are_named(tmp_path):
    root = folders(tmp_path, FULL)
    (root / "val" / "dog").rename(root / "val" / "dogs")
    error = refuse(Folder(str(root)), "val has no class 'dog' and has the class 'dogs'", number=306)
    assert "for 'dogs' did you mean 'dog'?" in error.fix
    shutil.rmtree(root / "val" / "dogs")
    refuse(Folder(str(root)), "val has no class 'dog', unlike train", number=306)
    # What the error tells to do: the same classes in both, whichever is changed.
    folders(root, {"val/dog": 1})
    assert counts(Folder(str(root)).dataset(training=True))["val"] == [2, 1]


def test_a_class_that_is_lost_from_val_or_test_is_told_also_in_an_evaluation(tmp_path):
    root = folders(tmp_path, FULL | {"test/cat": 1})
    for training, like in ((True, "train"), (False, "val")):
        error = refuse(
            Folder(str(root)), f"test has no class 'dog', unlike {like}", training, number=306
        )
        assert error.fix == f"let {like} and test have the same classes"
    folders(root, {"test/dog": 1})
    assert set(Folder(str(root)).dataset(training=False).splits) == {"val", "test"}


def test_one_class_is_too_few(tmp_path):
    refuse(Folder(str(folders(tmp_path, {"a": 3}))), r"one class \('a'\)", number=305)


def test_a_class_with_one_image_cannot_be_split(tmp_path):
    root = folders(tmp_path, {"a": 3, "b": 1, "c": 1})
    match = r"class 'b' has 1 image \(and 1 more class\); train, val need one each"
    refuse(Folder(str(root)), match, number=308)
    folders(root, {"b": 2, "c": 3})
    refuse(Folder(str(root), test_fraction=0.1), "class 'b' has 2.*test, train, val", number=308)
    Folder(str(root)).dataset(training=True)


def test_training_needs_a_validation_part(tmp_path):
    root = folders(tmp_path, {"a": 3, "b": 3})
    error = refuse(Folder(str(root), val_fraction=0.0), "no 'val' part", number=304)
    assert "data.val_fraction=0.2" in error.fix
    refuse(Folder(str(root), val_fraction=0.0), "nothing to evaluate", training=False, number=304)
    split = folders(tmp_path / "split", {"val/a": 3, "val/b": 3})
    refuse(Folder(str(split)), "no 'train' part", number=304)


def test_fractions_over_one_are_a_mistake_in_the_configuration(tmp_path):
    root = folders(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(ConfigError, match=r"data\.val_fraction") as caught:
        Folder(str(root), val_fraction=0.7, test_fraction=0.4).dataset(training=True)
    assert caught.value.exit == 2


def test_broken_files_are_named_and_counted_over_all_splits(tmp_path):
    root = folders(tmp_path, FULL)
    whole = encoded("JPEG")
    (root / "train" / "dog" / "01.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "val" / "cat" / "00.jpg").write_bytes(b"")
    (root / "val" / "dog" / "00.jpg").write_text("no image")
    refuse(Folder(str(root)), r"train/dog/01\.jpg.*truncated.*2 more files", number=310)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    root, real = folders(tmp_path, FULL | {"train/cat/inner": 1}), os.scandir

    def scandir(path):
        if Path(path).name == "inner":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    refuse(Folder(str(root)), "train/cat/inner: cannot be read .Permission denied", number=309)


# Canidae


def archive(tmp_path: Path) -> bytes:
    root = folders(tmp_path / "made", {f"Canidae/{folder}": 2 for folder in DOGS_AND_WOLVES})
    return Path(shutil.make_archive(str(tmp_path / "made"), "zip", root)).read_bytes()


DOGS_AND_WOLVES = [f"{split}/{label}" for split in ("train", "val") for label in ("dogs", "wolves")]


def test_canidae_is_downloaded_once_and_its_hash_is_told(tmp_path, server):
    data = archive(tmp_path)
    server.routes["/c.zip"] = data
    spec = Canidae(str(tmp_path / "data" / "Canidae"), url=f"{server.url}/c.zip")
    found = spec.dataset(training=True)
    told = f"downloaded from {server.url}/c.zip, sha256 {hashlib.sha256(data).hexdigest()}"
    assert counts(found) == {"train": [2, 2], "val": [2, 2]} and found.remarks[0] == told
    again = spec.dataset(training=True)
    assert server.asked == ["/c.zip"] and again.remarks == found.remarks


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_canidae_that_cannot_be_had_says_what_to_put_where(tmp_path, server, sha256):
    root = tmp_path / "data" / "Canidae"
    if sha256:
        server.routes["/c.zip"] = archive(tmp_path)
    spec = Canidae(str(root), url=f"{server.url}/c.zip", sha256=sha256)
    error = refuse(spec, "expected 0000" if sha256 else "c.zip cannot be downloaded", number=325)
    assert f"{root}/train/{{dogs,wolves}} and {root}/val/{{dogs,wolves}}" in error.fix
    assert "XFER_DATA=DIR" in error.fix
    assert not root.exists()


# CSV


def listed(tmp_path: Path, rows: list[list[object]], **options: object) -> Path:
    path = tmp_path / "list.csv"
    with path.open("w", newline="", **{"encoding": "utf-8", **options}) as stream:
        csv.writer(stream).writerows(rows)
    return path


def pool(tmp_path: Path, header: str = "path,label") -> list[list[object]]:
    folders(tmp_path, {"img": 20})
    return [
        header.split(","),
        *([f"img/{i:02d}.jpg", "cat" if i % 2 else "dog"] for i in range(20)),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_without_splits_is_split_class_by_class(tmp_path, encoding):
    rows = pool(tmp_path)
    rows[1][0] = str(tmp_path / "img" / "00.jpg")  # absolute paths are fine
    rows[2][0] = "./img/../img/01.jpg"
    path = listed(tmp_path, rows, encoding=encoding)
    found = Manifest(str(path)).dataset(training=True)
    assert found.classes == ("cat", "dog") and counts(found) == {"train": [8, 8], "val": [2, 2]}
    every = [name for split in names(found).values() for name in split]
    assert sorted(every) == [f"img/{i:02d}.jpg" for i in range(20)]
    assert names(Manifest(str(path)).dataset(training=False))["val"] == names(found)["val"]


def test_a_list_with_splits_is_taken_as_it_is(tmp_path):
    rows = pool(tmp_path, "path,label,split")
    for i, row in enumerate(rows[1:]):
        row.append("Training" if i < 12 else "validation" if i < 16 else "test")
    rows[4:4] = [[], ["", "", ""]]  # blank lines are no images
    path = listed(
        tmp_path, [[rows[0][1], rows[0][2], rows[0][0]], *(r[1:] + r[:1] for r in rows[1:])]
    )
    found = Manifest(str(path)).dataset(training=True)
    assert counts(found) == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    assert found.splits["val"].names == tuple(f"img/{i:02d}.jpg" for i in range(12, 16))


def test_a_file_outside_the_folder_keeps_its_whole_path(tmp_path):
    rows = pool(tmp_path)
    outside = folders(tmp_path / "elsewhere", {"x": 1}) / "x" / "00.jpg"
    below = tmp_path / "below"
    below.mkdir()
    lines = [rows[0], *([f"../{path}", label] for path, label in rows[1:]), [str(outside), "cat"]]
    found = Manifest(str(listed(below, lines))).dataset(training=True)
    every = {name for split in names(found).values() for name in split}
    assert {str(outside), str(tmp_path / "img" / "03.jpg")} <= every


def test_paths_without_a_suffix_are_the_files_that_have_one(tmp_path):
    rows = pool(tmp_path)
    short = [rows[0], *([path.removesuffix(".jpg"), label] for path, label in rows[1:])]
    (tmp_path / "img" / "19.jpg").rename(tmp_path / "img" / "19")  # which is as it is written
    (tmp_path / "img" / "18.jpg").rename(tmp_path / "img" / "18.JPG")
    spec = Manifest(str(listed(tmp_path, short)))
    line = "paths without a suffix are those of the files that have one: 19, such as 'img/00.jpg'"
    found = spec.dataset(training=True)
    assert found.remarks.count(line) == 1
    every = {name for split in names(found).values() for name in split}
    assert every == {*(f"img/{i:02d}.jpg" for i in range(18)), "img/18.JPG", "img/19"}
    assert line in spec.labelled(True).remarks
    shutil.copy(tmp_path / "img" / "03.jpg", tmp_path / "img" / "03.png")
    error = refuse(spec, ":5: there is no file '.*img/03'", number=317)
    assert error.fix == "write the suffix too: there are 03.jpg and 03.png"
    short[4][0] = "img/03.png"
    assert line.replace("19", "18") in Manifest(str(listed(tmp_path, short))).dataset(True).remarks
    # Or in the folder beside the list, as most published lists have it.
    path = str(listed(tmp_path, [[row[0].removeprefix("img/"), *row[1:]] for row in short]))
    for root in (None, str(tmp_path)):
        error = refuse(Manifest(path, root), ":2: there is no file", number=317)
        (typed,) = shlex.split(error.fix.partition("; type ")[2].removesuffix(" for another"))
        assert typed == f"data.root={tmp_path / 'img'}"
    Manifest(path, typed.removeprefix("data.root=")).dataset(training=True)


CLASSES = ("a,train", "b,train", "c,train", "a,val", "b,val")
WRONG = {
    "no header": (["img/00.jpg,cat"], r":1: unknown column 'img/00.jpg'.*path,label,split", 313),
    "typo": (["path,label,splt"], r":1: unknown column 'splt' \(did you mean 'split'\?\)", 313),
    "semicolons": (["path;label"], ":1: there is one column.*data.separator=semicolon", 375),
    "twice": (["path,label,label"], ":1: there is no single column 'label'", 313),
    "no label": (["path,split"], ":1: there is no single column 'label'", 313),
    "nothing": ([], ":1: there is no single column 'path'", 313),
    "no rows": (["path,label", ""], "lists no image", 318),
    "short": (["path,label", "img/00.jpg"], ":2: 1 cells; the header has 2", 314),
    "long": (["path,label", "img/00.jpg,cat", "a,b,c"], ':3: 3 cells.*"quotes"', 314),
    "no class": (["path,label", "", "img/00.jpg, "], ":3: the label is empty", 314),
    "split": (
        ["path,label,split", "img/00.jpg,cat,train", "img/01.jpg,cat,trian"],
        r":3: unknown split 'trian'. Fix: did you mean 'train'\?",
        315,
    ),
    "half": (["path,label,split", "img/00.jpg,cat,"], ":2: unknown split ''", 315),
    "same": (
        ["path,label", "img/00.jpg,cat", "img/../img/00.jpg,dog"],
        r":3: 'img/00\.jpg' is listed in line 2 too",
        316,
    ),
    "missing": (["path,label", "img/00.jpg,cat", "img/no.jpg,dog"], r":3: .*img/no\.jpg'", 317),
    "endless": (["path,label", "img/00.jpg,cat", "x" * 5000 + ",dog"], ":3: there is no file", 317),
    "quote": (["path,label", '"img/00.jpg,cat'], "not a CSV file in UTF-8", 312),
    "one class": (["path,label", "img/00.jpg,cat", "img/01.jpg,cat"], "one class", 305),
    "classes": (
        ["path,label,split", *(f"img/0{i}.jpg,{c}" for i, c in enumerate(CLASSES))],
        "val has no class 'c', unlike train",
        306,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_a_list_is_told_with_its_line(tmp_path, case):
    lines, match, number = WRONG[case]
    folders(tmp_path, {"img": 6})
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines) + "\n" if lines else "")
    refuse(Manifest(str(path)), rf"list\.csv.*{match}", number=number)


def test_a_list_that_is_not_there_or_no_text_is_named(tmp_path):
    path = listed(tmp_path, pool(tmp_path))
    error = refuse(Manifest(str(tmp_path / "lst.csv")), "no such file", number=311)
    assert error.fix == f"did you mean {path}?"
    refuse(Manifest(str(tmp_path)), "cannot be read", number=311)
    classes = ("k\u00e4fer", "m\u00fccke")
    rows = "".join(f"img/{i:02d}.jpg,{classes[i % 2]}\n" for i in range(8))
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes(f"path,label\n{rows}".encode(encoding))
        error = refuse(Manifest(str(path)), "not a CSV file in UTF-8.*save it as", number=312)
        subprocess.run(error.fix.partition("type ")[2], shell=True, check=True)
        other = Manifest(str(path.with_suffix(".utf8.csv")))
        assert other.dataset(training=True).classes == classes


def test_a_broken_image_in_a_list_is_named(tmp_path):
    path = listed(tmp_path, pool(tmp_path))
    (tmp_path / "img" / "07.jpg").write_bytes(b"")
    refuse(Manifest(str(path)), r"07\.jpg.*empty", number=310)


# Digits


def test_the_digits_are_the_chosen_ones_in_true_grey():
    from sklearn.datasets import load_digits

    truth = load_digits()
    found = Digits((9, 5)).dataset(training=True)
    assert found.classes == ("5", "9") and found.remarks == ()
    total = {split: sum(row) for split, row in counts(found).items()}
    assert total == {"train": 290, "val": 72}
    val = found.splits["val"]
    for i in range(len(val)):
        index = int(val.names[i].removeprefix("digits/"))
        assert found.classes[val.labels[i]] == str(truth.target[index])
        picture = np.asarray(val.images[i])
        assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
        assert np.abs(picture / 255 * 16 - truth.images[index][..., None]).max() < 0.04
    again = Digits((5, 9), workers=4).dataset(training=False)
    assert names(again) == {"val": val.names} and again.splits["val"].sha256 == val.sha256
    assert val.names[0].startswith("digits/") and len(val.names[0]) == len("digits/0000")


def test_one_digit_is_too_few():
    refuse(Digits((3, 3)), "data.digits: there is one class", number=305)


# MNIST


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format, packed."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def mirror(server):
    """60 + 20 generated digits behind the names of the public files."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        server.routes[f"/mnist/{name}-images-idx3-ubyte.gz"] = idx(
            rng.integers(0, 255, (count, 28, 28))
        )
        server.routes[f"/mnist/{name}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    return server


def test_mnist_comes_from_a_mirror_once_and_its_hashes_are_told(tmp_path, mirror):
    spec = Mnist(str(tmp_path / "MNIST"), mirror=f"{mirror.url}/mnist/")
    found = spec.dataset(training=True)
    assert found.classes == tuple("0123456789")
    assert counts(found) == {"train": [5] * 10, "val": [1] * 10, "test": [2] * 10}
    assert found.splits["test"].names[3] == "test/00003" and found.splits["test"].labels[3] == 3
    assert found.splits["train"].images[0].size == (28, 28)
    for path, data in mirror.routes.items():
        digest = hashlib.sha256(data).hexdigest()
        told = f"{path.removeprefix('/mnist/')} from {mirror.url}/mnist/: sha256 {digest}"
        assert told in found.remarks
    assert len(mirror.asked) == 4
    spec.dataset(training=True)
    offline = replace(spec, mirror=None).dataset(training=True)
    assert len(mirror.asked) == 4
    assert {k: s.sha256 for k, s in offline.splits.items()} == {
        k: s.sha256 for k, s in found.splits.items()
    }


def test_mnist_is_evaluated_on_the_test_files_alone(tmp_path, mirror):
    found = Mnist(str(tmp_path), mirror=f"{mirror.url}/mnist").dataset(training=False)
    assert counts(found) == {"test": [2] * 10}
    assert sorted(mirror.asked) == [
        f"/mnist/t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    ]


def test_mnist_files_put_there_by_hand_need_no_network(tmp_path, mirror):
    raw = tmp_path / "MNIST" / "raw"  # also where torchvision's MNIST(root=tmp_path) has them
    raw.mkdir(parents=True)
    for path, data in mirror.routes.items():
        (raw / Path(path).stem).write_bytes(gzip.decompress(data))
    found = Mnist(str(tmp_path / "MNIST")).dataset(training=True)
    assert sum(map(len, found.splits.values())) == 80 and not mirror.asked


def test_mnist_without_a_network_says_which_files_to_put_where(tmp_path, server):
    error = refuse(Mnist(str(tmp_path), mirror=server.url), "404", training=False, number=330)
    assert "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz" in error.fix
    assert error.where == str(tmp_path / "raw") and "train-" not in error.fix


@pytest.mark.parametrize("case", ["no gzip", "cut", "labels", "eleven"])
def test_damaged_mnist_files_are_refused(tmp_path, mirror, case):
    images, labels = (f"/mnist/t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    mirror.routes |= {
        "no gzip": {images: b"<html>"},
        "cut": {images: mirror.routes[images][:-200]},
        "labels": {labels: idx(np.arange(19) % 10)},
        "eleven": {labels: idx(np.arange(20) % 11)},
    }[case]
    spec = Mnist(str(tmp_path), mirror=f"{mirror.url}/mnist")
    refuse(spec, "cannot be read .*remove the folder", training=False, number=331)
    refuse(spec, "cannot be read .*remove the folder", training=False, number=331)


def test_a_published_mnist_file_with_another_checksum_is_refused(tmp_path, mirror, monkeypatch):
    from torchvision.datasets import MNIST

    raw = tmp_path / "raw"
    raw.mkdir()
    for path, data in mirror.routes.items():
        (raw / Path(path).name).write_bytes(data)  # packed files that are not the published ones
    monkeypatch.setattr(MNIST, "mirrors", ["https://127.0.0.1:1/"])
    refuse(Mnist(str(tmp_path)), "cannot be read", training=False, number=331)


def test_a_list_with_other_columns_is_refused_with_advice_that_works(tmp_path):
    root = folders(tmp_path, {"a": 4, "b": 4})
    lines = [f"{p.parent.name}/{p.name};{p.parent.name};x" for p in sorted(root.glob("*/*.jpg"))]
    (root / "list.csv").write_text("\n".join(["Filename;species;photographer", *lines]))
    file = str(root / "list.csv")
    typed: dict[str, object] = {}
    for number, key in ((375, "separator"), (313, "columns")):
        error = refuse(Manifest(file, **typed), "list.csv:1: ", number=number)
        (word,) = shlex.split(error.fix.removeprefix("type "))
        name, _, value = word.removeprefix("data.").partition("=")
        assert name == key
        typed[key] = tuple(value[1:-1].split(",")) if value[0] == "[" else value
    assert typed == {"separator": "semicolon", "columns": ("Filename", "species")}
    assert Manifest(file, **typed).dataset(training=True).classes == ("a", "b")
    # A number of the row before the path is not what the image shows.
    lines = [f"7,{line.replace(';', ',')}" for line in lines]
    (root / "list.csv").write_text("\n".join(["user.id,image,emotion,by", *lines]))
    error = refuse(Manifest(file), "list.csv:1: ", number=313)
    assert error.fix == "type 'data.columns=[image,emotion]', or those that you mean"
    (root / "list.csv").write_text("\n".join(lines * 2))
    error = refuse(Manifest(file), "list.csv:1: ", number=313)
    assert error.fix == "let the first line be path,label or path,label,split"  # no header
    (root / "list.csv").write_text("\n".join(["id,path,label,by", *lines * 2]))
    error = refuse(Manifest(file, columns=("path", "label")), "7 more are listed again", number=316)
    assert re.search(r": 11; 12; 13; 14; 15; \.\.\. Fix: let each", str(error))


def test_the_folders_of_a_contest_are_no_classes(tmp_path):
    root = folders(tmp_path, {"train_images": 4, "test_images": 2})
    (root / "train.csv").write_text("path,label\n")
    error = refuse(Folder(str(root)), "holds no class folders", number=302)
    assert error.fix == f"type data=csv data.file={root}/train.csv to read a list"


def test_what_a_clone_without_its_large_files_has_in_their_place_is_named(tmp_path):
    root = folders(tmp_path, {"a": 4, "b": 4})
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 209728\n"
    (root / "a/00.jpg").write_text(pointer)
    error = refuse(Folder(str(root)), "a git-LFS pointer, not the file itself", number=310)
    assert error.fix == "run git lfs pull, or type data.on_bad=skip"


def test_a_column_of_splits_that_is_not_read_is_named(tmp_path):
    root = folders(tmp_path, {"a": 8, "b": 8})
    paths = sorted(root.glob("*/*.jpg"))
    splits = ["val" if i % 8 < 3 else "train" for i in range(16)]
    lines = [
        f"{p.parent.name}/{p.name},{p.parent.name},{s}" for p, s in zip(paths, splits, strict=True)
    ]
    (root / "list.csv").write_text("\n".join(["file,species,split", *lines]))
    found = Manifest(str(root / "list.csv"), columns=("file", "species")).dataset(training=True)
    said = "the column 'split' is not read: 'data.columns=[file,species,split]' divides by it"
    assert said in found.remarks and len(found.splits["val"]) == 4
    given = Manifest(str(root / "list.csv"), columns=("file", "species", "split"))
    found = given.dataset(training=True)
    assert len(found.splits["val"]) == 6 and not [r for r in found.remarks if "not read" in r]


def test_without_images_to_train_on_the_advice_is_not_a_share(tmp_path):
    root = folders(tmp_path, {"val/a": 2, "val/b": 2})
    error = refuse(Folder(str(root)), "no 'train' part", number=304)
    assert error.fix == "add images to train on; those of val are all held out"
    one = refuse(Folder(str(folders(tmp_path / "x", {"a": 3, "b": 3})), test_fraction=0.8),
                 "no 'train' part", number=304)  # fmt: skip
    assert one.fix == "type data.val_fraction=0.2 data.test_fraction=0"


@pytest.mark.parametrize(
    ("training", "shares"),
    [(True, {"val_fraction": 0.0}), (False, {"val_fraction": 0.0}), (True, {"val_fraction": 1.0}),
     (True, {"test_fraction": 0.8}), (True, {"val_fraction": 0.0, "test_fraction": 0.5})],
)  # fmt: skip
def test_advice_about_a_share_leads_on_when_it_is_typed(tmp_path, training, shares):
    root = folders(tmp_path, {"a": 4, "b": 4})
    error = refuse(Folder(str(root), **shares), "there is no", training=training, number=304)
    typed = re.findall(r"data\.(\w+)=([\d.]+)", error.fix)
    assert typed
    found = Folder(str(root), **shares | {k: float(v) for k, v in typed}).dataset(training)
    assert set(found.splits) >= ({"train", "val"} if training else {"val"})


def test_a_list_knows_a_class_in_another_normal_form(tmp_path):
    root = folders(tmp_path, {"a": 2, "b": 2, "c": 2})
    names = {"a": "caf\u00e9", "b": "cafe\u0301", "c": "dog"}
    lines = [f"{c}/{i:02d}.jpg,{names[c]}" for c in names for i in (0, 1)]
    (root / "l.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    assert Manifest(str(root / "l.csv")).dataset(training=True).classes == ("caf\u00e9", "dog")
