"""Candidates as learners: a head that is solved, trained or filled on cached features, or a fit of
more than the head, on images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xfer.core import protocols
from xfer.core.log import log
from xfer.core.seeds import derive
from xfer.core.types import Calibrating, Samples
from xfer.data.dataset import part_of
from xfer.evaluation.calibration import FEWEST, cross_fitted, fit_temperature, fit_vector
from xfer.evaluation.task import Single
from xfer.sweep.choosing.halving import Learned, Learner
from xfer.training.feature_moments import moments
from xfer.training.head_problem import Heads, solution_of

if TYPE_CHECKING:
    from xfer.plan.plan import Plan

    Indices = npt.NDArray[np.int64]
    Matrix = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class SolvedLearner:
    """A linear head, solved exactly: ``problem`` is that of all images, in whose place any of them
    may stand."""

    name: str
    problem: Heads

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """See :class:`xfer.sweep.choosing.halving.Learner`: one solution a strength and fold."""
        training, solution = solution_of(self.problem, rows, folds)
        best, held_out = solution.path[solution.best], solution.held_out
        if self.problem.labels.ndim == 2:
            for k in np.unique(folds[folds >= 0]):
                # Without a label on both sides there is no solution: no says as much as yes.
                sides = [(training.labels[folds != k] == side).any(axis=0) for side in (0, 1)]
                held_out[np.ix_(folds == k, ~(sides[0] & sides[1]))] = 0
        answers = self.problem.held[test] @ best.weight.T + best.bias
        return Learned(held_out, answers.astype(np.float32))


@dataclass(frozen=True, eq=False)
class ScaledLearner:
    """A candidate whose finished model is calibrated, and which is compared as that will answer:
    what a fold held out is divided by the temperature of the other folds' answers, or has the
    scale and shift of ``method=vector``. ``labels`` are those of all images.

    Too few answers are left as they are: see :data:`xfer.evaluation.calibration.FEWEST`.
    """

    learner: Learner
    labels: Indices
    method: Calibrating

    @property
    def name(self) -> str:
        """That of the candidate."""
        return self.learner.name

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """See :class:`xfer.sweep.choosing.halving.Learner`: as the candidate, then scaled."""
        learned, seen = self.learner.learn(rows, folds, test), folds >= 0
        z, labels, fold_of = learned.held_out[seen], self.labels[rows][seen], folds[seen]
        others = [labels[fold_of != k] for k in np.unique(fold_of)]
        known = all((some >= 0).any() for some in others)
        if len(z) < FEWEST or not known or not np.isfinite(z).all():
            return learned
        fit = fit_vector if self.method == "vector" else fit_temperature
        held_out = learned.held_out.copy()
        held_out[seen] = cross_fitted(z, labels, fold_of, fit)
        answers = fit(z, labels).of(learned.answers)
        return Learned(held_out, answers.astype(np.float32))


def _each_left_out(
    answer: Callable[[Indices, Indices], npt.NDArray[np.float32]],
    rows: Indices,
    folds: Indices,
    test: Indices,
    classes: int,
) -> Learned:
    """What ``answer`` of some rows says of others: of each fold by the rest, of ``test`` by all."""
    held_out = np.full((len(rows), classes), np.nan, np.float32)
    for k in np.unique(folds[folds >= 0]):
        held = folds == k
        held_out[held] = answer(rows[~held], rows[held])
    nothing = np.empty((0, classes), np.float32)
    return Learned(held_out, answer(rows, test) if len(test) else nothing)


@dataclass(frozen=True)
class Steps:
    """How a head is trained step by step, as a run would, on labels of the ``task``: ``epochs`` of
    batches of ``batch_size``."""

    head: protocols.Head
    loss: protocols.Loss
    optim: protocols.Optim
    schedule: protocols.Schedule
    epochs: int
    batch_size: int
    seed: int = 0
    task: protocols.LabelTask = field(default_factory=Single)

    def total(self, images: int) -> int:
        """Optimizer steps of a fit to so many images."""
        return self.epochs * math.ceil(images / self.batch_size)


@dataclass(frozen=True, eq=False)
class TrainedLearner:
    """A head that is trained step by step on standardised features, an epoch on each of ``views``
    in turn, and judged on those that are ``evaluated``: float32 (n, d). It counts as it is after
    the last epoch, so that no held-out image chooses one."""

    name: str
    views: Sequence[Matrix]
    evaluated: Matrix
    labels: Indices
    classes: int
    steps: Steps

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """See :class:`xfer.sweep.choosing.halving.Learner`: a fit a fold, and one to all rows."""
        return _each_left_out(self._fitted, rows, folds, test, self.classes)

    def _fitted(self, rows: Indices, test: Indices) -> npt.NDArray[np.float32]:
        import torch
        from torch import nn

        how, raw = self.steps, [view[rows].astype(np.float32) for view in self.views]
        mean, std = (m.astype(np.float32) for m in moments(raw))
        views = [torch.from_numpy((view - mean) / std) for view in raw]
        y = torch.from_numpy(self.labels[rows])
        seed = derive("learner", how.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = how.head.build(nn.Linear(len(mean), self.classes), self.classes)
            self._train(net, views, y)
        net.eval()
        with torch.inference_mode():
            asked = torch.from_numpy((self.evaluated[test].astype(np.float32) - mean) / std)
            answers: npt.NDArray[np.float32] = net(asked).numpy()
        return answers

    def _train(self, net: Any, views: Sequence[Any], y: Any) -> None:
        import torch

        how, per_epoch = self.steps, math.ceil(len(y) / self.steps.batch_size)
        loss = how.task.loss(how.loss, y.numpy(), self.classes)
        groups = how.optim.groups(net, {name: (1.0,) for name, _ in net.named_parameters()})
        optimizer = how.optim.build(groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        net.train()
        total, step = how.total(len(y)), 0
        for epoch in range(how.epochs):
            x = views[epoch % len(views)]
            for batch in torch.split(torch.randperm(len(y)), how.batch_size):
                factor = how.schedule.factor(step, per_epoch, total)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimizer.zero_grad()
                torch.autograd.backward(loss(net(x[batch]), y[batch]))
                optimizer.step()
                step += 1


@dataclass(frozen=True, eq=False)
class FilledLearner:
    """A head that holds training features and is not trained (``knn``, ``prototype``): an honest
    baseline. ``head`` is its spec, ``evaluated`` float32 (n, d) are features, ``labels`` int64 (n,)
    of ``classes`` classes, or (n, classes) where it is of several labels an image."""

    name: str
    evaluated: Matrix
    labels: Indices
    classes: int
    head: Any

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """See :class:`xfer.sweep.choosing.halving.Learner`: the folds are left out in turn, and all
        rows answer ``test``."""
        return _each_left_out(self._filled, rows, folds, test, self.classes)

    def _filled(self, rows: Indices, test: Indices) -> npt.NDArray[np.float32]:
        import torch
        from torch import nn

        spec = self.head
        if hasattr(spec, "images"):  # as many as it is to hold, and no more that vote
            spec = replace(spec, images=len(rows), k=min(spec.k, len(rows)))
        features = torch.from_numpy(np.array(self.evaluated, np.float32))
        head = spec.build(nn.Linear(features.shape[1], self.classes), self.classes)
        with torch.inference_mode():
            head.fill(features[rows], torch.from_numpy(self.labels[rows]))
            answers: npt.NDArray[np.float32] = head(features[test]).numpy()
        return answers


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
        return _each_left_out(self._fitted, rows, folds, test, len(self.plan.card.classes))

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
