"""A CSV file that a spreadsheet may open."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from xfer.core.files import atomic_write


def cell(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet runs as a formula."""
    return "'" + text if _FORMULA.match(text) else text


# The four signs also in full width, which some spreadsheets take for the same. Signed numbers, and
# paths below a folder that is called so, are what they are: `-1`, `+1`, `-1/0.jpg`.
_FORMULA = re.compile(r"[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d[\w./ -]*\Z)")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write ``rows``, which may come one by one, as UTF-8, atomically. Raises OutputError."""

    def fill(part: Path) -> None:
        # surrogateescape: as write_text has it.
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)

    atomic_write(path, fill)
