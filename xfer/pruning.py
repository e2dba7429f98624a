"""Trials that fall behind end early: a callback that tells a sweep's study how a run is doing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import pytorch_lightning as pl
from typing_extensions import TypedDict

from xfer.checked import checked
from xfer.errors import ResumeError, XferError
from xfer.files import read_json
from xfer.log import log
from xfer.resume import JOB, START_ANEW
from xfer.storage import write_json
from xfer.sweep.study import PRUNED, first_line, open_trial
from xfer.types import Plain

if TYPE_CHECKING:
    from xfer.history import History


class _Note(TypedDict):
    epoch: int


class _Job(TypedDict):
    trial: NotRequired[Plain | None]


class Pruning(pl.Callback):
    """Reports the objective of every epoch, and stops the run where the study's pruner says so.

    Rank 0 alone talks to the storage; the others do as it says.
    """

    def __init__(self, facts: Plain, folder: Path, history: History) -> None:
        self.facts, self.folder, self.history = facts, folder, history
        self._trial: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide on the epoch that a killed run goes on behind: whether it was pruned there, or
        looked at at all, is not in its resume file."""
        if self.history.rows:
            self._decide(trainer, self.history.rows[-1]["epoch"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the record of the epoch, which has the objective."""
        self._decide(trainer, trainer.current_epoch + 1)

    def _decide(self, trainer: pl.Trainer, epoch: int) -> None:
        team = self.history.team
        if team.told(team.leads and self._is_behind(epoch)):
            trainer.should_stop = True

    def _is_behind(self, epoch: int) -> bool:
        metric, note = self.facts["metric"], self.folder / PRUNED
        if note.exists():
            # Others have ended since: the pruner might say something else now.
            try:
                pruned = int(checked(_Note, read_json(note))["epoch"])
            except (OSError, ValueError) as error:
                what = f"is not what a run writes ({getattr(error, 'strerror', None) or error})"
                raise ResumeError(note, what, START_ANEW, 29) from error
            self._reach(lambda: self._mark(pruned))
            return epoch >= pruned
        value = float(self.history.rows[-1][metric])
        if not self._reach(lambda: self._compare(epoch, value)):
            return False
        write_json(note, {"epoch": epoch, "metric": metric, "value": value})
        self._reach(lambda: self._mark(epoch))
        log.info(f"pruned after epoch {epoch}: {metric} {value:.4f} is behind other trials")
        return True

    def _compare(self, epoch: int, value: float) -> bool:
        trial = self._opened()
        if trial is None:
            return False  # it has ended before and is run again: nothing is compared
        if epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epoch)
        # Without a best epoch there would be nothing to keep.
        early = not self.history.best or epoch < self.facts["epochs"]
        return not early and bool(trial.should_prune())

    def _mark(self, epoch: int) -> bool:
        if (trial := self._opened()) is not None:
            trial.set_user_attr("pruned", epoch)
        return True

    def _opened(self) -> Any:
        if self._trial is None:
            self._trial = open_trial(self.facts)
        return self._trial

    def _reach(self, call: Callable[[], bool]) -> bool:
        """What the study says; no, with a warning, where its storage fails: the run is worth more
        than its pruning. The sweep itself ends with that failure, or learns of the end."""
        try:
            return call()
        except XferError:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            said = first_line(error)
            log.warning(f"the study does not answer, so that nothing is pruned here: {said}")
            return False


def pruning(folder: Path, history: History) -> list[pl.Callback]:
    """The callback for a run whose sweep prunes, else nothing."""
    try:
        facts = checked(_Job, read_json(folder / JOB)).get("trial")
    except FileNotFoundError:
        return []  # no job of a sweep
    except (OSError, ValueError) as error:
        what = f"is not what a sweep writes ({getattr(error, 'strerror', None) or error})"
        raise ResumeError(folder / JOB, what, START_ANEW, 29) from error
    return [Pruning(facts, folder, history)] if facts else []
