"""The live line of a terminal: what is at work, how far it is, and how long it will take.

It is drawn on standard error where that is a terminal, and nowhere else: in a pipe, a notebook or
a terminal that can only append, there are the finished lines of the log alone. Whatever is logged
appears above it. No thread draws it, so a process with one forks as safely as one without.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")
_PERIOD, _SOON = 0.1, 0.5
# The cursor waits at the line's first character. A terminal that becomes narrow may break the line
# into several, but keeps the cursor at that character, so what is to be erased always begins there.
# It is erased from the second character on first: from the very first one of the screen, tmux would
# take it for a screen that is cleared, and move it into its history.
_ERASE = "\x1b[C\x1b[J\r\x1b[K"
_UNBROKEN, _BROKEN = "\x1b[?7l", "\x1b[?7h"
_open: list[_Line] = []


class _Line:
    """One thing at work; ``total`` is how much there is to do, ``None`` where nobody counts."""

    def __init__(self, doing: str, total: int | None) -> None:
        self.doing, self.total = doing, total
        self._bars: Any = None
        self._done = 0.0
        # What is done at once needs no line.
        self._drawn = time.monotonic() + _SOON

    def advance(self, done: float = 1) -> None:
        """Count ``done`` more."""
        self._done += done
        if time.monotonic() - self._drawn > _PERIOD:
            self.draw()

    def draw(self) -> None:
        """Put the line where the last one was."""
        self._drawn = time.monotonic()
        # One column stays free: a terminal breaks the line behind its last one.
        width = max(shutil.get_terminal_size().columns - 1, 10)
        text = self._bar(width) if self.total else f"{self.doing} ..."[:width]
        _write(f"{_ERASE}{_UNBROKEN}{text}{_BROKEN}\r")

    def _bar(self, width: int) -> str:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        if self._bars is None:
            self._bars = Progress(auto_refresh=False)
            self._bars.add_task(self.doing, total=self.total)
        # The terminal may have another width than a moment ago.
        bar = [BarColumn(bar_width=min(30, width - 45))] if width > 55 else []
        counts = [MofNCompleteColumn(), TimeLeft(True), TextColumn("left")]
        self._bars.columns = (TextColumn("{task.description}"), *bar, *counts)
        self._bars.update(self._bars.task_ids[0], completed=self._done)
        console = Console(file=sys.stderr, width=width, force_terminal=True)
        with console.capture() as shown:
            console.print(self._bars.get_renderable(), no_wrap=True, overflow="ellipsis")
        return shown.get().partition("\n")[0]


@contextmanager
def working(doing: str, total: int | None = None) -> Iterator[Callable[[float], None]]:
    """Name what is at work until the block ends; what it gives is called with how many of
    ``total`` are done since the last call."""
    if not is_live():
        yield lambda done: None
        return
    line = _Line(doing, total)
    _open.append(line)
    try:
        if total is None:
            line.draw()
        yield line.advance
    finally:
        _open.remove(line)
        _write(_ERASE)
        if _open:
            _open[-1].draw()


def counted(items: Iterable[T], doing: str, total: int) -> Iterator[T]:
    """``items`` one by one, the live line counting those that have been dealt with."""
    with working(doing, total) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def aside() -> Iterator[None]:
    """Take the line away while something else is printed."""
    if not _open:
        yield
        return
    _write(_ERASE)
    try:
        yield
    finally:
        _open[-1].draw()


def is_live() -> bool:
    """Whether standard error is a terminal whose cursor can be moved."""
    moves = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return moves and sys.stderr is not None and sys.stderr.isatty() and not _in_notebook()


def _in_notebook() -> bool:
    """Whether a notebook started this process: Jupyter gives ``!xfer train`` what passes for a
    terminal, and shows each drawing of the line below the last one."""
    environ = os.environ
    return "JPY_PARENT_PID" in environ or "backend_inline" in environ.get("MPLBACKEND", "")


def _write(text: str) -> None:
    """A terminal that is gone changes nothing of what is at work."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
