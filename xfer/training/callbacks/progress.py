"""The record of a fit: a row an epoch, the best epoch, and the files under ``checkpoints/``."""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.checksum import checksum_holds
from xfer.core.errors import plural
from xfer.core.files import read_text, write_rows
from xfer.core.log import log
from xfer.core.run_folder import LAST, PREVIOUS, best_checkpoint, checkpoints
from xfer.core.types import Plain
from xfer.training.fit_health import alarm, terms
from xfer.weights.formats.checkpoint_format import Snapshot, identity, write_snapshot

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from xfer.plan.plan import Plan
    from xfer.training.distributed.group import ProcessGroup
    from xfer.training.module import Classifier


CLOCKS = ("epoch_s", "step_ms", "data_share")
"""Columns of ``metrics.csv`` that tell of time, and so are never the same twice."""


class Clock:
    """How long an epoch takes, a step, and the wait for its images."""

    def __init__(self) -> None:
        self.begin_epoch()
        self.begin_steps()

    def begin_epoch(self) -> None:
        """From here on the time is the next epoch's: the files of the last one as well."""
        self._epoch_started = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Leave ``seconds`` that were spent on features out of the epoch's time."""
        self._epoch_started += seconds

    def begin_steps(self) -> None:
        """Forget the last epoch's steps."""
        self._step_s: list[float] = []
        self._waited = 0.0
        self.wait_for_data()

    def wait_for_data(self) -> None:
        """What passes from here to the next step is spent on the data."""
        self._ended = time.perf_counter()

    def begin_step(self) -> None:
        """A batch is there."""
        self._started = time.perf_counter()
        self._waited += self._started - self._ended

    def end_step(self) -> None:
        """The step is taken."""
        self._step_s.append(time.perf_counter() - self._started)

    def times(self) -> dict[str, float]:
        """The epoch's, under the names of :data:`CLOCKS`."""
        spent = sum(self._step_s)
        return {
            "epoch_s": time.perf_counter() - self._epoch_started,
            "step_ms": statistics.median(self._step_s) * 1000 if self._step_s else 0.0,
            "data_share": self._waited / (self._waited + spent) if self._step_s else 0.0,
        }


