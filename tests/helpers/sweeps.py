"""Sweeps of the digits in processes of their own: begun, stopped, killed, and looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

QUICK = ["-m", "experiment=digits_sgd", "trainer.max_epochs=1", "stages=[fit,evaluate]"]
WARM = "hydra.launcher.persistent=true"
SLOTS = f"hydra.launcher.slots={min(2, len(os.sched_getaffinity(0)))}"
CLOCKS = ("timing", "command")


def photos(folder: Path, count: int = 12) -> None:
    """A folder of two classes of real digits, small."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in (5, 6):
        (folder / str(label)).mkdir(parents=True)
        for i in np.flatnonzero(digits.target == label)[:count]:
            pixels = (digits.images[i] * 15).astype(np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).convert("RGB").save(folder / str(label) / f"{i}.png")


def sweep(cwd: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    """A whole sweep."""
    with begun(cwd, *typed) as process:
        output, _ = process.communicate(timeout=500)
    return subprocess.CompletedProcess(typed, process.returncode, output)


@contextmanager
def begun(cwd: Path, *typed: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep at work, in a process group of its own; ended and reaped whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xfer", *typed],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if process.stdout and not process.stdout.closed:
            process.communicate()


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Returns when ``condition`` holds; an error when the process ends before."""
    for _ in range(6000):
        if condition():
            return
        if process is not None and process.poll() is not None:
            raise AssertionError("the sweep ended before: " + process.communicate()[0])
        time.sleep(0.05)
    raise AssertionError("it never came so far")


def state(folder: Path) -> str:
    try:
        return str(json.loads((folder / "status.json").read_text())["state"])
    except (OSError, ValueError):
        return "missing"


def process_of(folder: Path) -> int | None:
    """The process that works in a job's folder."""
    try:
        pid = int((folder / ".lock").read_text().split()[-1])
        os.kill(pid, 0)
    except (OSError, IndexError):
        return None
    return pid


def ledger(folder: Path) -> dict[int, dict]:
    """Every job: what it was and what came out, without clocks."""
    found = {}
    for path in folder.glob("*/job.json"):
        job = json.loads(path.read_text())
        job.pop("trial", None)
        result = json.loads((path.parent / "result.json").read_text())
        kept = {k: v for k, v in result.items() if k not in (*CLOCKS, "features")}
        answers = (path.parent / "predictions_val.csv").read_text()
        found[job["job"]] = {**job, "result": kept, "answers": answers}
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it, the eldest first."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def at_work(folder: Path) -> bool:
    """Whether a job has come past its first epoch."""
    return (folder / "metrics.csv").exists() and process_of(folder) is not None


def strike(pids: list[int | None], number: int) -> None:
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def assert_saved(folders: list[Path], output: str) -> None:
    """No job is at work, and each that was says that it was stopped and can be resumed."""
    assert [process_of(folder) for folder in folders] == [None] * len(folders)
    for folder in folders:
        found = json.loads((folder / "status.json").read_text())
        assert found["state"] in ("interrupted", "finished"), output
        if found["state"] == "interrupted":
            # Its own words, and not what the sweep makes of a process that is gone.
            assert (found["message"], found["exit"]) == ("stopped by SIGTERM", 143)
            assert found["last_good_checkpoint"] == "checkpoints/last.ckpt"
            number = folder.name
            assert f"job {number} has stopped, its state is saved" in output
