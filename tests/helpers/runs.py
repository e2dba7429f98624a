"""Runs of the digits in processes of their own: started, killed, and compared bit for bit."""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import warm

from xfer.core.errors import WeightsError
from xfer.core.torch_file import load_tensors
from xfer.weights.formats.checkpoint_format import identity

OPTIONS = [
    "experiment=digits_sgd",
    "augment=standard",
    "freeze=none",
    "head=dropout",
    "optim.lr=0.02",
    "trainer.max_epochs=2",
    "trainer.ema_decay=0.9",
    "checkpoint.every_n_steps=5",
    "checkpoint.keep=2",
    "stages=[fit,evaluate]",
]
CLOCKS = {"epoch_s", "step_ms", "data_share"}


Process = subprocess.Popen | warm.Run


def start(folder: Path, *extra: str, start_new_session: bool = False, **env: str) -> warm.Run:
    """A run of the digits, forked from a process that has imported everything."""
    return warm.start(folder, *OPTIONS, *extra, start_new_session=start_new_session, **env)


def start_command(folder: Path, *extra: str) -> "subprocess.Popen[str]":
    """The same as a user starts it, which takes three times as long."""
    return subprocess.Popen(
        [sys.executable, "-m", "xfer", *OPTIONS, *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: Process) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def kill(process: Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def only_run(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "digits_sgd").iterdir()
    return found


def facts(folder: str | Path, name: str = "result.json") -> Any:
    """What a JSON file of a run says."""
    return json.loads((Path(folder) / name).read_text())


def table(folder: Path, name: str = "") -> list[dict[str, str]]:
    """The rows of a CSV file, or of that which is called ``name`` in a folder."""
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(stream)]


def wait_for(condition, process: Process) -> None:
    """Returns when ``condition`` holds; else the process ends with the test."""
    try:
        for _ in range(60000):
            if condition():
                return
            assert process.poll() is None, "the run ended before"
            time.sleep(0.005)
        raise AssertionError("the run never came that far")
    except BaseException:
        process.kill()
        print(process.communicate()[0])
        raise


def is_at_work(process: int) -> bool:
    """Whether it is there, and not only its exit code for who adopted it."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(processes: list[int]) -> None:
    """Whoever adopts a process that lost its leader, it must end; nobody here may wait for it."""
    for _ in range(6000):
        if not any(is_at_work(process) for process in processes):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {processes}")


def in_an_epoch(folder: Path, after: int) -> bool:
    """Whether the resume file is of a step inside an epoch, after step ``after``."""
    for file in folder.glob("outputs/digits_sgd/*/checkpoints/last.ckpt"):
        try:
            step = step_of(file, file.stat().st_mtime_ns)
        except (WeightsError, FileNotFoundError):
            return False  # just renamed to make room for the next one
        return bool(step > after and step % 23)
    return False


@functools.lru_cache(16)
def step_of(file: Path, changed: int) -> int:
    """The step of a resume file. Each file is read once: whoever reads it slows the run down."""
    step: int = load_tensors(file)["xfer"]["progress"]["step"]
    return step


def assert_same(run: Path, whole: Path) -> None:
    """Everything but the clocks, bit for bit."""
    assert rows(run) == rows(whole)
    assert (run / "predictions_val.csv").read_text() == (whole / "predictions_val.csv").read_text()
    for name in ("best", "last"):
        ours, theirs = (load_tensors(r / f"checkpoints/{name}.ckpt") for r in (run, whole))
        for content, folder in ((ours, run), (theirs, whole)):
            # Of its own run, which another configuration makes another one.
            own = identity(json.loads((folder / "plan.json").read_text()))
            assert content["xfer"].pop("run") == own, name
        assert_equal(ours, theirs, name)
    names = lambda folder: sorted(p.name for p in (folder / "checkpoints").iterdir())  # noqa: E731
    assert names(run) == names(whole)


def assert_equal(ours, theirs, where: str) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs.keys() - CLOCKS:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    elif hasattr(theirs, "dtype"):
        assert ours.dtype == theirs.dtype and ours.equal(theirs), where
    else:
        assert ours == theirs, where
