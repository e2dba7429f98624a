"""The jobs at work, redrawn in place on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xfer.core.errors import printable
from xfer.core.files import read_text


@dataclass
class Table:
    """One line a job: slot, number, what sets it apart, epoch and seconds. Nothing is drawn where
    the output is no terminal; there each job has its plain lines alone."""

    shown: bool = field(default_factory=lambda: sys.stdout.isatty())
    _lines: int = 0
    _began: dict[int, float] = field(default_factory=dict)

    def draw(self, jobs: Mapping[int, tuple[int, str, Path]]) -> None:
        """``jobs``: by slot the number, the overrides and the folder of its job."""
        if not self.shown:
            return
        self.clear()
        width = shutil.get_terminal_size().columns - 1
        for slot, (number, texts, folder) in sorted(jobs.items()):
            began = self._began.setdefault(number, time.monotonic())
            state = f"epoch {_epochs(folder)}, {time.monotonic() - began:.0f} s"
            print(printable(f"  slot {slot}  job {number}  {state}  {texts}")[:width])
        self._lines = len(jobs)
        sys.stdout.flush()

    def clear(self) -> None:
        """Take the lines away, so that others can be written."""
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="")
            self._lines = 0


def _epochs(folder: Path) -> int:
    try:
        return max(len(read_text(folder / "metrics.csv").splitlines()) - 1, 0)
    except (OSError, ValueError):
        return 0  # no epoch has ended
