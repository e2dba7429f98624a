"""Trials that fall behind end early: a callback that tells a sweep's study how a run is doing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from xfer.errors import XferError
from xfer.log import log
from xfer.resume import JOB
from xfer.storage import write_json
from xfer.sweep.study import PRUNED, first_line, open_trial
from xfer.types import Plain

if TYPE_CHECKING:
    from xfer.history import History


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
            pruned = int(json.loads(note.read_text())["epoch"])
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
        facts = json.loads((folder / JOB).read_text()).get("trial")
    except FileNotFoundError:
        return []  # no job of a sweep
    return [Pruning(facts, folder, history)] if facts else []
