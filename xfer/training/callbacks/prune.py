"""A run that a sweep prunes stops on all of its ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl

from xfer.training.callbacks.progress import History

Prunes = Callable[[History], bool]
"""Whether a run ends behind the last epoch of its history."""


class Pruned(pl.Callback):
    """Stops the run behind an epoch where rank 0's ``prunes`` says so; the others do as it says."""

    def __init__(self, history: History, prunes: Prunes | None) -> None:
        self.history, self.prunes = history, prunes
        self._asks = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask about the epoch that a killed run goes on behind: whether it was pruned there, or
        looked at at all, is not in its resume file."""
        self._asks = self.history.team.broadcast(self.prunes is not None)
        if self.history.rows:
            self._ask(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the record of the epoch, which has the objective."""
        self._ask(trainer)

    def _ask(self, trainer: pl.Trainer) -> None:
        if not self._asks:
            return
        if self.history.team.broadcast(self.prunes is not None and self.prunes(self.history)):
            trainer.should_stop = True
