"""Several labels an image in parquet files, data sets of Hugging Face and shards."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import labelled
import numpy as np
import pytest
from image_tables import write_parquet
from PIL import Image

from xfer.core.errors import DataError, LabelsError
from xfer.core.types import Dataset
from xfer.data import ArrayFiles, Digits, HuggingFace, Manifest, Parquet, Shards
from xfer.data.pack import pack
from xfer.evaluation.task import Multilabel

Rows = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("sources")
    return folder, labelled.digits(folder / "images", 60, unlabelled=6)


@pytest.fixture(scope="module")
def listed(place: tuple[Path, Rows]) -> Dataset:
    folder, rows = place
    lines = [(f"images/{name}", labels) for name, labels in rows]
    lines[4] = (lines[4][0], ["?"])
    path = labelled.write_cells(folder / "cells.csv", lines)
    return Manifest(file=str(path), leakage="ignore").labelled(True)


def cells(place: tuple[Path, Rows], classes: list[str] | None = None) -> list[dict[str, Any]]:
    """A row an image; nobody has looked at the fifth. Labels are positions in ``classes``."""
    folder, rows = place
    named: list[Any] = [labels for _, labels in rows]
    if classes:
        named = [[classes.index(label) for label in labels] for labels in named]
    named[4] = None
    return [
        {"image": (folder / "images" / name).read_bytes(), "labels": labels}
        for (name, _), labels in zip(rows, named, strict=True)
    ]


def by_pixels(dataset: Dataset) -> dict[bytes, tuple[int, ...]]:
    """The labels of every image, by what it looks like: sources have names of their own."""
    found = {}
    for samples in dataset.splits.values():
        for i, labels in enumerate(samples.labels.tolist()):
            found[np.asarray(samples.images[i]).tobytes()] = tuple(labels)
    return found


def test_lists_in_parquet_are_the_cells_of_a_csv(place: tuple[Path, Rows], listed: Dataset) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = write_parquet(place[0] / "photos.parquet", cells(place))
    found = Parquet(root=str(path), leakage="ignore").labelled(True)
    assert found.classes == listed.classes and by_pixels(found) == by_pixels(listed)
    assert (-1,) * 4 in by_pixels(found).values() and (0,) * 4 in by_pixels(found).values()
    known = Parquet(root=str(path), leakage="ignore", folds=3).labelled(True)
    assert known.splits["train"].folds is not None and len(known.splits["train"]) == 66


def test_a_column_of_another_kind_is_refused_and_the_fix_works(place: tuple[Path, Rows]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = write_parquet(place[0] / "lists.parquet", cells(place))
    with pytest.raises(DataError, match=r"E327: .*type task=multilabel for lists"):
        Parquet(root=str(path), columns=("image", "labels")).dataset(True)
    single = [{**row, "labels": "even"} for row in cells(place)]
    path = write_parquet(place[0] / "single.parquet", single)
    with pytest.raises(DataError, match=r"E327: .*a list of them is needed.*task=single"):
        Parquet(root=str(path)).labelled(True)
    odd = cells(place)
    odd[0]["labels"] = ["even", None]
    path = write_parquet(place[0] / "odd.parquet", odd)
    with pytest.raises(DataError, match=r"E329: .*an empty one among them"):
        Parquet(root=str(path)).labelled(True)


def test_lists_in_a_column_of_any_name_are_offered_and_read(
    place: tuple[Path, Rows], listed: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows = [
        {"split": "train", "note": "x", "image": row["image"], "tags": row["labels"]}
        for row in cells(place)
    ]
    path = write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=r"E327: .*has no column 'label'") as refused:
        Parquet(str(path)).labelled(True)
    typed = re.search(r"type 'data\.columns=\[(\w+),(\w+)\]'", refused.value.fix)
    assert typed
    found = Parquet(str(path), columns=typed.groups(), leakage="ignore").labelled(True)
    assert typed.groups() == ("image", "tags") and found.classes == listed.classes
    bare = write_parquet(tmp_path / "y.parquet", [{**row, "tags": "x"} for row in rows])
    with pytest.raises(DataError, match=r"Fix: write a column of images and one of lists of lab"):
        Parquet(str(bare)).labelled(True)


def test_the_column_called_label_is_offered_and_none_called_split(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    row = {"split": "train", "path": "a.png", "note": "x", "label": "cat"}
    path = write_parquet(tmp_path / "x.parquet", [row])
    with pytest.raises(DataError, match=r"E327: .*type 'data\.columns=\[path,label\]'"):
        Parquet(str(path)).dataset(True)


def test_lists_of_class_labels_are_the_cells_of_a_csv(
    place: tuple[Path, Rows], listed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    classes = list(listed.classes)
    rows = cells(place, classes)
    label = datasets.Sequence(datasets.ClassLabel(names=classes))
    features = datasets.Features({"image": datasets.Image(), "labels": label})
    columns = {name: [row[name] for row in rows] for name in ("image", "labels")}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(place[0] / "saved"))
    found = HuggingFace(root=str(place[0] / "saved"), leakage="ignore").labelled(True)
    assert found.classes == listed.classes and by_pixels(found) == by_pixels(listed)


def write_shard(path: Path, members: list[tuple[str, bytes, Any]]) -> Path:
    """A shard of (key, image, what KEY.json says)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, image, facts in members:
            for name, data in ((f"{key}.png", image), (f"{key}.json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_labels_in_shards_are_the_cells_of_a_csv(place: tuple[Path, Rows], listed: Dataset) -> None:
    folder, rows = place
    members = []
    for i, (name, labels) in enumerate(rows):
        said: dict[str, Any] = {"labels": labels, "caption": "read by nobody"}
        if i == 4:
            said = {"labels": [], "unknown": list(listed.classes)}
        members.append((f"{i:06}", (folder / "images" / name).read_bytes(), said))
    write_shard(folder / "shards" / "000.tar", members)
    shards = Shards(root=str(folder / "shards"), leakage="ignore")
    for _ in range(2):  # the second time out of the cache
        found = shards.labelled(True)
        assert found.classes == listed.classes and by_pixels(found) == by_pixels(listed)
    with pytest.raises(DataError, match=r"E381: .*has labels, and no label.*task=multilabel"):
        shards.dataset(True)


def test_the_first_folder_of_a_key_is_a_group_of_a_shard(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    folder, rows = place
    members = [
        (f"reel{i // 22}/x/{i:06}", (folder / "images" / name).read_bytes(), {"labels": has})
        for i, (name, has) in enumerate(rows)
    ]
    write_shard(tmp_path / "000.tar", members)
    how = {"leakage": "ignore", "group": "FOLDER"}
    found = Shards(root=str(tmp_path), folds=3, **how).labelled(True)  # type: ignore[arg-type]
    train = found.splits["train"]
    assert train.folds is not None and set(train.groups) == {"reel0/", "reel1/", "reel2/"}
    pairs = {(g, n.split("/")[0]) for g, n in zip(train.groups, train.names, strict=True)}
    assert len(pairs) == 3 and len(set(zip(train.groups, train.folds[0], strict=True))) == 3


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"label": "even"}, r"has one label, and no list of labels"),
        ({"labels": "even"}, r"'labels' is no list"),
        ({"labels": ["even", ""]}, r"'labels' has an entry"),
        ({"labels": ["even"], "unknown": ["even"]}, r"names the label 'even' twice"),
    ],
)
def test_labels_that_are_none_are_refused(
    place: tuple[Path, Rows], tmp_path: Path, said: dict[str, Any], why: str
) -> None:
    image = (place[0] / "images" / "0000.png").read_bytes()
    write_shard(tmp_path / "000.tar", [("0", image, said)])
    with pytest.raises(DataError, match=why):
        Shards(root=str(tmp_path)).labelled(True)


