"""The kernel's file locks: free at once when their owner ends, and never waited for in silence.

The kernel frees a lock when the last process ends that has the file open, and a data worker that
was forked has every file of its parent open. So here a forked process lets go of all of them.
"""

from __future__ import annotations

import errno
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

_LACKING = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system without locks answers: Lustre mounted with ``noflock``, NFS without lockd."""

_held: set[int] = set()
_told: set[int] = set()
"""The file systems of which it has been said."""


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
    also where it comes to nothing. A file system without locks is told, and nothing is ``held``.
    """

    def __init__(
        self, handle: int, how: int = fcntl.LOCK_EX, waiting: Callable[[str], None] | None = None
    ) -> None:
        self.handle = handle
        _held.add(handle)
        try:
            self.held = _take(handle, how, waiting or waits("works here"))
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


def _take(handle: int, how: int, waiting: Callable[[str], None]) -> bool:
    """Whether there is a lock to be had, which then is."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if how & fcntl.LOCK_NB:
                raise
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            # The kernel may also be short of locks for a moment.
            passing = error.errno == errno.ENOLCK and not how & fcntl.LOCK_NB
            if not passing or time.monotonic() > until:
                _tell(handle, error)
                return False
            time.sleep(_POLL)
            continue
        if time.monotonic() > until:
            break
        time.sleep(_POLL)
    waiting(owner(handle))
    fcntl.flock(handle, how)
    return True


def _tell(handle: int, error: OSError) -> None:
    """Say, once a file system, that two processes there are not kept apart."""
    if (system := os.fstat(handle).st_dev) not in _told:
        _told.add(system)
        place = Path(f"/proc/self/fd/{handle}").resolve()
        problem = f"cannot be locked ({error.strerror})"
        log.warning(f"{place} {problem}: no two runs may work there at once")


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
