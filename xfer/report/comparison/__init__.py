"""Two runs or more beside each other, from what they left; without their data, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xfer.core.errors import CombinationError, printable
from xfer.report.board import put_side_by_side
from xfer.report.comparison import comparison_page
from xfer.report.comparison.paired import check_together, pairs
from xfer.report.comparison.read_run import RunRecord, read_run
from xfer.report.format import short

__all__ = ["compare", "read_all", "terminal_lines"]

MOST = 12
"""More runs than that are a sweep, which has a leaderboard."""
NAMES = "ABCDEFGHIJKL"


def read_all(folders: Sequence[str]) -> list[RunRecord]:
    """The runs in ``folders``, in that order, called A, B and so on.

    Raises CombinationError for the same run twice and for more than there are names for,
    CommandError for a folder that is no finished run with predictions, or whose files no run
    writes, and for runs that share no class or no image.
    """
    if len(folders) > MOST:
        what = f"{len(folders)} runs are more than {MOST}"
        raise CombinationError("compare.runs", what, f"name at most {MOST}", 41)
    places = [Path(text).expanduser() for text in folders]
    resolved = [place.resolve() for place in places]
    for place, path in zip(places, resolved, strict=True):
        if resolved.count(path) > 1:
            what = f"'{place}' is named more than once"
            raise CombinationError("compare.runs", what, "name each run once", 41)
    runs = [read_run(place, name) for place, name in zip(places, NAMES, strict=False)]
    check_together(runs)
    return runs


def compare(runs: Sequence[RunRecord], folder: Path) -> Path:
    """Write ``compare.html`` and ``compare.md`` into ``folder``; the path of the first.

    Raises OutputError when they cannot be written.
    """
    tested = pairs(runs)
    names = " and ".join([", ".join(run.name for run in runs[:-1]), runs[-1].name])
    experiments = ", ".join(dict.fromkeys(short(run.experiment, 60) for run in runs))
    page = {
        "title": f"{names}: {experiments}",
        "verdict": comparison_page.verdict(runs, tested),
        "command": "",
        "sections": comparison_page.panels(runs, tested, folder),
    }
    put_side_by_side(folder / "compare", page)
    return folder / "compare.html"


def terminal_lines(runs: Sequence[RunRecord]) -> list[str]:
    """The answer in a few lines: a row a run, then a row a pair."""
    head = ("val accuracy", "95 % interval", "loss")
    if runs[0].several:
        head = ("val mAP", "macro F1", "loss")
    rows = [("", *head, "run")]
    rows += [(run.name, *comparison_page.shown(run.scores.get("val", {})), "") for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    places = ["run", *(printable(run.folder) for run in runs)]
    lines = [
        "  ".join([*(f"{text:<{w}}" for text, w in zip(row, widths, strict=False)), place])
        for row, place in zip(rows, places, strict=True)
    ]
    return lines + [pair.in_words() for pair in pairs(runs)]