def test_data_of_one_label_an_image_are_refused() -> None:
    with pytest.raises(LabelsError, match=r"E060: data: .*\(data=digits\)"):
        Multilabel().read(Digits(digits=(0, 1)), True)


def test_a_pack_of_a_table_has_what_is_unknown(place: tuple[Path, Rows], listed: Dataset) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder, _ = place
    table = Parquet(root=str(write_parquet(folder / "packed.parquet", cells(place))))
    out = pack(table, str(folder / "packed"), 1, several=True)
    found = Shards(root=str(out), leakage="ignore").labelled(True)
    assert found.classes == listed.classes and by_pixels(found) == by_pixels(listed)


def test_a_pack_of_a_list_reads_as_the_list(
    place: tuple[Path, Rows], listed: Dataset, tmp_path: Path
) -> None:
    folder, rows = place
    entries: list[dict[str, Any]] = [{"path": f"images/{n}", "labels": has} for n, has in rows]
    entries[4] |= {"labels": [], "unknown": list(listed.classes)}
    (folder / "list.json").write_text(json.dumps(entries))
    for name in ("cells.csv", "list.json"):
        out = pack(Manifest(file=str(folder / name)), str(tmp_path / name), 1, several=True)
        found = Shards(root=str(out), leakage="ignore").labelled(True)
        assert found.classes == listed.classes and found.splits.keys() == listed.splits.keys()
        for split, samples in found.splits.items():
            other = listed.splits[split]
            assert (samples.names, samples.sha256) == (other.names, other.sha256)
            assert np.array_equal(samples.labels, other.labels)
    columns = labelled.write_columns(folder / "columns.csv", [(f"images/{n}", h) for n, h in rows])
    text = columns.read_text().splitlines()
    columns.write_text("\n".join([f"{text[0]},never", *(f"{line},0" for line in text[1:])]))
    with pytest.raises(DataError, match=r"E384: .*no image has the label 'never'.*take that col"):
        pack(Manifest(file=str(columns)), str(tmp_path / "never"), 1, several=True)


