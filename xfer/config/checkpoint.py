"""This run's own state: which epoch is the best, what else is kept, and how it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from xfer.core.errors import ConfigError
from xfer.core.types import Plain


@dataclass(frozen=True)
class CheckpointPolicy:
    """Which epoch is the best, which copies are kept besides best and last, and what is continued,
    or evaluated in place of training."""

    path: str | None = None
    """a run folder or checkpoint to evaluate, predict or export with, instead of training"""
    resume: str | None = None
    """``auto`` goes on with the newest run of this experiment and configuration (one that is
    finished is left alone), or with the one in ``run.dir`` where that is given; with ``-m``,
    with the newest such sweep; a folder names one; ``null`` starts a new run, but in a job that
    Slurm has queued again"""
    monitor: str = "val_acc"
    """metric that decides: ``val_loss``, ``val_acc``, ``val_macro_f1``, ``val_auroc`` (up to
    1,000 classes), ``val_ece``, ``val_top5`` (more than 5 classes), ``train_loss``, or ``val_``
    and a name of ``trainer.metrics``"""
    mode: Literal["auto", "max", "min"] = "auto"
    """whether more or less of it is better; ``auto`` is what the metric says of itself"""
    tie: Literal["loss", "first", "latest"] = "loss"
    """which of several equally good epochs is the best: the one of least ``val_loss`` (the first of
    such), the first or the latest"""
    start_epoch: Annotated[int, Gt(0)] = 1
    """first epoch (from 1) that may be the best"""
    interval: Annotated[int, Gt(0)] = 1
    """look at every so many epochs"""
    every_n_epochs: Annotated[int, Ge(0)] = 0
    """keep a copy every so many epochs; 0 is off. ``every_epoch`` sets 1"""
    every_n_steps: Annotated[int, Ge(0)] = 0
    """keep a copy every so many optimizer steps; 0 is off. ``every_n_steps`` sets 32"""
    keep: Annotated[int, Ge(0)] = 0
    """how many copies stay, the newest; 0 keeps all. ``every_n_steps`` sets 10"""
    prefix: str = "checkpoint"
    """start of the copies' names"""

    def __post_init__(self) -> None:
        if not self.prefix or any(c in self.prefix for c in "/\\=\0"):
            what, fix = f"'{self.prefix}' is not a valid file name", "use letters, digits, _ or -"
            raise ConfigError("checkpoint.prefix", what, fix, 70)
        if self.prefix in ("best", "last"):
            raise ConfigError("checkpoint.prefix", f"'{self.prefix}' is taken", "use another", 71)

    def looks_at(self, epoch: int) -> bool:
        """Whether epoch ``epoch`` (1-based) may become the best."""
        return epoch >= self.start_epoch and (epoch - self.start_epoch) % self.interval == 0

    def improves(self, row: Plain, best: Plain | None) -> bool:
        """Whether the epoch of ``row`` takes the place of the ``best`` one, both as in
        ``metrics.csv``. NaN never does."""
        value = row[self.monitor]
        if math.isnan(value):
            return False
        if best is None:
            return True
        if value == best[self.monitor]:
            if self.tie == "loss" and self.monitor != "train_loss":  # which no val image chooses
                return bool(row["val_loss"] < best["val_loss"])
            return self.tie == "latest"
        less = value < best[self.monitor]
        return bool(less if self.mode == "min" else not less)
