"""This run's own state: which epoch is the best, what else is kept, and how it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from xfer.core.errors import ConfigError
from xfer.evaluation.metrics import refuse_worse_end
from xfer.evaluation.multilabel_metrics import metric_of


@dataclass(frozen=True)
class CheckpointPolicy:
    """``path`` evaluates an earlier checkpoint instead of training; ``resume`` continues a run:
    ``auto`` the newest one of this experiment, else that of a run folder.

    The best epoch is the first or ``latest`` (``tie``) to reach the ``mode`` of ``monitor``,
    looked at from ``start_epoch`` (1-based) on, every ``interval`` epochs. Besides best and last,
    a copy is kept every ``every_n_epochs`` and ``every_n_steps`` (0 is off) under ``prefix``,
    the last ``keep`` of them (0 keeps all).
    """

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
    mode: Literal["max", "min"] = "max"
    """whether more or less of it is better"""
    tie: Literal["first", "latest"] = "first"
    """which of several equally good epochs is the best"""
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
        metric = metric_of(self.monitor)
        if metric is not None:
            refuse_worse_end(self.monitor, self.mode, metric.better)
        if self.prefix in ("best", "last"):
            raise ConfigError("checkpoint.prefix", f"'{self.prefix}' is taken", "use another", 71)

    def looks_at(self, epoch: int) -> bool:
        """Whether epoch ``epoch`` (1-based) may become the best."""
        return epoch >= self.start_epoch and (epoch - self.start_epoch) % self.interval == 0

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` takes the place of ``best``. NaN never does."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        if value == best:
            return self.tie == "latest"
        return value > best if self.mode == "max" else value < best
