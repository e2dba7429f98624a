"""The leaderboard of a sweep folder, from what its jobs left; without their data, without torch."""

from __future__ import annotations

from pathlib import Path

from xfer.core.files import write_text
from xfer.core.log import log
from xfer.report import plot
from xfer.report.page import lay_out
from xfer.sweep.leaderboard import html_page, listing, plots
from xfer.sweep.leaderboard.baseline import Compose, baseline
from xfer.sweep.leaderboard.importance import importance
from xfer.sweep.leaderboard.ranking import duel, groups, rank
from xfer.sweep.leaderboard.read_sweep import read

__all__ = ["write"]


def write(folder: Path, compose: Compose | None = None) -> Path:
    """Write ``leaderboard.csv``, ``.md`` and ``.html`` into a sweep's ``folder``, and its figures.

    Every job is listed, whatever became of it. With ``compose``, which gives the configuration that
    overrides make, the jobs that are the experiment as it is are marked where the sweep names no
    baseline. Logs the verdict and returns the path of the HTML page. Raises ConfigError when
    ``folder`` is no sweep, OutputError when it cannot be written.
    """
    sweep = read(folder)
    rows = rank(sweep, baseline(sweep, compose))
    tests = duel(rows, sweep.objectives[0].split), importance(sweep)
    with plot.style():
        built = {
            "trials": plots.trials(sweep, rows),
            "importance": plots.bars(tests[1]),
            "pareto": plots.pareto(sweep, rows),
        }
        paths = {
            name: plot.save(figure, folder / "figures" / f"{name}.png")
            for name, figure in built.items()
        }
    drawn = {name: path for name, path in paths.items() if path}
    write_text(folder / "leaderboard.csv", listing.text(sweep, rows))
    lines = html_page.verdict(sweep, rows)
    card = {
        "title": f"{sweep.experiment}, leaderboard",
        "verdict": lines,
        "command": html_page.command(rows),
        "sections": html_page.sections(sweep, rows, groups(sweep), tests, drawn),
        "captions": html_page.CAPTIONS,
        "drawn": drawn,
    }
    lay_out(folder / "leaderboard", card)
    for line in lines:
        log.info(line)
    return folder / "leaderboard.html"
