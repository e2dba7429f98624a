"""Trials that fall behind end early: a sweep's study hears how a run is doing, and may end it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from xfer.core.errors import XferError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.read_back import read_checked
from xfer.core.run_folder import JOB
from xfer.core.types import Plain
from xfer.plan.resume import START_ANEW
from xfer.sweep.study import PRUNED, first_line, open_trial

if TYPE_CHECKING:
    from xfer.training.callbacks.progress import History


class _Note(TypedDict):
    epoch: int


class _Watched(TypedDict):
    trial: NotRequired[Plain | None]


class Pruner:
    """Reports the objective of every epoch, and says whether the study's pruner ends the run.

    Rank 0 alone has one.
    """

    def __init__(self, facts: Plain, folder: Path) -> None:
        self.facts, self.folder = facts, folder
        self._trial: Any = None

    def __call__(self, history: History) -> bool:
        """Whether the run ends after the last epoch of ``history``. Asked again about an epoch, as
        by a run that resumes after it, it says the same."""
        epoch = int(history.rows[-1]["epoch"])
        metric, note = self.facts["metric"], self.folder / PRUNED
        if earlier := read_checked(note, _Note, START_ANEW, 29):
            # Others have ended since: the pruner might say something else now.
            self._ask(lambda trial: trial.set_user_attr("pruned", earlier["epoch"]))
            return epoch >= int(earlier["epoch"])
        value = float(history.rows[-1][metric])

        def compare(trial: Any) -> bool:
            if epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(value, epoch)
            # Without a best epoch there would be nothing to keep.
            early = not history.best or epoch < self.facts["epochs"]
            return not early and bool(trial.should_prune())

        if not self._ask(compare):
            return False
        write_json(note, {"epoch": epoch, "metric": metric, "value": value})
        self._ask(lambda trial: trial.set_user_attr("pruned", epoch))
        log.info(f"pruned after epoch {epoch}: {metric} {value:.4f} is behind other trials")
        return True

    def _ask(self, question: Callable[[Any], bool | None]) -> bool:
        """The study's answer about the trial; no where that has ended before and is run again. No
        as well, with a warning, where the storage fails: the run is worth more than its pruning,
        and the sweep itself ends with that failure, or learns of the end."""
        try:
            if self._trial is None:
                self._trial = open_trial(self.facts)
            return self._trial is not None and bool(question(self._trial))
        except XferError:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            said = first_line(error)
            log.warning(f"the study does not answer, so nothing is pruned here: {said}")
            return False


def pruner(folder: Path) -> Pruner | None:
    """What prunes the run in ``folder``; ``None`` where no sweep does."""
    job = read_checked(folder / JOB, _Watched, START_ANEW, 29, writer="a sweep") or {}
    return Pruner(job["trial"], folder) if job.get("trial") else None
