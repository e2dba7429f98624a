"""``report.html`` while the run is at work: what is known so far, on a page that reloads itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from xfer.config.verbs import quoted
from xfer.core.errors import OutputError, XferError
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.report.format import number, seconds
from xfer.report.page import Reload, render_live

if TYPE_CHECKING:
    from xfer.report.inputs import Work

PAUSE = 1.0
"""Epochs that are shorter than so many seconds share one writing of the page."""
_SOONEST, _LATEST = 3, 60
_EPOCHS, _SILENT = 5, 900
"""So many epochs, or seconds where none has ended, may pass until the run is called silent."""


class LivePage:
    """The page of one run. ``spent`` are the seconds that went into it.

    It is written when a stage begins and after every epoch, atomically: a kill leaves the page
    before it or a whole one. Where the run ends too early, the page says so and reloads no more.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.spent = work, 0.0
        self.asked = "report" in work.plan.specs.stages
        self.stage, self.rows, self.best = "", list[Plain](), dict[str, object]()
        self._written = -PAUSE

    def begin(self, stage: str) -> None:
        """A stage is at work from here on."""
        self.stage = stage
        self._write("running", f"Running: {self._doing()}", self._every())

    def epoch(self, rows: Sequence[Plain], best: Plain | None) -> None:
        """An epoch has ended: ``rows`` are those of ``metrics.csv`` so far."""
        self.rows, self.best = list(rows), dict(best or {})
        if time.monotonic() - self._written >= PAUSE:
            self._write("running", f"Running: {self._doing()}", self._every())

    def end(self, error: BaseException) -> None:
        """The run ends here without its card."""
        failed = isinstance(error, Exception)
        why = f": {error.where}: {error.what}" if isinstance(error, XferError) else ""
        state = "failed" if failed else "interrupted"
        try:
            self._write(state, f"{state.capitalize()} in {self._doing()}{why}", 0)
        except OutputError as full:
            # A full disk is often the very error that the run ends with.
            log.warning(f"report.html is not written: {full.what}")

    def _doing(self) -> str:
        stage = self.stage or "the first stage"
        if self.stage != "fit" or not self.rows:
            return stage
        return f"{stage}, {self.rows[-1]['epoch']} of {self.work.plan.epochs} epochs done"

    def _every(self) -> int:
        """Seconds between two looks at the page: about an epoch."""
        last = self.rows[-1].get("epoch_s") or 0.0 if self.rows else 5.0
        return round(min(_LATEST, max(_SOONEST, last)))

    def _write(self, status: str, lead: str, every: int) -> None:
        if not self.asked:
            return
        began, work = time.perf_counter(), self.work
        result = {
            "experiment": work.plan.specs.experiment,
            "status": status,
            "best": work.fitted.best if work.fitted else self.best or None,
            "scores": {name: score.to_plain() for name, score in work.scores.items()},
            "params": work.plan.parameter_counts if work.plan.phases else None,
            "source": work.plan.card.source,
            "warnings": [*work.plan.facts["remarks"], *work.warnings],
            "command": work.plan.specs.command,
        }
        details = {"history": work.fitted.rows if work.fitted else self.rows}
        lines = [lead, *self._lines(every)]
        render_live(work.folder, result, work.plan.facts, details, lines, self._reload(every))
        self._written = time.monotonic()
        self.spent += time.perf_counter() - began

    def _reload(self, every: int) -> Reload | None:
        """How the page is read anew, and when it is to say that the run has fallen silent."""
        if not every:
            return None
        usual, within = "no stage usually is at work so long without a word", _SILENT
        if self.stage == "fit" and self.rows:
            longest = max(row.get("epoch_s") or 0.0 for row in self.rows)
            within = round(max(_LATEST, every + _EPOCHS * longest))
            usual = f"an epoch took at most {seconds(longest)}"
        resume = f"xfer resume {quoted(str(self.work.folder))}"
        said = f"the run has probably been killed. To finish it, type {resume}"
        return Reload(every, within, f"Nothing has been written here for {{}}, and {usual}: {said}")

    def _lines(self, every: int) -> list[str]:
        lines = []
        if self.best:
            epoch, metric = number(self.best["epoch"]), self.best["metric"]
            lines.append(f"Best epoch {epoch}, by {metric} {number(self.best['value'])}")
        if every and self.stage == "fit" and self.rows:
            each = statistics.median(row["epoch_s"] for row in self.rows)
            left = self.work.plan.epochs - self.rows[-1]["epoch"]
            lines.append(f"About {seconds(each * left)} of training left at most")
        again = f"; this page reloads itself every {every} s" if every else ""
        return [*lines, f"Written at {datetime.now():%H:%M:%S}{again}"]


@contextmanager
def live_page(work: Work) -> Iterator[LivePage]:
    """The page of the run ``work``, until its card takes its place or the run ends too early."""
    page = LivePage(work)
    try:
        yield page
    except BaseException as error:
        page.end(error)
        raise
