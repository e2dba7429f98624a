"""What a fit leaves to the stages after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.types import Plain

if TYPE_CHECKING:
    from xfer.evaluation.task import Pooled
    from xfer.training.features.feature_loader import CachedFeatures
    from xfer.training.guarded_logger import GuardedLogger


@dataclass(frozen=True)
class FitResult:
    """A finished fit: its best epoch and file, one row an epoch, the wall time in seconds, whether
    what was frozen is proved to have stayed, the optimizer's groups phase by phase, what is known
    of its features and their time, and as ``cached`` the features of its last epochs, if any.

    A head that was solved has a row a strength of its penalty in place of epochs, and ``solved``
    says which was chosen by what; ``None`` for a fit that trained step by step. ``logger`` is that
    of the run besides ``metrics.csv``, if any. ``cv`` is what a cross-validation answered,
    ``calibration`` what the checkpoint's card says of its own, ``mirrored`` what
    :mod:`xfer.training.mirroring` found, nothing where there is no such thing. ``ranks`` are who
    trained, ``{"after_step": 0, "ranks": 4}`` first, of a fit that went on with other ranks.
    """

    best: Plain
    checkpoint: Path
    rows: list[Plain]
    seconds: float
    device: str
    proved: bool
    audits: list[Plain]
    features: Plain
    features_s: float | None
    cached: CachedFeatures | None
    solved: Plain | None = None
    logger: GuardedLogger | None = None
    cv: Pooled | None = None
    calibration: Plain = field(default_factory=dict)
    mirrored: Plain = field(default_factory=dict)
    ranks: list[Plain] = field(default_factory=list)