class History:
    """Keeps a row an epoch, the best epoch, and every file under ``checkpoints/``.

    All of it is in the resume file, so that a run that is resumed ends with the same history.
    """

    def __init__(self, plan: Plan, folder: Path, group: ProcessGroup) -> None:
        self.plan, self.folder, self.group = plan, checkpoints(folder), group
        self.policy, self.csv = plan.specs.checkpoint, folder / "metrics.csv"
        self.best_path = best_checkpoint(folder)
        self.rows: list[Plain] = []
        self.best: Plain | None = None
        self.copies: list[str] = []
        self.ranks: list[Plain] = []
        self.clock = Clock()

    def state_dict(self) -> Plain:
        """Rows, best, the names of copies and, where they have changed, the ranks, in plain types.

        Without times, which ``metrics.csv`` has: equal runs write equal files.
        """
        rows = [row | dict.fromkeys(CLOCKS, 0.0) for row in self.rows]
        ranks = {"ranks": self.ranks} if self.ranks else {}
        return {"rows": rows, "best": self.best, "copies": self.copies, **ranks}

    def load_state_dict(self, state: Plain) -> None:
        """Continue a saved record, with the times that were noted beside it."""
        times: dict[int, Plain] = {}
        try:
            table = csv.DictReader(read_text(self.csv).splitlines())
            times = {int(row["epoch"]): {k: float(row[k]) for k in CLOCKS} for row in table}
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            pass  # no number of the run depends on it
        self.rows = [row | times.get(row["epoch"], {}) for row in state["rows"]]
        self.best, self.copies = state["best"], state["copies"]
        self.ranks = [*state.get("ranks", ())]

    def note_ranks(self, step: int) -> str:
        """Note that this process's ranks train after ``step``, if others have trained until then;
        that in words, or nothing."""
        first = {"after_step": 0, "ranks": self.plan.specs.begun_ranks}
        before, now = (self.ranks or [first])[-1]["ranks"], self.group.ranks
        if before == now:
            return ""
        self.ranks = [*(self.ranks or [first]), {"after_step": step, "ranks": now}]
        return f", on {plural(now, 'rank')} in place of {before}"

    def remove_later_copies(self) -> None:
        """Remove the copies made after the state from which a killed run is resumed."""
        for file in self.folder.glob(f"{self.policy.prefix}[-_]*.ckpt"):
            if self.group.leads and file.stem not in self.copies:
                file.unlink()

    def add_row(self, trainer: pl.Trainer, module: Classifier) -> Plain:
        """The row of the epoch that ends here, which is its end in time as well."""
        scores, first, train_loss = module.scores, ("val_loss", "val_acc"), module.epoch_loss()
        times = self.clock.times()
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss": train_loss,
            **{name: scores.get(name) for name in first},
            "lr": max(float(group["lr"]) for group in trainer.optimizers[0].param_groups),
            "epoch_s": times["epoch_s"],
            "step_ms": times["step_ms"],
            **{name: value for name, value in scores.items() if name not in first},
            "data_share": times["data_share"],
        }
        for logger in trainer.loggers:
            known = {k: v for k, v in row.items() if k != "step" and v is not None}
            logger.log_metrics(known, step=int(row["step"]))
        self.clock.begin_epoch()
        self.rows.append(row)
        return row

    def update_best(self, row: Plain, module: Classifier) -> None:
        """Write the best checkpoint anew where ``row`` is the best epoch so far."""
        monitor = self.policy.monitor
        before = self.rows[self.best["epoch"] - 1] if self.best else None
        if not self.policy.looks_at(row["epoch"]) or not self.policy.improves(row, before):
            return
        place = {"epoch": row["epoch"], "step": row["step"]}
        self.best = {"metric": monitor, "value": row[monitor], **place}
        module.check_weights()
        state = module.best_state()  # which all ranks may have a part of
        if self.group.leads:
            frozen = module.fingerprint if module.frozen else None
            run = identity(self.plan.facts)
            write_snapshot(self.best_path, Snapshot(module.card, state, self.best, frozen, run))

    def write(self, row: Plain) -> None:
        """Write ``metrics.csv``, and say how the epoch went."""
        if not self.group.leads:
            return
        write_rows(self.csv, self.rows)
        epochs = self.plan.epochs
        names = [
            f"val_{metric.name}"
            for metric in self.plan.specs.task.rows(self.plan.specs.metrics)
            if metric.on_line or f"val_{metric.name}" == self.policy.monitor
        ]
        if self.policy.monitor == "val_loss":
            names.insert(0, "val_loss")
        shown = (f"{n.replace('_', ' ', 1)} {row[n]:.4f}" for n in names if row.get(n) is not None)
        mark = "  best" if self.best and self.best["epoch"] == row["epoch"] else ""
        log.info(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train loss {row['train_loss']:.4f}  {'  '.join(shown)}  "
            f"{row['epoch_s']:.2f} s, {row['step_ms']:.1f} ms a step{mark}"
        )
        if line := alarm(self.rows, terms(self.plan)):
            log.warning(line)

    def keep_epoch(self, trainer: pl.Trainer) -> None:
        """Keep a copy every N epochs."""
        every, epoch = self.policy.every_n_epochs, self.rows[-1]["epoch"]
        if every and epoch % every == 0:
            self._keep(trainer, f"{self.policy.prefix}_epoch{epoch}")

    def keep_step(self, trainer: pl.Trainer, in_epoch: int) -> bool:
        """Keep a copy every N steps, this one number ``in_epoch`` of its epoch; whether one was."""
        every = self.policy.every_n_steps
        if not every or trainer.global_step % every:
            return False
        self._keep(trainer, f"{self.policy.prefix}-{trainer.current_epoch + 1}_{in_epoch}")
        return True

    def _keep(self, trainer: pl.Trainer, name: str) -> None:
        self.copies.append(name)
        self.save_resume(trainer, name)
        while 0 < self.policy.keep < len(self.copies):
            old = self.folder / f"{self.copies.pop(0)}.ckpt"
            if self.group.leads:
                old.unlink(missing_ok=True)

    def save_resume(self, trainer: pl.Trainer, name: str = Path(LAST).stem) -> None:
        """Save everything that a run is resumed from."""
        module: Classifier = trainer.lightning_module  # type: ignore[assignment]
        module.check_weights()
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    def close(self) -> None:
        """Let the file before the last one go, once the last one is known to be whole."""
        if checksum_holds(self.folder / LAST):
            (self.folder / PREVIOUS).unlink(missing_ok=True)
