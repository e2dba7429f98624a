"""What a run hands to its report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import XferError
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Card, Exported, LabelScore, Plain, Predictions, Score
from xfer.plan.plan import Plan

if TYPE_CHECKING:
    from xfer.report.heat import Heat
    from xfer.training.fit_result import FitResult
    from xfer.training.image_audit import Audited


@dataclass
class Work:
    """What the stages hand on."""

    plan: Plan
    folder: Path
    startup_s: float
    began: float
    fitted: FitResult | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)
    scores: dict[str, Score | LabelScore] = field(default_factory=dict)
    exports: list[Exported] = field(default_factory=list)
    refused: XferError | None = None
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)
    audited: Audited | None = None
    worth: Plain | None = None
    soup: Plain | None = None
    embedded: Plain | None = None
    heat: Heat | None = None
    taught: Plain | None = None

    @property
    def cv(self) -> Plain | None:
        """What ``result.json`` says of the cross-validation, where there was one."""
        held_out = self.fitted.cv if self.fitted else None
        return held_out.facts(self.plan.specs.metrics) if held_out else None

    @property
    def card(self) -> Card:
        """What the network that is scored says of itself, with what the fit calibrated."""
        card = self.plan.card
        return replace(card, calibration=self.fitted.calibration) if self.fitted else card

    @property
    def trained(self) -> Plan:
        """The plan with that card."""
        return replace(self.plan, card=self.card)

    def checkpoint(self) -> Path | None:
        """The checkpoint that is evaluated and exported, unless the network is the source's own."""
        if self.fitted:
            return self.fitted.checkpoint
        if self.plan.specs.checkpoint.path is None:
            return None
        return best_checkpoint(Path(self.plan.specs.checkpoint.path).expanduser())
