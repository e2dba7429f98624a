"""The plan of a run: every fact that is known before anything is paid for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xfer.core.types import Card, Dataset, Plain
from xfer.freeze import Layout, Phase
from xfer.weights.content import Weights

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.models.network import Parts
    from xfer.weights.content import Momenta


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the work. ``facts`` is what ``plan.json`` holds, ``load``
    what ``load_report.json`` holds; ``momenta`` the source's optimizer state, to go on from."""

    specs: Specs
    dataset: Dataset | None
    card: Card
    parts: Parts
    weights: Weights
    phases: tuple[Phase, ...]
    shapes: dict[str, tuple[int, ...]]
    facts: Plain = field(default_factory=dict)
    load: Plain = field(default_factory=dict)
    momenta: Momenta | None = None
    layout: Layout = field(default_factory=lambda: Layout((), (), (), ()))

    @property
    def training(self) -> bool:
        """Whether this run trains something."""
        return self.specs.trains

    @property
    def train_counts(self) -> list[int]:
        """Training images a class, in class order."""
        counts = Counter(self._split("train").labels.tolist())
        return [counts[i] for i in range(len(self.card.classes))]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        from xfer.data.sampler import batches

        data = self.specs.data
        assert data is not None
        trainer = self.specs.trainer
        count = batches(len(self._split("train")), data.batch_size, trainer.devices)
        return math.ceil(count / trainer.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.specs.trainer.epochs

    def _split(self, name: str) -> Any:
        assert self.dataset is not None
        return self.dataset.splits[name]
