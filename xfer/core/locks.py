"""The kernel's file locks: free at once when their owner ends, and never waited for in silence.

The kernel frees a lock when the last process ends that has the file open, and a data worker that
was forked has every file of its parent open. So here a forked process lets go of all of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from xfer.core.log import log

_PATIENCE = 1.0
"""Seconds of waiting that are not worth a word."""
_POLL = 0.02
_COMMAND = 120  # characters that are shown of another process's command

_held: set[int] = set()


def _let_go() -> None:
    """In a forked process: have nothing of what the parent holds open, under the same numbers,
    which the parent's objects may close here as well."""
    for handle in _held:
        with suppress(OSError):
            empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(empty, handle, inheritable=False)
            os.close(empty)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Lock:
    """The lock on an open file, held until it is closed or this process ends.

    ``how`` is that of ``fcntl.flock``; with ``LOCK_NB`` BlockingIOError is raised where another
    process has it, else ``waiting`` is called once, with who that is. The handle is closed here,
    also where it comes to nothing.
    """

    def __init__(
        self, handle: int, how: int = fcntl.LOCK_EX, waiting: Callable[[str], None] | None = None
    ) -> None:
        self.handle = handle
        _held.add(handle)
        try:
            _take(handle, how, waiting or waits("works here"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have it."""
        if self.handle in _held:
            _held.discard(self.handle)
            with suppress(OSError):
                fcntl.flock(self.handle, fcntl.LOCK_UN)
            os.close(self.handle)
        self.handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def waits(what: str) -> Callable[[str], None]:
    """Says for whom one waits, and what that one does; the first time it is called."""
    said: list[str] = []

    def say(who: str) -> None:
        if not said:
            said.append(who)
            log.warning(f"waiting for {who}, which {what}")

    return say


def _take(handle: int, how: int, waiting: Callable[[str], None]) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if how & fcntl.LOCK_NB:
                raise
        if time.monotonic() > until:
            break
        time.sleep(_POLL)
    waiting(owner(handle))
    fcntl.flock(handle, how)


def owner(handle: int) -> str:
    """Who holds the lock on an open file, for people."""
    number = _process(os.fstat(handle))
    if number is None or number == os.getpid():
        return "another process" if number is None else "another part of this process"
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return f"process {number}"
    command = " ".join(b" ".join(words).decode(errors="replace").split())[:_COMMAND]
    return f"process {number}{' (stopped)' if state in 'Tt' else ''} ({command})"


def _process(facts: os.stat_result) -> int | None:
    """The process that Linux names as the owner of the lock on a file."""
    place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        # A line with an arrow is of one that waits.
        if words[1:2] == ["FLOCK"] and words[5:6] == [place] and words[4].isdigit():
            return int(words[4]) or None
    return None
