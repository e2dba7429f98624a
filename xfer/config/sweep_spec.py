"""Several runs as one sweep: what is varied, how values are chosen, what becomes of a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from xfer.core.errors import SweepError

Direction = Literal["maximize", "minimize"]
Sampler = Literal["grid", "random", "tpe", "cmaes", "gp", "nsga2"]
Pruner = Literal["none", "median", "halving"]
_TPE = "type sweep.sampler=tpe sweep.n_trials=32"


@dataclass(frozen=True)
class SweepSpec:
    """Several runs as one: ``params`` are keys or groups to values in Hydra's syntax, as after
    ``-m``. A grid runs every combination; the other samplers ask Optuna."""

    params: dict[str, str] = field(default_factory=dict)
    """what varies, as it would be typed; what is typed wins"""
    sampler: Sampler = "grid"
    """every combination, or values that Optuna proposes"""
    n_trials: Annotated[int, Gt(0)] | None = None
    """trials in all, also over several calls of the same command; a grid has its own number"""
    seed: Annotated[int, Ge(0)] = 0
    """of the sampler; with the number of a job it decides what ``random`` draws"""
    objectives: dict[str, Direction] = field(default_factory=dict)
    """what is looked for; ``{}`` is ``checkpoint.monitor``, or ``scores.val.acc`` where jobs
    only evaluate"""
    pruner: Pruner = "none"
    """whether trials that fall behind end early"""
    prune_trials: Annotated[int, Ge(0)] = 5
    """trials that end before ``median`` compares"""
    prune_epochs: Annotated[int, Gt(0)] = 1
    """epochs that every trial is given"""
    storage: str | None = None
    """URL of an Optuna storage; ``null`` is the journal ``optuna.journal`` in the sweep's folder"""
    study: str | None = None
    """name of the study there; ``null`` is that of the experiment"""
    dir: str | None = None
    """the sweep's folder; a sweep that is there is resumed"""
    baseline: tuple[str, ...] = ()
    """marks the job that others are compared with, in the syntax of the parameters; ``[]``
    marks those that are the experiment as it is"""
    retries: Annotated[int, Ge(0)] = 0
    """further attempts of a job that failed"""
    fail_fast: bool = False
    """the first failure stops the sweep; running jobs save their state. With a launcher that
    blocks it ends behind the batch"""
    batch: Annotated[int, Gt(0)] = 4
    """trials at work at a time, with launchers other than slots; jobs of a grid as well with
    ``fail_fast`` and a launcher that blocks"""
    soup_least: Annotated[float, Ge(-1), Le(1)] = 0.0
    """of the stage ``soup``: the average is taken where the 95 % interval of its gain in accuracy
    over the best single member lies above this; -0.02 takes one that may be two points worse"""

    def __post_init__(self) -> None:
        if self.sampler == "grid" and self.n_trials is not None:
            what = "is for samplers; a grid has as many jobs as combinations"
            raise SweepError("sweep.n_trials", what, "drop it, or type sweep.sampler=tpe", 1)
        if self.sampler != "grid" and self.n_trials is None:
            what = f"must be given for sweep.sampler={self.sampler}"
            raise SweepError("sweep.n_trials", what, "type sweep.n_trials=32", 2)
        if self.pruner != "none" and (self.sampler == "grid" or len(self.objectives) > 1):
            what = "needs a sampler of Optuna and a single objective"
            fix = "name one in sweep.objectives" if len(self.objectives) > 1 else _TPE
            raise SweepError("sweep.pruner", what, f"drop it, or {fix}", 3)
        if self.pruner != "none" and any("." in metric for metric in self.objectives):
            what = "compares epochs, and the objective is known only when a job has ended"
            raise SweepError("sweep.pruner", what, "take a metric, such as val_acc", 20)
        if self.sampler == "cmaes" and len(self.objectives) > 1:
            what = "cmaes has one objective"
            raise SweepError("sweep.sampler", what, "type sweep.sampler=nsga2", 4)
        if self.sampler == "grid" and (self.storage or self.study):
            what = "is for samplers of Optuna; a grid needs none"
            raise SweepError("sweep.storage", what, f"drop it, or {_TPE}", 5)
