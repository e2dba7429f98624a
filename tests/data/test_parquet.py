"""Parquet files in place of folders: the same images, names and splits, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_tables import PLAIN, rows_of, write_parquet
from pictures import encoded, folders

import xfer
from xfer.core.errors import ConfigError, DataError
from xfer.core.types import Dataset
from xfer.data import Folder, Parquet, Shards, parquet_cells
from xfer.data.image_bytes import FileSpan, read_file
from xfer.data.pack import pack
from xfer.data.parquet_cells import GroupCell

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

FULL = {f"{split}/{c}": 4 for split in ("train", "val") for c in ("cat", "dog")}
MODEL = ["backbone=digits_resnet", "source=digits_0_4", "data.batch_size=8"]
Rows = list[dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders(tmp_path / "in", FULL)


def split_facts(dataset: Dataset) -> dict[str, object]:
    return {k: (s.names, s.labels.tolist(), s.sha256) for k, s in dataset.splits.items()}


def places(dataset: Dataset) -> list[Any]:
    return [place for s in dataset.splits.values() for place in s.images.paths]  # type: ignore[attr-defined]


def refused(number: int, match: str, root: Path, **how: Any) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        Parquet(str(root), **how).dataset(training=True)
    assert caught.value.number == number, caught.value
    assert len(str(caught.value).splitlines()) == 1 and caught.value.exit == 3
    return caught.value


def simple(labels: str, start: int = 0) -> Rows:
    return [{"image": encoded("JPEG", i), "label": text} for i, text in enumerate(labels, start)]


# What is read


@pytest.mark.parametrize("how", [PLAIN, {}, {"compression": "zstd", "row_group_size": 3}])
def test_names_labels_hashes_and_pixels_are_those_of_the_folder(
    root: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    path = write_parquet(tmp_path / "x.parquet", rows_of(root), **how)
    one = Folder(str(root)).dataset(True)
    for _ in range(2):  # the second time from the cache
        two = Parquet(str(path)).dataset(True)
        assert split_facts(one) == split_facts(two) and one.classes == two.classes
    assert {type(place) for place in places(two)} == {FileSpan if how == PLAIN else GroupCell}
    assert any("row group" in line for line in two.remarks) == (how != PLAIN)
    for split, samples in two.splits.items():
        for i in reversed(range(len(samples))):
            assert np.array_equal(samples.images[i], one.splits[split].images[i])
    assert split_facts(Folder(str(root)).dataset(False)) == split_facts(
        Parquet(str(path)).dataset(False)
    )


def test_without_splits_the_same_images_are_held_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", {"cat": 9, "dog": 9})
    rows = [{"image": row["image"], "label": row["label"]} for row in rows_of(root)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    for spec in ({"split_seed": 3}, {"val_fraction": 0.3, "test_fraction": 0.3}, {"folds": 3}):
        one, two = (kind(str(at), **spec) for kind, at in ((Folder, root), (Parquet, path)))
        assert split_facts(one.dataset(True)) == split_facts(two.dataset(True))
    assert one.dataset(True).splits["train"].folds is not None


def test_a_column_of_paths_is_that_of_the_folder(root: Path) -> None:
    rows = [{**row, "image": row["image"]["path"]} for row in rows_of(root)]
    path = write_parquet(root / "x.parquet", rows)
    assert split_facts(Folder(str(root)).dataset(True)) == split_facts(
        Parquet(str(path)).dataset(True)
    )


def test_names_of_files_say_the_split_and_rows_the_name(tmp_path: Path) -> None:
    for name, start in (("train-00000-of-00002", 0), ("train-00001-of-00002", 8)):
        write_parquet(tmp_path / f"data/{name}.parquet", simple("abab", start))
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", simple("ab", 20))
    write_parquet(tmp_path / ".cache/validation.parquet", simple("ab", 30))
    found = Parquet(str(tmp_path)).dataset(True)
    assert {k: len(s) for k, s in found.splits.items()} == {"train": 8, "val": 2}
    assert found.splits["val"].names == tuple(
        f"data/validation-00000-of-00001.parquet#{i}" for i in range(2)
    )
    assert "images are called by file and row: 'data/train-00000-of-00002.parquet#0'" in (
        found.remarks
    )


def test_class_labels_and_columns_of_other_names(tmp_path: Path) -> None:
    facts = {"info": {"features": {"y": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    rows = [
        {"img": row["image"], "y": i % 2, "who": i % 4} for i, row in enumerate(simple("ab" * 6))
    ]
    path = write_parquet(tmp_path / "x.parquet", rows, metadata={"huggingface": json.dumps(facts)})
    error = refused(327, "has no column 'image'", path)
    assert error.fix.startswith("type 'data.columns=[img,y]'")
    found = Parquet(str(path), columns=("img", "y"), group="who", folds=2).dataset(True)
    train = found.splits["train"]
    assert found.classes == ("cat", "dog") and set(train.groups) == {"0", "1", "2", "3"}
    for group in "0123":
        members = [i for i, g in enumerate(train.groups) if g == group]
        assert len(set(train.folds[0, members].tolist())) == 1  # type: ignore[index]


@pytest.mark.parametrize("nothing", [None, -1])
def test_a_test_without_labels_is_left_out(tmp_path: Path, nothing: int | None) -> None:
    facts = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    how: dict[str, Any] = {"metadata": {"huggingface": json.dumps(facts)}}
    rows = [{"image": encoded("JPEG", i), "label": i % 2} for i in range(6)]
    write_parquet(tmp_path / "train.parquet", rows, **how)
    rows = [{"image": encoded("JPEG", i), "label": nothing} for i in (7, 8)]
    write_parquet(tmp_path / "test.parquet", rows, types={"label": arrow.int64()}, **how)
    found = Parquet(str(tmp_path), val_fraction=0.4).dataset(True)
    assert set(found.splits) == {"train", "val"} and found.classes == ("a", "b")
    assert "left out (images without classes): 2 rows of test" in found.remarks


def read_in_turn(cells: list[GroupCell], send: Any) -> None:
    send.send([read_file(cell)[0] for cell in cells])


def test_workers_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are opened anew in a process, and no more of them are held than is said."""
    rows = simple("ab" * 12)
    path = write_parquet(tmp_path / "x.parquet", rows, row_group_size=4, compression="zstd")
    cells = places(Parquet(str(path), val_fraction=0.5).dataset(True))
    cells = sorted(cells, key=lambda cell: (cell.row % 5, cell.row))
    size = sum(len(row["image"]) for row in rows[:4])
    monkeypatch.setattr(parquet_cells, "HELD", 2 * size + size // 2)
    parquet_cells._HELD._begin()
    want = [rows[cell.row]["image"] for cell in cells]
    assert [read_file(cell)[0] for cell in cells] == want
    assert 1 <= len(parquet_cells._HELD._read) <= 2
    for kind in ("fork", "spawn"):
        ours, theirs = multiprocessing.get_context(kind).Pipe()
        process = multiprocessing.get_context(kind).Process(
            target=read_in_turn, args=(cells, theirs)
        )
        process.start()
        assert ours.poll(60) and ours.recv() == want
        process.join()


def test_a_file_of_one_row_group_is_looked_through_in_little_memory(tmp_path: Path) -> None:
    rows = [{"image": np.random.default_rng(i).bytes(50_000), "label": "a"} for i in range(1000)]
    path = write_parquet(tmp_path / "x.parquet", rows, **PLAIN, write_batch_size=64)
    code = (
        "import sys; from pathlib import Path; import pyarrow\n"
        "from xfer.data.parquet_cells import places_in\n"
        "places = places_in(Path(sys.argv[1]), 'image')\n"
        "print(len(places), pyarrow.default_memory_pool().max_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    count, most = map(int, done.stdout.split())
    assert count == 1000 and most < 25_000_000  # of 50 MB


def test_real_photographs_answer_the_same(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way with worker processes: training, cached features and predictions."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 12), ("val", 8)):
        for label in ("ants", "bees"):
            (tmp_path / "in" / split / label).mkdir(parents=True)
            for path in sorted((assets / "Hymenoptera" / split / label).iterdir())[:count]:
                shutil.copy(path, tmp_path / "in" / split / label)
    rows = rows_of(tmp_path / "in")
    write_parquet(tmp_path / "plain.parquet", rows, **PLAIN)
    write_parquet(tmp_path / "packed.parquet", rows, row_group_size=7)
    left = []
    for words in (
        ["data.root=in", "data.workers=0"],
        ["data=parquet", "data.root=plain.parquet", "data.workers=1"],
        ["data=parquet", "data.root=packed.parquet", "data.workers=0"],
    ):
        done = xfer.run(overrides=[*words, *MODEL, "stages=[fit,evaluate]"])
        plan = json.loads((done.folder / "plan.json").read_text())
        result = json.loads((done.folder / "result.json").read_text())
        table = (done.folder / "predictions_val.csv").read_bytes()
        weights = result["scores"]["val"]["loss"]
        left.append(
            (table, plan["classes"], [s["sha256"] for s in plan["splits"].values()], weights)
        )
    assert left[0] == left[1] == left[2] and b"val/bees" in left[0][0]
    # Equal bytes are equal features: the second run and the third have computed none.
    assert result["features"]["hit"] is True


@pytest.mark.parametrize("how", [PLAIN, {"compression": "zstd"}])
def test_a_parquet_file_is_packed_into_the_shards_of_the_folder(
    root: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    path = write_parquet(tmp_path / "x.parquet", rows_of(root), **how)
    one = pack(Folder(str(root)), str(tmp_path / "one"), 1)
    two = pack(Parquet(str(path)), str(tmp_path / "two"), 1)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_images_without_a_path_are_packed_by_row(tmp_path: Path) -> None:
    rows = [*simple("abab"), {"image": encoded("PNG", 9), "label": "b"}]
    path = write_parquet(tmp_path / "x.y.parquet", rows)
    out = pack(Parquet(str(path)), str(tmp_path / "out"), 1)
    one, two = (kind.dataset(True) for kind in (Parquet(str(path)), Shards(str(out))))
    names = {name for s in two.splits.values() for name in s.names}
    assert names == {*(f"x.y.parquet#{i}.jpg" for i in range(4)), "x.y.parquet#4.png"}
    assert [one.classes, len(places(one))] == [two.classes, len(places(two))]
    rows = [*simple("abab"), {"image": None, "label": "b"}]
    write_parquet(path, rows)
    with pytest.raises(DataError, match=r"E384: .*x\.y\.parquet#4: cannot be packed \(its cell is"):
        pack(Parquet(str(path)), str(tmp_path / "more"), 1)


# What is refused


def test_a_null_or_a_broken_image_is_named_or_skipped(tmp_path: Path) -> None:
    for how in (PLAIN, {"compression": "zstd"}):
        rows = [*simple("ababab"), {"image": None, "label": "a"}, {"image": b"no", "label": "b"}]
        path = write_parquet(tmp_path / f"{len(how)}.parquet", rows, **how)
        error = refused(
            310, r"#6: cannot be read as an image \(its cell is null\); 1 more file is", path
        )
        assert error.fix.endswith("or type data.on_bad=skip")
        found = Parquet(str(path), on_bad="skip", val_fraction=0.4).dataset(True)
        assert any("skipped 2 broken files" in line for line in found.remarks)


def test_labels_that_are_missing_or_no_class(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [*simple("abab"), {"image": b"", "label": None}])
    refused(329, "x.parquet#4 has no label", path)
    facts = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    rows = [{"image": encoded("JPEG", i), "label": i} for i in range(3)]
    path = write_parquet(tmp_path / "y.parquet", rows, metadata={"huggingface": json.dumps(facts)})
    refused(329, "the label 2 of row 2 is no class, 0 to 1", path)
    rows = [{**row, "split": s} for row, s in zip(simple("ababac"), "tttvvv", strict=True)]
    for row in rows:
        row["split"] = {"t": "train", "v": "val"}[row["split"]]
    refused(306, "val has the class 'c', unlike train", write_parquet(tmp_path / "z.parquet", rows))


def other_type(path: Path) -> None:
    write_parquet(path, [{"image": encoded("JPEG", 9), "label": 3}])


def no_column(path: Path) -> None:
    write_parquet(path, [{"image": encoded("JPEG", 9), "class": "a"}])


def no_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1 and nothing more")


def cut_off(path: Path) -> None:
    data = write_parquet(path, simple("ab")).read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("write", "number", "match"),
    [
        (other_type, 328, "its column 'label' has numbers, and that of a.parquet has text"),
        (no_column, 328, "has no column 'label', unlike a.parquet"),
        (no_parquet, 334, "cannot be read as a parquet file"),
        (cut_off, 334, "cannot be read as a parquet file"),
        (lambda path: path.write_bytes(b""), 334, "cannot be read as a parquet file"),
        (lambda path: os.mkfifo(path), 334, "it is not a regular file"),
    ],
)
def test_another_file_in_the_folder(
    tmp_path: Path, write: Callable[[Path], object], number: int, match: str
) -> None:
    write_parquet(tmp_path / "a.parquet", simple("abab"))
    write(tmp_path / "b.parquet")
    refused(number, match, tmp_path)


def test_splits_that_are_none_or_of_some_files_alone(tmp_path: Path) -> None:
    rows = [{**row, "split": "extra"} for row in simple("abab")]
    error = refused(
        332, "unknown split 'extra' in x.parquet#0", write_parquet(tmp_path / "x.parquet", rows)
    )
    assert "train, val and test" in error.fix
    write_parquet(tmp_path / "in" / "train-0.parquet", simple("abab"))
    write_parquet(tmp_path / "in" / "more.parquet", simple("abab", 9))
    refused(339, "more.parquet: its name says no split, and that of train-0", tmp_path / "in")
    refused(334, "holds no parquet files", folders(tmp_path / "images", {"a": 1}))
    refused(334, "there is no such file or folder", tmp_path / "nothing.parquet")


def test_columns_of_other_kinds(tmp_path: Path) -> None:
    rows = [{"image": [1.0, 2.0], "label": "a", "score": 0.5} for _ in range(3)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    refused(327, "the column 'image' has list<", path)
    path = write_parquet(tmp_path / "y.parquet", [{**row, "score": 0.5} for row in simple("abab")])
    error = refused(
        327, "the column 'score' has double, and text or whole", path, columns=("image", "score")
    )
    assert "data.columns=[image,label]" in error.fix
    refused(392, "has no column 'who'", path, group="who", folds=2)
    rows = [{**row, "who": "x" if i else None} for i, row in enumerate(simple("abab"))]
    path = write_parquet(tmp_path / "z.parquet", rows)
    refused(392, "the column 'who' is empty in z.parquet#0", path, group="who", folds=2)
    rows = [{"image": f"{i // 2}.jpg", "label": "ab"[i % 2]} for i in range(4)]
    refused(
        390,
        "p.parquet#0 and p.parquet#1 are both the image '0.jpg'",
        write_parquet(tmp_path / "p.parquet", rows),
    )


def test_a_folder_of_tables_says_what_reads_it(tmp_path: Path) -> None:
    for suffix, option in (("parquet", "parquet"), ("arrow", "hf"), ("npy", "arrays")):
        root = tmp_path / option
        root.mkdir()
        (root / f"train.{suffix}").touch()
        with pytest.raises(DataError, match="holds no class folders") as caught:
            Folder(str(root)).dataset(True)
        assert caught.value.fix == f"type data={option} to read its {suffix} files"


def test_a_file_that_is_replaced_during_a_run_is_named(tmp_path: Path) -> None:
    for how in (PLAIN, {"compression": "zstd"}):
        path = write_parquet(tmp_path / "x.parquet", simple("abab"), **how)
        images = Parquet(str(path), val_fraction=0.5).dataset(True).splits["train"].images
        images[0]
        os.utime(path, (1, 1))
        images[0]  # touched, and the same bytes
        write_parquet(path, simple("abab", 50), **how)
        match = r"x\.parquet#\d+: (has changed since it was scanned|cannot be read as an image)"
        with pytest.raises(DataError, match=match):
            [images[i] for i in range(len(images))]


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfer.data.arrow_columns.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="E280: data: parquet is read by the package 'pyarrow'"
    ) as caught:
        Parquet("x.parquet").dataset(training=True)
    assert caught.value.fix == "pip install 'xfer-vision[parquet]'"
