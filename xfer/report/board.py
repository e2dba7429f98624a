"""Pages that put runs beside each other: tables that sort, intervals drawn, panels of curves.

A page is one HTML file that fetches nothing, and the same as Markdown. Its one script is named by
its hash in the content policy: without it the tables stand in their own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from xfer.core.types import Plain
from xfer.report.page import Reload, lay_out

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


def intervals(rows: Sequence[tuple[float, float, float] | None]) -> list[Markup]:
    """A small drawing a row of (low, value, high), all on one scale; nothing for ``None``."""
    known = [row for row in rows if row]
    if not known:
        return [Markup()] * len(rows)
    low, high = min(row[0] for row in known), max(row[2] for row in known)
    wide = (high - low) or 1.0

    def drawn(row: tuple[float, float, float]) -> Markup:
        a, at, b = (5 + 90 * (value - low) / wide for value in row)
        return Markup(
            '<svg class="interval" viewBox="0 0 100 14" width="100" height="14" aria-hidden="true">'
            '<path d="M5 7H95" class="track"/><path d="M{:.1f} 7H{:.1f}" class="reach"/>'
            '<circle cx="{:.1f}" cy="7" r="3.5"/></svg>'
        ).format(a, b, at)

    return [drawn(row) if row else Markup() for row in rows]
