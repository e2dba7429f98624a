"""A candidate that trains more than its head: every fit of it is an ordinary one, on images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.log import log
from xfer.core.types import Samples
from xfer.data.dataset import part_of
from xfer.sweep.choosing.halving import Learned

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan.plan import Plan

    Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FittedLearner:
    """A fit as ``plan`` has it, to parts of its training images; it counts as it is after the
    last epoch, so that no held-out image chooses one. Checkpoints go into ``folder`` and are
    removed."""

    name: str
    plan: Plan
    folder: Path

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """See :class:`xfer.sweep.choosing.halving.Learner`: a fit a fold, and one to all rows."""
        classes = len(self.plan.card.classes)
        held_out = np.full((len(rows), classes), np.nan, np.float32)
        for k in np.unique(folds[folds >= 0]):
            held = folds == k
            held_out[held] = self._fitted(rows[~held], rows[held])
        answers = np.empty((0, classes), np.float32)
        return Learned(held_out, self._fitted(rows, test) if len(test) else answers)

    def _fitted(self, rows: Indices, test: Indices) -> npt.NDArray[np.float32]:
        from xfer.core.device import device_of
        from xfer.evaluation.evaluate import Reading, answers
        from xfer.models.restore import open_checkpoint
        from xfer.training.fit import fit

        plan, specs, samples = self.plan, self.plan.specs, self.plan.split("train")
        splits: Mapping[str, Samples] = {
            "train": part_of(samples, rows),
            "val": part_of(samples, test),
        }
        last = replace(specs.checkpoint, start_epoch=specs.trainer.epochs)
        dataset = None if plan.dataset is None else replace(plan.dataset, splits=splits)
        specs = replace(specs, checkpoint=last)
        with TemporaryDirectory(dir=self.folder, prefix=".fit_") as scratch, _quiet():
            part = replace(plan, specs=specs, dataset=dataset)
            fitted = fit(part, Path(scratch))
            net, card = open_checkpoint(fitted.checkpoint, specs.make)
            size = specs.data.eval_batch_size if specs.data else 64
            device = device_of(specs.trainer.accelerator)
            given = answers(net, splits["val"], card.input, card.classes, Reading(size), device)
        return given.logits


@contextmanager
def _quiet() -> Iterator[None]:
    """The many fits of a choice say nothing but what went wrong."""
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
