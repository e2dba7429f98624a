from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import folders

from xfer.core.log import close_log, open_log
from xfer.core.types import InputSpec, Samples
from xfer.data import shared_memory
from xfer.data.decode_cache import Decoded
from xfer.data.image import Files
from xfer.data.loader import EvalLoader, eval_images
from xfer.data.shared_memory import as_tensors, handed_over

SPEC = InputSpec((8, 8), 8, "bilinear", (0.5,) * 3, (0.5,) * 3)


def batches(root: Path, workers: int, sound: bool = False) -> tuple[EvalLoader, list[Any]]:
    names = [f"a/{i:02d}.jpg" for i in range(10)]
    if not (root / "a").exists():
        folders(root, {"a": len(names)})
    images = Decoded(Files(tuple(root / name for name in names)), 100_000)
    samples = Samples(tuple(names), np.arange(len(names), dtype=np.int64), images, "")
    loader = EvalLoader(eval_images(samples, SPEC), 4, workers, pin=False, sound=sound)
    return loader, list(loader)


def full(tensor: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


@pytest.mark.parametrize("sound", [False, True])
def test_batches_that_shared_memory_does_not_hold_come_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, sound: bool
) -> None:
    open_log(None)
    shared_memory.say_once.cache_clear()
    here = batches(tmp_path, 0, sound)[1]
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    # A worker that shares a tensor ends, where it would wait for ever.
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", lambda _: os._exit(3))
    there = batches(tmp_path, 2, sound)[1]
    for one, other in zip(here, there, strict=True):
        (images, labels), (again, labels_again) = (b[0] if sound else b for b in (one, other))
        assert torch.equal(images, again) and torch.equal(labels, labels_again)
    close_log()
    said = "/dev/shm does not take batches: they come through pipes, which is slower\n"
    assert capsys.readouterr().out == said, "once for three batches"


def test_a_batch_is_handed_over_as_arrays_only_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def collate(items: list[Any]) -> Any:
        return (torch.ones(10), None), items

    whole = handed_over(collate, ["one"])
    assert whole[0][0].is_shared()
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    handed = handed_over(collate, ["one"])
    assert isinstance(handed[0][0], np.ndarray) and handed[0][1] is None and handed[1] == ["one"]
    back = as_tensors(handed)
    assert torch.equal(back[0][0], whole[0][0]) and back[1] == ["one"]


def test_without_locks_images_are_decoded_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = batches(tmp_path, 0)[1]

    def refused() -> None:
        raise PermissionError(13, "Permission denied")

    class Context:
        Lock = staticmethod(refused)

    monkeypatch.setattr(shared_memory, "get_context", Context)
    loader, alone = batches(tmp_path, 2)
    assert loader.num_workers == 0
    assert all(torch.equal(a[0], b[0]) for a, b in zip(here, alone, strict=True))


MOUNTS = {"64m": "comes through pipes", "8k": "cannot be used", "64m,ro": "cannot be used"}


@pytest.mark.parametrize(
    "options", ["64m", *(pytest.param(other, marks=pytest.mark.slow) for other in ("8k", "64m,ro"))]
)
def test_a_container_with_little_shared_memory_trains_and_says_so(
    tmp_path: Path, options: str
) -> None:
    if not (shutil.which("unshare") and os.geteuid() == 0):
        pytest.skip("only root may mount a small /dev/shm of its own")
    folders(tmp_path / "images", {"a": 40, "b": 40})
    words = ["-m", "xfer", "data.root=images", "backbone=resnet18", "source=none", "stages=[fit]"]
    mount = f"mount -t tmpfs -o size={options} tmpfs /dev/shm"
    command = f"{mount} && exec {shlex.join([sys.executable, *words])}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", command],
        *(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount of our own: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert MOUNTS[options] in done.stdout
