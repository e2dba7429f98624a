"""File locks: free at once when their owner is killed, and never waited for in silence."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from sweeps import until

from xfer.core.errors import OutputError
from xfer.core.locks import Lock
from xfer.core.log import log
from xfer.core.run_folder import is_live, lock
from xfer.data.scan import alone, examine
from xfer.sweep.study import _Lock
from xfer.training.features import feature_dir
from xfer.training.features.feature_dir import EntryFiles, locked

# Holds each kind of lock in turn, with a data worker forked meanwhile, until it is killed.
HOLDS = """
import multiprocessing, os, sys, time
from pathlib import Path
from xfer.data.scan import alone
from xfer.core.run_folder import lock
from xfer.training.features.feature_dir import EntryFiles, locked
import fcntl

folder = Path(sys.argv[2])
if sys.argv[1] == "run":
    held = lock(folder)
elif sys.argv[1] == "scan":
    held = alone(folder, "reads")
    held.__enter__()
else:
    held = locked(EntryFiles(folder, "0" * 64), fcntl.LOCK_EX)
    held.__enter__()
def work():
    print(os.getpid(), flush=True)  # the parent may be killed from here on
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=work).start()
time.sleep(600)
"""


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


def holding(kind: str, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lock, and its worker."""
    command = [sys.executable, "-c", HOLDS, kind, str(folder)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


@pytest.mark.parametrize("kind", ["run", "scan", "features"])
def test_a_killed_owner_s_lock_is_free_at_once_while_its_worker_lives(
    kind: str, tmp_path: Path, lines: list[str]
) -> None:
    owner, worker = holding(kind, tmp_path)
    try:
        if kind == "run":
            assert is_live(tmp_path)
        owner.kill()
        owner.wait()
        if kind == "run":
            assert not is_live(tmp_path)
        elif kind == "scan":
            with alone(tmp_path, "reads"):
                pass
        else:
            with locked(EntryFiles(tmp_path, "0" * 64), fcntl.LOCK_EX | fcntl.LOCK_NB):
                pass
        assert lines == [], "it was waited for"
        os.kill(worker, 0)
    finally:
        owner.kill()
        os.kill(worker, signal.SIGKILL)
        owner.communicate()


def test_who_waits_for_a_scan_that_stands_still_is_told_for_whom(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, looks = [0.0], []
    asleep = lambda seconds: (looks.append(clock[0]), time.sleep(seconds))  # noqa: E731
    waited = Mock(monotonic=lambda: clock[0], sleep=asleep)
    monkeypatch.setattr("xfer.core.locks.time", waited)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    owner, worker = holding("scan", tmp_path)
    owner.send_signal(signal.SIGSTOP)
    done: list[list[str]] = []
    waits = threading.Thread(target=lambda: done.append(examine([tmp_path / "a.png"], tmp_path)))
    try:
        waits.start()
        until(lambda: looks)
        clock[0] = 0.5
        until(lambda: looks.count(0.5) > 1)
        assert lines == [], "half a second is not worth a word"
        clock[0] = 1.5
        until(lambda: lines)
        (said,) = lines
        assert said.startswith(f"waiting for process {owner.pid} (stopped) (")
        assert said.endswith(f"), which reads the images of {tmp_path}")
    finally:
        owner.kill()
        os.kill(worker, signal.SIGKILL)
        owner.communicate()
    waits.join(300)
    assert len(done) == 1 and len(lines) == 1


def test_every_other_lock_that_is_waited_for_says_so_once(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfer.core.locks._PATIENCE", 0.05)
    slot, journal = EntryFiles(tmp_path, "0" * 64), _Lock(str(tmp_path / "optuna.journal.lock"))
    for held, path, wait in (
        (slot.lock, slot.lock, lambda: locked(slot, fcntl.LOCK_EX).__enter__()),
        (Path(journal.path), Path(journal.path), journal.acquire),
    ):
        lines.clear()
        lock = Lock(os.open(held, os.O_RDWR | os.O_CREAT))
        waits = threading.Thread(target=wait)
        waits.start()
        until(lambda: lines)
        lock.close()
        waits.join(300)
        (said,) = lines
        assert said.startswith("waiting for another part of this process, which ")
        assert path.with_suffix("").name in said
    journal.release()


def test_a_lock_that_is_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    lock = Lock(os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT))
    lock.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    lock.close()
    os.fstat(other)
    os.close(other)


@pytest.mark.parametrize("lacking", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once_and_worked_on(
    lacking: int, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(lacking, os.strerror(lacking))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("xfer.core.locks._told", set())
    with lock(tmp_path), locked(EntryFiles(tmp_path, "0" * 64), fcntl.LOCK_EX), alone(tmp_path, ""):
        assert not is_live(tmp_path)
    said = [line for line in lines if "no two runs may work there at once" in line]
    assert len(said) == 1 and str(tmp_path / ".lock") in said[0]
    assert os.strerror(lacking) in said[0]


def test_what_else_a_lock_fails_of_is_no_lack_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"):
        lock(tmp_path)


WORKING = """
import sys, time
from pathlib import Path
from xfer.core.run_folder import lock
held = lock(Path(sys.argv[1]))
print(flush=True)
time.sleep(600)
"""


def test_without_locks_a_run_at_work_is_known_by_the_number_that_it_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    # As a notebook does: nothing in the command says what the process works on.
    command = [sys.executable, "-", str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as working:
        working.stdin.write(WORKING)
        working.stdin.close()
        assert working.stdout.readline()
        assert is_live(tmp_path)
        with pytest.raises(OutputError, match="another process is using this folder"):
            lock(tmp_path)
        noted = (tmp_path / ".lock").read_text()
        (tmp_path / ".lock").write_text(f"{working.pid} 1\n")  # one before had its number
        assert not is_live(tmp_path)
        (tmp_path / ".lock").write_text(f"1 1\n{noted}")
        assert is_live(tmp_path)
        working.kill()
        os.waitid(os.P_PID, working.pid, os.WEXITED | os.WNOWAIT)
        assert not is_live(tmp_path), "it is gone, also while its parent has not asked how it ended"
    lock(tmp_path).close()


def test_without_locks_nobody_removes_the_features_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryFiles(tmp_path, "0" * 64)
    entry.array.write_bytes(b"0" * 1000)
    content = feature_dir._contents(tmp_path)[0]
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "no locks")))
        assert not feature_dir._discard(content) and entry.array.exists()
    assert feature_dir._discard(content) and not entry.array.exists()