def matrix_of(listed: Dataset, rows: Rows) -> Any:
    """The labels of all images, int64 (n, classes); nobody has looked at the fifth."""
    labels = [[int(name in has) for name in listed.classes] for _, has in rows]
    labels[4] = [-1] * len(listed.classes)
    return np.array(labels)


def pixels(place: tuple[Path, Rows]) -> Any:
    folder, rows = place
    return np.stack([np.asarray(Image.open(folder / "images" / name)) for name, _ in rows])


@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_a_matrix_of_labels_is_the_columns_of_a_csv(
    place: tuple[Path, Rows], listed: Dataset, tmp_path: Path, kind: type
) -> None:
    matrix = matrix_of(listed, place[1]).astype(kind)
    if kind is np.float32:
        matrix[matrix < 0] = np.nan
    path, turned = tmp_path / "photos.npz", [2, 0, 3, 1]
    names = np.array(listed.classes)[turned]
    np.savez(path, images=pixels(place), labels=matrix[:, turned].copy(), classes=names)
    found = ArrayFiles(root=str(path), leakage="ignore").labelled(True)
    assert found.classes == listed.classes and by_pixels(found) == by_pixels(listed)
    assert sum(len(samples) for samples in found.splits.values()) == len(matrix)
    with pytest.raises(DataError, match=r"E335: .*; of several labels type task=multilabel"):
        ArrayFiles(root=str(path)).dataset(True)


def test_matrices_of_splits_without_names_have_columns_by_number(
    place: tuple[Path, Rows], listed: Dataset, tmp_path: Path
) -> None:
    """As MedMNIST has them: ``train_images``, ``train_labels`` and so on."""
    images, labels = pixels(place), np.maximum(matrix_of(listed, place[1]), 0).astype(np.uint8)
    parts = {"train": slice(0, 40), "val": slice(40, 66)}
    given = {f"{s}_{k}": v[p] for s, p in parts.items() for k, v in
             (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "med.npz", **given)
    found = ArrayFiles(root=str(tmp_path / "med.npz"), leakage="ignore").labelled(True)
    assert found.classes == ("0", "1", "2", "3")
    for split, part in parts.items():
        assert found.splits[split].labels.tolist() == labels[part].tolist()
    given["val_labels"] = given["val_labels"][:, :3].copy()
    np.savez(tmp_path / "less.npz", **given)
    with pytest.raises(DataError, match=r"E335: .*val_labels: has 3 columns, and train_labels"):
        ArrayFiles(root=str(tmp_path / "less.npz")).labelled(True)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"labels": 7}, r"E106: .*labels: 7 in row 3, class 'prime', is no label"),
    "a half": ({"labels": 0.5}, r"E106: .*0\.5 in row 3"),
    "one each": ({"labels": np.zeros(66, int)}, r"E335: .*\(66\).*or type task=single"),
    "too few": ({"labels": np.zeros((65, 4))}, r"E335: .*\(65, 4\), and there are 66 images"),
    "texts": ({"labels": np.full((66, 4), "yes")}, r"E335: .*<U3, and labels are 1, 0 and -1"),
    "names": ({"classes": np.array(["a", "b", "c"])}, r"E335: .*4 columns, and 'classes' has 3"),
    "twice": ({"classes": np.array(["a", "b", "c", "a"])}, r"E105: .*'a' is no name"),
    "nobody": ({}, r"E387: .*no training image has the label 'round'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_matrices_that_are_no_labels_are_refused(
    place: tuple[Path, Rows], listed: Dataset, tmp_path: Path, wrong: str
) -> None:
    changed, match = WRONG[wrong]
    arrays = {"images": pixels(place), "labels": matrix_of(listed, place[1]),
              "classes": np.array(listed.classes)}  # fmt: skip
    if isinstance(value := changed.get("labels"), int | float):
        labels = arrays["labels"].astype(type(value))
        labels[3, 1] = value
        changed = {"labels": labels}
    if wrong == "nobody":
        changed = {"labels": arrays["labels"].copy()}
        changed["labels"][:, 2] = 0
    np.savez(tmp_path / "x.npz", **(arrays | changed))
    with pytest.raises(DataError, match=match):
        ArrayFiles(root=str(tmp_path / "x.npz"), leakage="ignore").labelled(True)
