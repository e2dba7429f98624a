"""The leaderboard of a sweep folder, from what its jobs left; without their data, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xfer.core.files import write_text
from xfer.core.log import log
from xfer.report.board import put_side_by_side
from xfer.report.card import Section
from xfer.report.page import Reload
from xfer.sweep.leaderboard import html_page, listing, overlaid
from xfer.sweep.leaderboard.importance import importance
from xfer.sweep.leaderboard.ranking import Compose, RankedJob, baseline, duel, groups, rank
from xfer.sweep.leaderboard.read_sweep import SweepRecord, read

__all__ = ["write", "write_live"]

_RELOAD_S, _LONG = 5, 24 * 3600


def write(folder: Path, compose: Compose | None = None) -> Path:
    """Write ``leaderboard.csv``, ``.md`` and ``.html`` into a sweep's ``folder``.

    Every job is listed, whatever became of it. With ``compose``, which gives the configuration that
    overrides make, the jobs that are the experiment as it is are marked where the sweep names no
    baseline. Logs the verdict and returns the path of the HTML page. Raises ConfigError when
    ``folder`` is no sweep, OutputError when it cannot be written.
    """
    sweep = read(folder)
    rows = rank(sweep, baseline(sweep, compose))
    tests = duel(rows, sweep.objectives[0].split), importance(sweep)
    write_text(folder / "leaderboard.csv", listing.text(sweep, rows))
    _lay_out(sweep, rows, html_page.sections(sweep, rows, groups(sweep), tests))
    for line in html_page.verdict(sweep, rows):
        log.info(line)
    return folder / "leaderboard.html"


def write_live(folder: Path, at_work: bool = True, within: int = _LONG) -> None:
    """Write the pages of a sweep that has not ended: its jobs so far, their curves and parameters,
    without what is made of all of them. While the sweep is ``at_work`` the page reads itself
    again, until :func:`write` replaces it, and says so where it is not written again ``within`` so
    many seconds.

    Raises as :func:`write` does.
    """
    sweep = read(folder)
    rows = rank(sweep, baseline(sweep, None))
    charts = overlaid.charts(sweep, rows)
    live = Reload(_RELOAD_S, within, html_page.SILENT) if at_work else None
    _lay_out(sweep, rows, html_page.so_far(sweep, rows, charts), live)


def _lay_out(
    sweep: SweepRecord,
    rows: Sequence[RankedJob],
    parts: Sequence[Section],
    live: Reload | None = None,
) -> None:
    page = {
        "title": f"{sweep.experiment}, leaderboard",
        "verdict": html_page.verdict(sweep, rows),
        "command": html_page.command(rows),
        "sections": parts,
    }
    said = html_page.at_work(rows) if live else ""
    put_side_by_side(sweep.folder / "leaderboard", page, said, live)
