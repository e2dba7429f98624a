"""The order of an epoch, from top to bottom: what happens at each moment of a fit.

Lightning calls these methods in the order in which they stand here. The forward pass, the backward
pass and the step of the optimizer are its own (:mod:`xfer.training.module` has the loss), as is
when it validates: after the last step of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from xfer.core.errors import plural
from xfer.core.log import log
from xfer.core.signals import install, stop

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from xfer.core.types import Plain
    from xfer.training.callbacks.freeze_phase import Phases
    from xfer.training.callbacks.progress import History
    from xfer.training.module import Classifier

    Prunes = Callable[[History], bool]
    """Whether a run ends after the last epoch of its history."""

    Shows = Callable[[History], None]
    """Shows the history somewhere as it stands."""


class Timeline(pl.Callback):
    """Has the ``phases`` entered, the network validated and the ``history`` written, each in its
    turn; ``prunes`` is asked on rank 0 alone, and the others do as it says. ``shows`` is rank 0's.

    Its state is in the resume file, so that a run that is resumed stands where it stood.
    """

    def __init__(
        self, phases: Phases, history: History, prunes: Prunes | None, shows: Shows | None = None
    ) -> None:
        self.phases, self.history, self.prunes, self.shows = phases, history, prunes, shows
        self.group = history.group
        self.begun = False
        """Whether everything is restored that a resume file holds."""

    def state_dict(self) -> Plain:
        """The records of the phases and of the epochs."""
        return {"phases": self.phases.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: Plain) -> None:
        """Continue saved records."""
        self.phases.load_state_dict(state["phases"])
        self.history.load_state_dict(state["history"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Stand where the first or the resumed epoch begins; stop where a killed run stopped."""
        self.begun = True
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        others = self.history.note_ranks(step)
        if step and self.group.leads:
            log.info(f"resumed in epoch {epoch}, after step {step}{others}")
        self._enter_phase(pl_module)
        self.history.remove_later_copies()
        if self.history.rows:
            self._stop_early(trainer)
        self.history.clock.begin_epoch()
        install()
        if self.history.rows:
            # Whether the last epoch was pruned, or looked at at all, is not in its resume file.
            self._stop_where_pruned(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Enter the next phase when its time has come. From here on a signal waits for the end of
        the step in progress."""
        self._enter_phase(pl_module)
        stop.waits = True
        self.history.clock.begin_steps()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Classifier, batch: Any, batch_idx: int
    ) -> None:
        """A step begins: its batch is there, its random numbers are its own."""
        self.history.clock.begin_step()
        pl_module.begin_step(batch_idx)

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Classifier, optimizer: Optimizer
    ) -> None:
        """The gradients are there: all of the adapters', and none of them NaN or Inf."""
        self.phases.check_adapters(pl_module)
        pl_module.check_gradient(optimizer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step ends: average, copy every N steps, and the place where a signal stops the run."""
        self.history.clock.end_step()
        pl_module.average()
        done, each = batch_idx + 1, trainer.accumulate_grad_batches
        if done % each == 0:
            # After the last batch the validation is still to come: the epoch's end saves it.
            last_of_epoch = done == trainer.num_training_batches
            if self.history.keep_step(trainer, done // each) and not last_of_epoch:
                self.history.save_resume(trainer)
            if not last_of_epoch and self._signalled():
                self.history.save_resume(trainer)
                self._obey(trainer)
        self.history.clock.wait_for_data()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Validate the averaged weights, where there are any."""
        pl_module.begin_validation()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Compute every metric of the validation images, also for the user's callbacks."""
        pl_module.score()
        if self.history.plan.specs.callbacks:
            # Where Lightning's callbacks look for them, as ``val_loss``.
            pl_module.log_dict(pl_module.scores, logger=False, sync_dist=self.group.ranks > 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Go back to the weights that train."""
        pl_module.end_validation()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Row, best, record, early stop, copy, resume file, page; then whoever ends the run may."""
        row = self.history.add_row(trainer, pl_module)
        self.history.update_best(row, pl_module)
        self.history.write(row)
        self._stop_early(trainer)
        self.history.keep_epoch(trainer)
        self.history.save_resume(trainer)
        if self.shows is not None:
            self.shows(self.history)
        if self._signalled():
            self._obey(trainer)
        # The other ranks stop when the first one says so, wherever they are.
        stop.waits = not self.group.leads
        if not stop.waits:
            self._obey(trainer)  # one that came since the ranks asked each other
        self._stop_where_pruned(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Make the network whole again."""
        self.phases.features.leave()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Make the network whole again."""
        self.phases.features.leave()

    def _enter_phase(self, module: Classifier) -> None:
        """The phase that is due, then its features; the epoch's time leaves these out."""
        before = self.phases.features.seconds
        self.phases.enter_due(module, self.history.best)
        self.phases.features.ready(module.current_epoch)
        self.history.clock.exclude(self.phases.features.seconds - before)

    def _stop_early(self, trainer: pl.Trainer) -> None:
        """End the run after ``trainer.patience`` epochs of the last phase without a better one; a
        later phase would never begin."""
        patience, best = self.history.plan.specs.trainer.patience, self.history.best
        start = self.phases.last_phase_from
        if not patience or not best or start is None:
            return
        if self.history.rows[-1]["epoch"] - max(best["epoch"], start) >= patience:
            log.info(f"stopped early: no better {best['metric']} for {plural(patience, 'epoch')}")
            trainer.should_stop = True

    def _signalled(self) -> bool:
        """Whether a signal has reached any rank; all of them stop after the same step."""
        number = self.group.all_reduce_max(stop.asked or 0)
        # One that comes while the ranks ask each other is for the next time: it must not be lost.
        stop.asked = number or stop.asked
        return number > 0

    def _obey(self, trainer: pl.Trainer) -> None:
        stop.obey(f" after step {trainer.global_step}")

    def _stop_where_pruned(self, trainer: pl.Trainer) -> None:
        if self.group.broadcast(self.prunes is not None and self.prunes(self.history)):
            trainer.should_stop = True
