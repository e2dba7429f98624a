"""Arrays of NumPy in place of folders: pictures, names and splits, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_tables import as_pixels
from pictures import folders

from xfer.core.errors import DataError
from xfer.core.types import Dataset
from xfer.data import ArrayFiles

SHAPE = (20, 30)  # height, width


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, list[str]]:
    root = folders(tmp_path_factory.mktemp("in"), {"cat": 8, "dog": 8})
    return as_pixels(root, SHAPE[::-1])


def refused(number: int, match: str, root: Path, **how: Any) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        ArrayFiles(str(root), **how).dataset(training=True)
    assert caught.value.number == number, caught.value
    assert len(str(caught.value).splitlines()) == 1 and caught.value.exit == 3
    return caught.value


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def content(dataset: Dataset) -> dict[str, tuple[str, str, bytes]]:
    """Of every name its split, class and pixels."""
    return {
        name: (split, dataset.classes[samples.labels[i]], np.asarray(samples.images[i]).tobytes())
        for split, samples in dataset.splits.items()
        for i, name in enumerate(samples.names)
    }


# What is read


def test_a_folder_of_npy_and_both_kinds_of_npz_have_the_same_pictures(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray, list[str]]
) -> None:
    images, labels, _ = pixels
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    found = ArrayFiles(str(tmp_path), folds=4).dataset(True)
    seen = content(found)
    assert [seen[f"images.npy#{i}"][1] for i in range(16)] == labels.tolist()
    for i, picture in enumerate(images):
        assert seen[f"images.npy#{i}"][2] == picture.tobytes()
    plain = saved(tmp_path / "plain.npz", images=images, labels=labels)
    np.savez_compressed(tmp_path / "packed.npz", images=images, labels=labels)
    for path in (plain, tmp_path / "packed.npz"):
        other = ArrayFiles(str(path), folds=4).dataset(True)
        read = content(other)
        assert [read[f"{path.name}#images/{i}"] for i in range(16)] == [
            seen[f"images.npy#{i}"] for i in range(16)
        ]
        loaded = [
            line for line in other.remarks if "is compressed and loaded whole, 0.0 MB" in line
        ]
        assert len(loaded) == (path != plain)


def test_grey_and_one_channel_are_the_same_pictures(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 9, 7), dtype=np.uint8)
    labels = np.arange(8)[:, None] % 2
    one = ArrayFiles(str(saved(tmp_path / "x.npz", x=grey, y=labels))).dataset(True)
    two = ArrayFiles(str(saved(tmp_path / "x.npz", x=grey[..., None], y=labels))).dataset(True)
    assert content(one) == content(two) and one.classes == ("0", "1")
    assert {k: s.sha256 for k, s in one.splits.items()} == {
        k: s.sha256 for k, s in two.splits.items()
    }
    name, (_, _, data) = next(iter(content(one).items()))
    row = int(name.partition("/")[2])
    assert data == np.repeat(grey[row][..., None], 3, 2).tobytes()


@pytest.mark.parametrize("form", ["{}_images {}_labels", "x_{} y_{}"])
def test_names_of_arrays_say_the_split_and_classes_the_names(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(1)
    arrays: dict[str, Any] = {"classes": np.array(["z\u00e9bre", "cat"]), "extra": np.zeros(3)}
    for word, count in (("train", 8), ("val", 4), ("test", 2)):
        one, two = form.format(word, word).split()
        arrays[one] = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        arrays[two] = np.arange(count, dtype=np.uint8)[:, None] % 2
    found = ArrayFiles(str(saved(tmp_path / "med.npz", **arrays))).dataset(True)
    assert {k: len(s) for k, s in found.splits.items()} == {"train": 8, "val": 4, "test": 2}
    assert found.classes == ("cat", "z\u00e9bre")
    assert found.splits["test"].labels.tolist() == [1, 0]
    assert "left out (other arrays): 'extra'" in found.remarks


def test_splits_and_groups_by_array(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    labels = np.array([b"a", b"b"] * 6)
    split = np.array(["train"] * 8 + ["validation"] * 4)
    path = saved(
        tmp_path / "x.npz", images=images, labels=labels, split=split, who=np.arange(12) // 4
    )
    found = ArrayFiles(str(path)).dataset(True)
    assert {k: len(s) for k, s in found.splits.items()} == {"train": 8, "val": 4}
    found = ArrayFiles(str(path), columns=("images", "labels"), group="who", folds=3).dataset(True)
    assert set(found.splits["train"].groups) == {"0", "1", "2"}


# What is refused


def broken(path: Path, kind: str, images: np.ndarray) -> None:
    labels = np.arange(len(images)) % 2
    if kind == "cut off":
        np.save(path / "images.npy", images)
        data = (path / "images.npy").read_bytes()
        (path / "images.npy").write_bytes(data[:-9])
        np.save(path / "labels.npy", labels)
        return
    arrays: dict[str, Any] = {
        "objects": {"images": np.array([{}, None], object), "labels": labels},
        "fortran": {"images": np.asfortranarray(images), "labels": labels},
        "floats": {"images": images / 255, "labels": labels},
        "channels first": {"images": images.transpose(0, 3, 1, 2), "labels": labels},
        "five": {"images": images[..., None], "labels": labels},
        "short": {"images": images, "labels": labels[:-1]},
        "float labels": {"images": images, "labels": labels / 2},
        "no class": {"images": images, "labels": labels, "classes": np.array(["a"])},
        "names": {"pictures": images, "targets": labels},
        "empty": {},
    }[kind]
    np.savez(path / "x.npz", **arrays)


BROKEN = [
    ("cut off", 333, "it ends before its numbers do"),
    ("objects", 333, "'images' holds Python objects"),
    ("fortran", 333, "'images' is in Fortran's order; save np.ascontiguousarray"),
    ("floats", 335, "images: has float64, and pictures are uint8"),
    ("channels first", 335, r"\(16, 3, 20, 30\)\. Fix: save x\.transpose\(0, 2, 3, 1\)"),
    ("five", 335, r"has the shape \(16, 20, 30, 3, 1\)"),
    ("short", 335, r"labels: has the shape \(15\), and there are 16 images"),
    ("float labels", 335, "labels: has float64, and text or whole numbers are needed"),
    ("no class", 329, "the label 1 of row 1 is no class, 0 to 0"),
    ("names", 338, r"it has pictures, targets\. Fix: type 'data\.columns=\[pictures,targets\]'"),
    ("empty", 338, "holds no arrays"),
]


@pytest.mark.parametrize(("kind", "number", "match"), BROKEN, ids=[row[0] for row in BROKEN])
def test_what_cannot_be_read_is_refused(
    tmp_path: Path,
    pixels: tuple[np.ndarray, np.ndarray, list[str]],
    kind: str,
    number: int,
    match: str,
) -> None:
    broken(tmp_path, kind, pixels[0])
    refused(number, match, tmp_path if kind == "cut off" else tmp_path / "x.npz")


def test_what_the_messages_say_works(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray, list[str]]
) -> None:
    broken(tmp_path, "names", pixels[0])
    ArrayFiles(str(tmp_path / "x.npz"), columns=("pictures", "targets")).dataset(True)
    error = refused(
        338, "has no array 'target'", tmp_path / "x.npz", columns=("pictures", "target")
    )
    assert "did you mean 'targets'?" in error.fix
    refused(
        392,
        "has no array 'who'",
        tmp_path / "x.npz",
        columns=("pictures", "targets"),
        group="who",
        folds=2,
    )


def test_a_member_that_does_not_fit_into_memory_is_refused(
    tmp_path: Path,
    pixels: tuple[np.ndarray, np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=pixels[0], labels=pixels[1])
    monkeypatch.setattr("xfer.data.arrays.available", lambda: 1000)
    error = refused(335, "images takes 0.0 GB unpacked", tmp_path / "x.npz")
    assert "np.savez" in error.fix


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", images=np.zeros((4, 5, 5), np.uint8), labels=np.arange(4))
    (tmp_path / "no.npz").write_bytes(path.read_bytes()[:200])
    refused(333, "cannot be read as an array of NumPy", tmp_path / "no.npz")
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, zipfile.ZipFile(path) as good:
        archive.writestr("images.npy", good.read("images.npy")[:-3])
        archive.writestr("labels.npy", good.read("labels.npy"))
    refused(333, "'images' has other bytes than its header says", tmp_path / "y.npz")
    refused(333, "No such file", tmp_path / "nothing.npz")


def test_an_array_that_is_replaced_during_a_run_is_named(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray, list[str]]
) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images=pixels[0], labels=pixels[1])
        images = ArrayFiles(str(tmp_path / "x.npz")).dataset(True).splits["val"].images
        images[0]
        save(tmp_path / "x.npz", images=255 - pixels[0], labels=pixels[1])
        with pytest.raises(DataError, match=r"x\.npz#images/\d+: has changed since it was scanned"):
            images[0]
