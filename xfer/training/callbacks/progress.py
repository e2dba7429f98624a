"""The record of a fit, written after every epoch in one order: best, history, resume file."""

from __future__ import annotations

import csv
import signal
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from xfer.core.checksum import sealed
from xfer.core.files import read_text, write_rows
from xfer.core.log import log
from xfer.core.run_folder import LAST, PREVIOUS, best_checkpoint, checkpoints
from xfer.core.signals import install, stop
from xfer.core.types import Plain
from xfer.evaluation import metrics
from xfer.training.fit_health import alarm, terms
from xfer.weights.formats.checkpoint_format import FORMAT, Snapshot, identity, write_snapshot

if TYPE_CHECKING:
    from xfer.plan.plan import Plan
    from xfer.training.distributed.group import Team
    from xfer.training.module import Classifier


CLOCKS = ("epoch_s", "step_ms", "data_share")
"""Columns of ``metrics.csv`` that tell of time, and so are never the same twice."""


class History(pl.Callback):
    """Keeps a row an epoch, the best epoch, and every file under ``checkpoints/``.

    All of it is in the resume file, so a run that goes on ends with the same history.
    Set from outside: ``last_phase_from``, the epoch (from 0) at which the last phase began, and
    ``begun``, once everything is restored that a resume file holds.
    """

    def __init__(self, plan: Plan, folder: Path, team: Team) -> None:
        self.plan, self.folder, self.team = plan, checkpoints(folder), team
        self.best_path = best_checkpoint(folder)
        self.csv = folder / "metrics.csv"
        self.rows: list[Plain] = []
        self.best: Plain | None = None
        self.kept: list[str] = []
        self.last_phase_from: int | None = None
        self.begun = False
        self._step_s: list[float] = []
        self._waited = 0.0
        self._started = self._ended = self._epoch_started = time.perf_counter()

    def state_dict(self) -> Plain:
        """Rows, best and kept copies, in plain types.

        Without times, which ``metrics.csv`` has: equal runs write equal files.
        """
        rows = [row | dict.fromkeys(CLOCKS, 0.0) for row in self.rows]
        return {"rows": rows, "best": self.best, "kept": self.kept}

    def load_state_dict(self, state: Plain) -> None:
        """Go on with a saved record, and the times that were noted beside it."""
        times = self._times()
        self.rows = [row | times.get(row["epoch"], {}) for row in state["rows"]]
        self.best, self.kept = state["best"], state["kept"]

    def _times(self) -> dict[int, Plain]:
        """How long each epoch took, from the record that an earlier process left."""
        try:
            table = csv.DictReader(read_text(self.csv).splitlines())
            return {int(row["epoch"]): {k: float(row[k]) for k in CLOCKS} for row in table}
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return {}  # no number of the run depends on it

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove copies made after the state that a killed run goes on from; end where it did."""
        for file in self.folder.glob(f"{self.plan.specs.checkpoint.prefix}[-_]*.ckpt"):
            if self.team.leads and file.stem not in self.kept:
                file.unlink()
        if self.rows:
            self._stop_early(trainer)
        self._epoch_started = time.perf_counter()
        install()

    def exclude(self, seconds: float) -> None:
        """Leave ``seconds`` that were spent on features out of the epoch's time."""
        self._epoch_started += seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch's steps; from here on a signal waits for the step in progress."""
        stop.waits = True
        self._step_s.clear()
        self._waited, self._ended = 0.0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the step's clock; what has passed since the last step was spent on the data."""
        self._started = time.perf_counter()
        self._waited += self._started - self._ended

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the step's clock; keep a copy every N steps."""
        self._step_s.append(time.perf_counter() - self._started)
        policy, step = self.plan.specs.checkpoint, trainer.global_step
        last_of_epoch = batch_idx + 1 == trainer.num_training_batches
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if policy.every_n_steps and stepped and step % policy.every_n_steps == 0:
            in_epoch = (batch_idx + 1) // trainer.accumulate_grad_batches
            self._keep(trainer, f"{policy.prefix}-{trainer.current_epoch + 1}_{in_epoch}")
            # After the last batch the validation is still to come: the epoch's end saves it.
            if not last_of_epoch:
                self._save_resume(trainer, "last")
        if stepped and not last_of_epoch and self._asked():
            self._save_resume(trainer, "last")
            self._obey(trainer)
        self._ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Best, then history, then the resume file."""
        row = self._row(trainer, pl_module)
        # An epoch ends here: writing its files is the next one's time.
        self._epoch_started = time.perf_counter()
        self.rows.append(row)
        self._update_best(row, pl_module)
        if self.team.leads:
            write_rows(self.csv, self.rows)
            self._say(row)
            if line := alarm(self.rows, terms(self.plan)):
                log.warning(line)
        self._stop_early(trainer)
        policy = self.plan.specs.checkpoint
        if policy.every_n_epochs and row["epoch"] % policy.every_n_epochs == 0:
            self._keep(trainer, f"{policy.prefix}_epoch{row['epoch']}")
        self._save_resume(trainer, "last")
        if self._asked():
            self._obey(trainer)
        # The other ranks stop when the first one says so, wherever they are.
        stop.waits = not self.team.leads

    def _asked(self) -> bool:
        """Whether a signal has reached any rank; all of them stop behind the same step."""
        stop.asked = self.team.all_reduce_max(stop.asked or 0) or None
        return stop.asked is not None

    def _obey(self, trainer: pl.Trainer) -> None:
        if stop.asked and self.team.leads:
            name, step = signal.Signals(stop.asked).name, trainer.global_step
            log.info(f"stopped by {name} after step {step}; checkpoint.resume=auto goes on")
        stop.obey()

    def _row(self, trainer: pl.Trainer, module: Classifier) -> Plain:
        found, first = module.found, ("val_loss", "val_acc")
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss": module.epoch_loss(),
            **{name: found[name] for name in first},
            "lr": max(float(group["lr"]) for group in trainer.optimizers[0].param_groups),
            "epoch_s": time.perf_counter() - self._epoch_started,
            "step_ms": statistics.median(self._step_s) * 1000 if self._step_s else 0.0,
            **{name: value for name, value in found.items() if name not in first},
            "data_share": self._waited / (self._waited + sum(self._step_s))
            if self._step_s
            else 0.0,
        }
        for kind in trainer.loggers:
            kind.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
        return row

    def _update_best(self, row: Plain, module: Classifier) -> None:
        policy = self.plan.specs.checkpoint
        value = row[policy.monitor]
        held = self.best["value"] if self.best else None
        if not policy.looks_at(row["epoch"]) or not policy.improves(value, held):
            return
        self.best = {
            "metric": policy.monitor,
            "value": value,
            "epoch": row["epoch"],
            "step": row["step"],
        }
        module.check_numbers()
        if not self.team.leads:
            return
        frozen = module.fingerprint if module.frozen else None
        state = module.best_state()
        run = identity(self.plan.facts)
        snapshot = Snapshot(self.plan.card, state, self.best, frozen, run)
        write_snapshot(self.best_path, snapshot)

    def _say(self, row: Plain) -> None:
        epochs = self.plan.specs.trainer.epochs
        shown = (
            f"val {metric.name} {row[f'val_{metric.name}']:.4f}"
            for metric in metrics.METRICS
            if metric.on_line and f"val_{metric.name}" in row
        )
        mark = "  best" if self.best and self.best["epoch"] == row["epoch"] else ""
        log.info(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train loss {row['train_loss']:.4f}  {'  '.join(shown)}  "
            f"epoch {row['epoch_s']:.2f} s, {row['step_ms']:.1f} ms a step{mark}"
        )

    def _stop_early(self, trainer: pl.Trainer) -> None:
        patience, start = self.plan.specs.trainer.patience, self.last_phase_from
        if not patience or not self.best or start is None:
            return  # a later phase would never begin
        if self.rows[-1]["epoch"] - max(self.best["epoch"], start) >= patience:
            metric = self.plan.specs.checkpoint.monitor
            log.info(f"stopped early: no better {metric} for {patience} epochs")
            trainer.should_stop = True

    def _keep(self, trainer: pl.Trainer, name: str) -> None:
        self.kept.append(name)
        self._save_resume(trainer, name)
        while 0 < self.plan.specs.checkpoint.keep < len(self.kept):
            old = self.folder / f"{self.kept.pop(0)}.ckpt"
            if self.team.leads:
                old.unlink(missing_ok=True)

    def _save_resume(self, trainer: pl.Trainer, name: str) -> None:
        module: Any = trainer.lightning_module
        module.check_numbers()
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    def close(self) -> None:
        """Let the file before the last one go, once the last one is known to be whole."""
        if sealed(self.folder / LAST):
            (self.folder / PREVIOUS).unlink(missing_ok=True)

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Classifier, checkpoint: dict[str, Any]
    ) -> None:
        """Make every resume file a checkpoint that explains itself."""
        checkpoint["xfer"] = {
            "format": FORMAT,
            "card": self.plan.card.to_plain(),
            "progress": {"epoch": trainer.current_epoch + 1, "step": trainer.global_step},
            "frozen": pl_module.fingerprint if pl_module.frozen else None,
            "run": identity(self.plan.facts),
        }
