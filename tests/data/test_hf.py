"""Data sets of the library ``datasets`` in place of folders: the same images, names and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_tables import rows_of
from pictures import encoded, folders

from xfer.core.errors import ConfigError, DataError
from xfer.core.types import Dataset
from xfer.data import Folder, HuggingFace, Shards
from xfer.data.image_bytes import FileSpan
from xfer.data.pack import pack

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")

FULL = {f"{split}/{c}": 4 for split in ("train", "val") for c in ("cat", "dog")}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def of_rows(rows: list[dict[str, Any]], classes: list[str] | None = None) -> Any:
    """Rows as the library has them: ``image`` an Image, ``label`` a ClassLabel of ``classes``."""
    label = datasets.ClassLabel(names=classes) if classes else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    columns = {name: [row[name] for row in rows] for name in ("image", "label")}
    return datasets.Dataset.from_dict(columns, features=features)


def saved(root: Path, out: Path, shards: int = 1) -> Path:
    """A folder of splits as ``save_to_disk`` writes it."""
    rows = rows_of(root)
    splits = {row["split"]: [] for row in rows}  # type: ignore[var-annotated]
    for row in rows:
        splits[row["split"]].append(row)
    classes = sorted({row["label"] for row in rows})
    called = {"val": "validation"}
    parts = {called.get(s, s): of_rows(some, classes) for s, some in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(out, num_shards=dict.fromkeys(parts, shards))
    return out


def split_facts(dataset: Dataset) -> dict[str, object]:
    """Classes and hashes; ``save_to_disk`` takes the folders off the names."""
    return {
        k: (
            [name.rpartition("/")[2] for name in s.names],
            s.labels.tolist(),
            [digest for _, digest in s.images.scanned],  # type: ignore[attr-defined]
        )
        for k, s in dataset.splits.items()
    }


def unlike_names(root: Path) -> Path:
    """Every image with a name that no other has, with its folder in it."""
    for path in sorted(root.rglob("*.jpg")):
        path.rename(path.with_stem(f"{path.parent.name}_{path.stem}_{path.parts[-3]}"))
    return root


def refused(number: int, match: str, **how: Any) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        HuggingFace(**how).dataset(training=True)
    assert caught.value.number == number, caught.value
    assert len(str(caught.value).splitlines()) == 1 and caught.value.exit == 3
    return caught.value


def test_names_labels_hashes_and_pixels_are_those_of_the_folder(tmp_path: Path) -> None:
    root = unlike_names(folders(tmp_path / "in", FULL))
    out = saved(root, tmp_path / "out", shards=3)
    one, two = Folder(str(root)).dataset(True), HuggingFace(str(out)).dataset(True)
    assert split_facts(one) == split_facts(two) and one.classes == two.classes
    for split, samples in two.splits.items():
        assert {type(place) for place in samples.images.paths} == {FileSpan}  # type: ignore[attr-defined]
        for i in reversed(range(len(samples))):
            assert np.array_equal(samples.images[i], one.splits[split].images[i])
    packed = Shards(str(pack(HuggingFace(str(out)), str(tmp_path / "packed"), 1))).dataset(True)
    assert split_facts(packed) == split_facts(one)
    assert split_facts(Folder(str(root)).dataset(False)) == split_facts(
        HuggingFace(str(out)).dataset(False)
    )


def test_one_part_is_split_and_grouped(tmp_path: Path) -> None:
    images = [{"bytes": encoded("JPEG", i), "path": None} for i in range(12)]
    who = [str(i % 3) for i in range(12)]
    table = datasets.Dataset.from_dict(
        {"pic": images, "y": ["a", "b"] * 6, "who": who},
        features=datasets.Features(
            {
                "pic": datasets.Image(),
                "y": datasets.Value("string"),
                "who": datasets.Value("string"),
            }
        ),
    )
    table.shuffle(seed=1).select(range(10)).save_to_disk(tmp_path / "x")
    error = refused(327, "has no column 'image'", root=str(tmp_path / "x"))
    assert error.fix.startswith("type 'data.columns=[pic,y]'")
    how: dict[str, Any] = {"root": str(tmp_path / "x"), "columns": ("pic", "y")}
    found = HuggingFace(**how).dataset(True)
    assert {k: len(s) for k, s in found.splits.items()} == {"train": 8, "val": 2}
    assert found.splits["val"].names[0].startswith("data#")
    found = HuggingFace(**how, group="who", folds=3).dataset(True)
    assert set(found.splits["train"].groups) == set("012")


def test_paths_in_place_of_bytes_and_the_cache_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``load_dataset`` makes of a folder of images has their paths, and lies in its cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = folders(tmp_path / "in", FULL)
    one, two = Folder(str(root)).dataset(True), HuggingFace(name=str(root)).dataset(True)
    assert one.classes == two.classes
    for split, samples in two.splits.items():
        assert sorted(samples.names) == [str(root / n) for n in sorted(one.splits[split].names)]
    first = two.splits["val"]
    at = one.splits["val"].names.index(str(Path(first.names[0]).relative_to(root)))
    assert np.array_equal(first.images[0], one.splits["val"].images[at])


# What is refused


def test_what_is_no_saved_data_set(tmp_path: Path) -> None:
    refused(336, "or data.name must be given")
    refused(336, "and data.name are both given", root=str(tmp_path), name="x")
    refused(336, "holds no data set that save_to_disk wrote", root=str(tmp_path))
    (tmp_path / "dataset_info.json").write_text("{")
    error = refused(336, "cannot be opened by datasets", root=str(tmp_path))
    assert "save_to_disk" in error.fix
    refused(336, r"nobody/nothing: cannot be opened by datasets \(", name="nobody/nothing")


def test_nulls_labels_and_parts(tmp_path: Path) -> None:
    good = [
        {"image": {"bytes": encoded("JPEG", i), "path": None}, "label": "ab"[i % 2]}
        for i in range(6)
    ]
    of_rows([*good, {"image": None, "label": "a"}]).save_to_disk(tmp_path / "null")
    refused(
        310,
        r"arrow#6: cannot be read as an image \(its cell is null\)",
        root=str(tmp_path / "null"),
    )
    found = HuggingFace(str(tmp_path / "null"), on_bad="skip").dataset(True)
    assert any("skipped 1 broken file (" in line for line in found.remarks)
    of_rows([*good, {**good[0], "label": None}]).save_to_disk(tmp_path / "label")
    refused(329, "data#6 has no label", root=str(tmp_path / "label"))
    parts = {"a": of_rows(good), "b": of_rows(good)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    refused(339, "its parts are 'a', 'b'", root=str(tmp_path / "parts"))
    parts = {"train": of_rows(good, ["a", "b"]), "val": of_rows(good, ["b", "a"])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "classes")
    refused(328, "val: names other classes than train", root=str(tmp_path / "classes"))


def test_a_file_that_was_exchanged_or_cut_off(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": encoded("JPEG", i), "path": None}, "label": "ab"[i % 2]}
        for i in range(6)
    ]
    out = tmp_path / "x"
    of_rows(rows).save_to_disk(out)
    file = next(out.glob("*.arrow"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"E33[67]: .*x.* save_to_disk"):
        HuggingFace(str(out)).dataset(True)
    file.write_bytes(whole)
    found = HuggingFace(str(out)).dataset(True)
    at = whole.index(b"\xff\xd9") - 40
    file.write_bytes(whole[:at] + bytes(b ^ 1 for b in whole[at : at + 4]) + whole[at + 4 :])
    with pytest.raises(DataError, match=r"E373: .*arrow#0: has changed since it was scanned"):
        [s.images[i] for s in found.splits.values() for i in range(len(s))]


@pytest.mark.parametrize("change", ["shuffle", "select"])
def test_rows_in_another_order_than_the_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    rows = [
        {"image": {"bytes": encoded("JPEG", i), "path": None}, "label": "ab"[i % 2]}
        for i in range(8)
    ]
    of_rows(rows).save_to_disk(tmp_path / "x")
    load = datasets.load_from_disk

    def other(path: str) -> Any:
        table = load(path)
        return table.shuffle(seed=0) if change == "shuffle" else table.select(range(2, 8))

    monkeypatch.setattr(datasets, "load_from_disk", other)
    match = "'data' cannot be read" if change == "shuffle" else "of 'data' have other rows"
    error = refused(337, match, root=str(tmp_path / "x"))
    assert "save_to_disk" in error.fix


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfer.data.arrow_columns.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="E280: data: hf is read by the package 'datasets'"
    ) as caught:
        HuggingFace("x").dataset(training=True)
    assert caught.value.fix == "pip install 'xfer-vision[hf]'"
