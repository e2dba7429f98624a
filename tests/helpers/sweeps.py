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
import warm
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


Process = subprocess.Popen | warm.Run

# The coordinator is a fork of a process that has imported everything, and so are its workers.
FORKED = """
import os
from hydra.core.global_hydra import GlobalHydra
from xfer.core.log import close_log
from xfer.sweep.executors import pool, worker

class Forked:
    def __init__(self, command, bufsize, stdin, stdout, env, start_new_session):
        (orders, self.stdin), (self.stdout, answers) = os.pipe(), os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                close_log()
                GlobalHydra.instance().clear()
                os.setsid()
                os.dup2(orders, 0)
                os.dup2(answers, 1)
                os.closerange(3, 1024)
                os.environ.clear()
                os.environ.update(env)
                worker.main(command[3:])
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)
        self.stdin = open(self.stdin, "wb", bufsize)
        self.stdout = open(self.stdout, "rb", bufsize)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stdin.close()
        self.stdout.close()
        self.wait()

    def poll(self):
        return self._left(os.WNOHANG)

    def wait(self):
        return self._left(0)

    def _left(self, how):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

class Processes:
    Popen, PIPE = Forked, None

pool.subprocess = Processes
"""


def sweep(cwd: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    """A whole sweep, as a user starts it."""
    with begun(cwd, *typed) as process:
        output, _ = process.communicate(timeout=600)
    return subprocess.CompletedProcess(typed, process.returncode, output)


def quick_sweep(cwd: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    """The same, or a run whose folds are jobs, where starting Python is not what a test is about: a
    third of the time."""
    with quickly_begun(cwd, *typed) as process:
        output, _ = process.communicate(timeout=600)
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
    with _ended(process):
        yield process


@contextmanager
def quickly_begun(cwd: Path, *typed: str) -> Iterator[warm.Run]:
    """As :func:`begun`, with every process forked."""
    script = FORKED + warm.COMMAND
    process = warm.start(cwd, *typed, WARM, script=script, start_new_session=True)
    with _ended(process):
        yield process


@contextmanager
def _ended(process: Process) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if not isinstance(process, subprocess.Popen) or (
            process.stdout and not process.stdout.closed
        ):
            process.communicate()


def until(condition: Callable[[], object], process: Process | None = None) -> None:
    """Returns when ``condition`` holds; an error when the process ends before."""
    for _ in range(15000):
        if condition():
            return
        if process is not None and process.poll() is not None:
            raise AssertionError("the sweep ended before: " + process.communicate()[0])
        time.sleep(0.02)
    raise AssertionError("it never came so far")


def state(folder: Path) -> str:
    try:
        return str(json.loads((folder / "status.json").read_text())["state"])
    except (OSError, ValueError):
        return "missing"


def process_of(folder: Path) -> int | None:
    """The process that works in a job's folder."""
    try:
        pid = int((folder / ".lock").read_text().splitlines()[-1].split()[0])
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


def all_at_work(folders: list[Path]) -> bool:
    """Whether all jobs are at work. Who is so first stands still until SIGCONT: on a busy machine
    a job may end before another has begun."""
    working = [process_of(folder) for folder in folders if at_work(folder)]
    strike(working, signal.SIGSTOP)
    return 0 < len(folders) == len(working)


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
