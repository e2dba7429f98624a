"""Pages that put runs beside each other: tables that sort, intervals drawn, panels of curves.

A page is one HTML file that fetches nothing, and the same as Markdown. Its one script is named by
its hash in the content policy: without it the tables stand in their own order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from xfer.core.types import Plain
from xfer.report.format import ABSENT
from xfer.report.page import Reload, lay_out
from xfer.report.tables import Cell

OPEN = 100
"""Rows of a table that stands open on such a page."""


def put_side_by_side(
    path: Path, page: Plain, at_work: str = "", live: Reload | None = None
) -> None:
    """Write ``path`` with the suffixes ``.html`` and ``.md``.

    ``page`` has ``title``, ``verdict`` (lines), ``command`` and ``sections`` (panels);
    ``at_work`` is a line that says what is still at work, and while that is ``live`` the page is
    read anew. Raises OutputError when it cannot be written.
    """
    script = "board.js live.js" if live else "board.js"
    extra: Plain = {"at_work": at_work, "live": live, "script": script, "charts_in_words": True}
    lay_out(path, {**page, **extra}, "board")


def reaches(ends: Sequence[Sequence[float] | None], values: Sequence[float | None]) -> list[Cell]:
    """The intervals with these ``ends`` as texts, each drawn with its value on the scale of all."""
    rows = [
        (end[0], value, end[1]) if end and value is not None else None
        for end, value in zip(ends, values, strict=True)
    ]
    low = min((row[0] for row in rows if row), default=0.0)
    wide = max((row[2] for row in rows if row), default=0.0) - low

    def drawn(row: tuple[float, float, float]) -> Cell:
        a, at, b = (5 + 90 * (value - low) / (wide or 1.0) for value in row)
        drawing = Markup(
            '<svg class="interval" viewBox="0 0 100 14" width="100" height="14" aria-hidden="true">'
            '<path d="M5 7H95" class="track"/><path d="M{:.1f} 7H{:.1f}" class="reach"/>'
            '<circle cx="{:.1f}" cy="7" r="3.5"/></svg>'
        ).format(a, b, at)
        return Cell(f"{row[0]:.3f} to {row[2]:.3f}", row[0], drawing=drawing)

    return [drawn(row) if row else Cell(ABSENT) for row in rows]


def card_of(run: Path, folder: Path) -> str:
    """The run card in ``run`` as a link from a page in ``folder``; empty where there is none."""
    card = run / "report.html"
    there = card.is_file() and not card.is_symlink()
    return quote(os.path.relpath(card.resolve(), folder.resolve())) if there else ""
