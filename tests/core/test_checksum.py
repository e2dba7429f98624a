"""A flipped bit anywhere in a checkpoint is noticed, and the file before it is gone on from."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from xfer.core.checksum import add_checksum, checksum_holds
from xfer.core.errors import ResumeError, WeightsError
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.core.types import Card, InputSpec
from xfer.plan.resume import resume_file
from xfer.training.lightning import AtomicIO
from xfer.weights.formats.checkpoint_format import Snapshot, read_snapshot, write_snapshot

CARD = Card(
    {"_target_": "b"},
    {"_target_": "h"},
    ("a", "b"),
    InputSpec((8, 8), None, "bilinear", (0.0,) * 3, (1.0,) * 3),
)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def checkpoint(path: Path, value: float = 1.0) -> Path:
    write_snapshot(path, Snapshot(CARD, {"w": torch.full((500,), value)}))
    return path


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path):
    path = checkpoint(tmp_path / "best.ckpt")
    good = path.read_bytes()
    everywhere = range(len(good) * 8)
    chosen = random.Random(1).sample(everywhere, 300) + list(everywhere[-78 * 8 :: 3])
    for bit in chosen:
        path.write_bytes(good)
        flip(path, bit)
        with pytest.raises(WeightsError, match=r"best\.ckpt"):
            read_snapshot(path)
    path.write_bytes(good)
    assert read_snapshot(path).state["w"].sum() == 500


@pytest.mark.parametrize("length", [0, 10, -1, -76, -78, -400])
def test_a_cut_checkpoint_is_noticed(tmp_path, length):
    path = checkpoint(tmp_path / "best.ckpt")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"best\.ckpt"):
        read_snapshot(path)


def test_without_the_seal_torch_would_not_notice(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(500)}, path)
    flip(path, path.read_bytes().index(b"\0\0\x80?" * 9) * 8 + 20)
    assert checksum_holds(path) is None
    assert not torch.equal(load_tensors(path)["w"], torch.ones(500))


def test_a_sealed_file_is_still_a_zip_file_and_a_torch_file(tmp_path):
    path = checkpoint(tmp_path / "best.ckpt")
    assert checksum_holds(path) and zipfile.ZipFile(path).testzip() is None
    assert torch.load(path, weights_only=True)["state_dict"]["w"].sum() == 500
    with pytest.raises(ValueError, match="not a zip file without a comment"):
        add_checksum(path)


def saved(folder: Path, *values: int) -> tuple[Path, Path]:
    last = folder / "checkpoints" / "last.ckpt"
    for value in values:
        AtomicIO().save_checkpoint({"value": value}, last)
    return last, last.with_name("previous.ckpt")


def test_the_last_file_is_gone_on_from_and_the_one_before_is_kept(tmp_path):
    assert resume_file(tmp_path) is None
    last, previous = saved(tmp_path, 1, 2, 3)
    assert resume_file(tmp_path) == last
    assert (load_tensors(last)["value"], load_tensors(previous)["value"]) == (3, 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "page"])
def test_a_damaged_last_file_gives_way_to_the_one_before_and_that_is_said(tmp_path, capsys, damage):
    from xfer.core.log import close_log, open_log

    last, _ = saved(tmp_path, 1, 2)
    data = last.read_bytes()
    last.unlink()
    if damage != "gone":
        kinds = {"cut": data[:-1], "empty": b"", "page": b"<html>" * 99, "flip": data}
        last.write_bytes(kinds[damage])
    if damage == "flip":
        flip(last, len(data) * 4)
    open_log(None)
    try:
        assert resume_file(tmp_path) == last
    finally:
        close_log()
    assert load_tensors(last)["value"] == 1
    assert "is resumed from the file before it" in capsys.readouterr().out


def test_two_damaged_files_are_refused_with_the_way_out(tmp_path):
    for file in saved(tmp_path, 1, 2):
        flip(file, 8000)
    with pytest.raises(ResumeError, match=r"last\.ckpt.*no whole file.*new run") as told:
        resume_file(tmp_path)
    assert told.value.exit == 5


def test_a_damaged_best_file_is_refused_before_training_goes_on(tmp_path):
    saved(tmp_path, 1)
    best = checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    resume_file(tmp_path)
    flip(best, 9000)
    with pytest.raises(ResumeError, match=r"best\.ckpt.*damaged"):
        resume_file(tmp_path)


def test_a_write_that_fails_leaves_both_files(tmp_path):
    last, previous = saved(tmp_path, 1, 2)
    with pytest.raises(TypeError):
        AtomicIO().save_checkpoint({"state_dict": (i for i in ())}, last)
    assert (load_tensors(last)["value"], load_tensors(previous)["value"]) == (2, 1)
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_what_reads_back_otherwise_takes_no_name(tmp_path, monkeypatch):
    from xfer.core import torch_file
    from xfer.core.errors import OutputError

    save_tensors(tmp_path / "x.ckpt", {"value": 1})
    monkeypatch.setattr(
        torch_file, "checksum_holds", lambda path: False
    )  # a disk that does not keep bytes
    with pytest.raises(OutputError, match="reads back otherwise"):
        save_tensors(tmp_path / "x.ckpt", {"value": 2})
    monkeypatch.undo()
    assert load_tensors(tmp_path / "x.ckpt")["value"] == 1
