"""This run's own state: which epoch is the best, what else is kept, and how it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from xfer.core.errors import ConfigError
from xfer.evaluation.metrics import metric_of


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
    resume: str | None = None
    monitor: str = "val_acc"
    mode: Literal["max", "min"] = "max"
    tie: Literal["first", "latest"] = "first"
    start_epoch: Annotated[int, Gt(0)] = 1
    interval: Annotated[int, Gt(0)] = 1
    every_n_epochs: Annotated[int, Ge(0)] = 0
    every_n_steps: Annotated[int, Ge(0)] = 0
    keep: Annotated[int, Ge(0)] = 0
    prefix: str = "checkpoint"

    def __post_init__(self) -> None:
        if not self.prefix or any(c in self.prefix for c in "/\\=\0"):
            what, fix = f"'{self.prefix}' is not a valid file name", "use letters, digits, _ or -"
            raise ConfigError("checkpoint.prefix", what, fix, 70)
        metric = metric_of(self.monitor)
        if metric is not None and metric.better != self.mode:
            what = f"is {self.mode}, but the best {self.monitor} is its {metric.better}imum"
            fix = f"type checkpoint.mode={metric.better}"
            raise ConfigError("checkpoint.mode", what, fix, 72)
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
