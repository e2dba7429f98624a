"""Broken and huge files of several labels an image: skipped with a remark, where a fit is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import labelled
import numpy as np
import pytest
from PIL import Image

from xfer.core.errors import DataError
from xfer.core.types import Dataset, InputSpec
from xfer.data import Manifest
from xfer.data.dataset import resizable

SPEC = InputSpec((8, 8), 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
Rows = list[tuple[str, list[str]]]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Rows]:
    return tmp_path, labelled.digits(tmp_path, 60, unlabelled=6)


def read(root: Path, rows: Rows, on_bad: str = "skip", given: bool = False) -> Dataset:
    """The rows as a data set; with a split that is ``given``, the first 50 digits are train."""
    path = labelled.write_cells(root / "cells.csv", rows)
    if given:
        lines = [f"{n},{'|'.join(has)},{'train' if n < '0050' else 'val'}" for n, has in rows]
        path.write_text("\n".join(["path,label,split", *lines]))
    return Manifest(file=str(path), leakage="ignore", on_bad=on_bad).labelled(True)


def same(one: Dataset, two: Dataset) -> bool:
    """Whether both have the same images, in the same splits and with the same hash."""
    pairs = [(one.splits[s], two.splits[s]) for s in ("train", "val")]
    return all(
        list(a.names) == list(b.names)
        and a.labels.tolist() == b.labels.tolist()
        and a.sha256 == b.sha256
        for a, b in pairs
    )


def test_skipping_is_as_if_the_broken_files_were_not_listed(place: tuple[Path, Rows]) -> None:
    root, rows = place
    without = read(root, [*rows[:3], *rows[5:]], given=True)
    counted = sum(len(labels) for i, (_, labels) in enumerate(rows) if i not in (3, 4))
    assert "0003.png" not in without.splits["train"].names
    for name, _ in rows[3:5]:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    with pytest.raises(DataError, match=r"E3\d\d: .*0003\.png"):
        read(root, rows, "error")
    found = read(root, rows, given=True)
    assert same(found, without) and len(found.splits["train"]) == 48
    assert sum(int(samples.labels.sum()) for samples in found.splits.values()) == counted
    assert any(line.startswith("skipped 2 broken files ('0003.png'") for line in found.remarks)


def test_what_resizing_makes_huge_is_skipped_too(place: tuple[Path, Rows]) -> None:
    root, rows = place
    wanted = read(root, rows)
    name = wanted.splits["train"].names[7]
    Image.new("RGB", (60_000, 1)).save(root / name)
    found = read(root, rows)
    spec = replace(SPEC, resize=2048)
    with pytest.raises(DataError, match=rf"E374: .*{name}: .*data\.on_bad=skip"):
        resizable(found, spec, "error")
    skipped = resizable(found, spec, "skip")
    keep = np.delete(np.arange(len(wanted.splits["train"])), 7)
    train, before = skipped.splits["train"], wanted.splits["train"]
    assert list(train.names) == [before.names[i] for i in keep]
    assert train.labels.tolist() == before.labels[keep].tolist()
    assert len(train.images) == len(keep) and skipped.classes == wanted.classes
    (root / name).unlink()
    split = {name: s for s in wanted.splits for name in wanted.splits[s].names}
    lines = ["path,label,split"]
    lines += [f"{n},{'|'.join(labels)},{split[n]}" for n, labels in rows if n != name]
    (root / "without.csv").write_text("\n".join(lines))
    how = Manifest(file=str(root / "without.csv"), leakage="ignore")
    assert same(skipped, how.labelled(True))  # a run without the file is one on the same images


def test_a_label_or_split_of_broken_files_alone_is_not_skipped(place: tuple[Path, Rows]) -> None:
    root, rows = place
    held = {name for i, (name, labels) in enumerate(rows) if i < 50 and "straight" in labels}
    for name in held:
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"E319: .*'straight' cannot be learned .*skipped"):
        read(root, rows, given=True)
    for name, _ in rows[50:]:
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"E319: .*: val has no sound image; the first broken"):
        read(root, rows, given=True)


def test_a_label_or_split_of_huge_files_alone_is_not_skipped(place: tuple[Path, Rows]) -> None:
    root, rows = place
    spec = replace(SPEC, resize=2048)
    for name in (name for i, (name, has) in enumerate(rows) if i < 50 and "straight" in has):
        Image.new("RGB", (60_000, 1)).save(root / name)
    found = read(root, rows, given=True)
    with pytest.raises(DataError, match=r"E319: .*class 'straight' has no other image in train"):
        resizable(found, spec, "skip")
    for name, _ in rows:
        Image.new("RGB", (60_000, 1 + (name == "0000.png"))).save(root / name)
    with pytest.raises(DataError, match=r"E319: .* has no other image"):
        resizable(read(root, rows, given=True), spec, "skip")
