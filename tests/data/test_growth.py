"""What an image more costs in memory: bytes, which no other process on the machine can change."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xfer.core import long_array
from xfer.core.types import Predictions
from xfer.data import Folder, Shards, scan
from xfer.data.scan import Facts
from xfer.evaluation.predict import write_predictions

FEW, MANY, A_SHARD = 1000, 4000, 250
MOST = 100  # bytes an image


def read(path: object) -> Facts:
    """What a scan would find: to read the images is most of its time."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return Facts(path, digest, size=(16, 16))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are not decoded, and a thousand of them have arrays where a million have them."""
    monkeypatch.setattr(scan, "inspect", read)
    monkeypatch.setattr(long_array, "LONG", 1 << 10)


def in_shards(root: Path, count: int) -> Shards:
    root.mkdir()
    for start in range(0, count, A_SHARD):
        with tarfile.open(root / f"{start:06d}.tar", "w") as tar:
            for i in range(start, start + A_SHARD):
                for suffix, data in (("jpg", b"image"), ("cls", b"ab"[i % 2 : i % 2 + 1])):
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return Shards(str(root))


def in_folders(root: Path, count: int) -> Folder:
    for i in range(count):
        path = root / f"{i % 20:02d}" / f"{i:09d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Folder(str(root))


def growth(run: Callable[[int], object]) -> float:
    """Bytes at most that an image more takes while it runs."""
    peaks = []
    for count in (FEW, MANY):
        tracemalloc.start()
        run(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (MANY - FEW)


@pytest.mark.parametrize("write", [in_shards, in_folders])
def test_a_plan_takes_a_hundred_bytes_an_image_at_most(
    tmp_path: Path, write: Callable[[Path, int], Shards | Folder]
) -> None:
    data = {count: write(tmp_path / str(count), count) for count in (FEW, MANY)}
    for turn in ("all are read", "all are known"):
        assert growth(lambda count: data[count].dataset(True)) < MOST, turn


def test_a_table_of_predictions_is_written_without_holding_it(tmp_path: Path) -> None:
    names = [f"{i:09d}.jpg" for i in range(MANY)]
    logits = np.random.default_rng(0).normal(size=(MANY, 50)).astype(np.float32)
    classes = tuple(f"class {i}" for i in range(50))

    def write(count: int) -> None:
        write_predictions(Predictions(names[:count], logits[:count], None, classes), tmp_path / "p")

    assert growth(write) < 20  # its lines have 500
    assert len((tmp_path / "p").read_text().splitlines()) == MANY + 1
