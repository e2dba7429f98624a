"""What a run hands to its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import XferError
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Exported, Predictions, Score
from xfer.plan.plan import Plan

if TYPE_CHECKING:
    from xfer.report.heat import Heat
    from xfer.training.fit_result import FitResult


@dataclass
class Work:
    """What the stages hand on."""

    plan: Plan
    folder: Path
    startup_s: float
    began: float
    fitted: FitResult | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    exports: list[Exported] = field(default_factory=list)
    refused: XferError | None = None
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)
    heat: Heat | None = None

    def checkpoint(self) -> Path | None:
        """The checkpoint that is evaluated and exported, unless the network is the source's own."""
        if self.fitted:
            return self.fitted.checkpoint
        if self.plan.specs.checkpoint.path is None:
            return None
        return best_checkpoint(Path(self.plan.specs.checkpoint.path).expanduser())
