"""What each candidate would cost in seconds, measured on two images before anything starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from xfer.export.stage import check_split
from xfer.models.head import Knn, Prototype
from xfer.sweep.choosing.candidates import Candidate
from xfer.sweep.choosing.learners import FilledLearner, SolvedLearner, Steps, TrainedLearner
from xfer.sweep.choosing.measure import measure_of
from xfer.training import logistic
from xfer.training.head_problem import Heads, problem_of

if TYPE_CHECKING:
    from xfer.config.choose import Choice
    from xfer.plan.plan import Plan

    Matrix = npt.NDArray[Any]

Kind = Literal["solved", "filled", "steps", "images"]
_IMAGES = 2
_BASE = 8.0  # seconds of the finished model that do not depend on it: libraries, figures, pages
_PASSES = 6  # forward passes of each image that an exported file is compared on
_STRENGTHS = len(logistic.STRENGTHS)
SLACK = 1.25
"""How much longer than its price the finished model is given."""
_WEAKER = 2.0  # steps of a solution on the whole path for one of its first strength


@dataclass(frozen=True)
class Price:
    """What a candidate costs, in seconds: the features of its backbone (which others share), all
    that choosing asks of it with the outer folds drawn once, and the finished model; ``ms`` is
    its answer for one image in milliseconds."""

    features: float
    choosing: float
    model: float
    ms: float


@dataclass(frozen=True)
class Contender:
    """A candidate that can be planned: ``kind`` says how it is fitted (solved, filled, step by
    step on features, or on images), ``problem`` why it takes no part, and ``fix`` what may help."""

    candidate: Candidate
    plan: Plan | None = None
    kind: Kind = "solved"
    price: Price | None = None
    problem: str = ""
    fix: str = ""

    @property
    def name(self) -> str:
        """That of the candidate."""
        return self.candidate.name


def planned(candidate: Candidate, plan: Plan) -> Contender:
    """How a candidate is fitted, and whether it can be judged as the finished model is."""
    from torch import nn

    heads = (
        [plan.network.module.get_submodule(h) for h in plan.layout.heads] if plan.network else []
    )
    if isinstance(plan.specs.head, Knn | Prototype):
        return Contender(candidate, plan, "filled")
    if plan.specs.optim.solves:
        return Contender(candidate, plan, "solved")
    if any(not (row.head or row.frozen) for phase in plan.phases for row in phase.rows):
        return Contender(candidate, plan, "images")
    layers = [layer for head in heads for layer in head.modules()]
    if len(heads) != 1 or any(isinstance(layer, nn.Conv2d) for layer in layers):
        why = "its head reads each place of a feature map, and here features are pooled over them"
        return Contender(candidate, plan, "steps", problem=why)
    return Contender(candidate, plan, "steps")


class Scales:
    """Measures candidates; what two of one backbone share is measured once."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self._known: dict[str, tuple[float, float, int]] = {}
        # Of halving: the rounds before the last have a half, a quarter... of its images.
        self._rounds = sum(0.5**i for i in range(choice.rungs)) * choice.folds

    def price(self, contender: Contender, slowness: float) -> Contender:
        """``contender`` with its price; what is not measured is multiplied by the ``slowness`` of
        the machine. Raises XferError for what fails on two images."""
        plan = contender.plan
        if plan is None or contender.problem:
            return contender
        name = contender.candidate.weighted.name
        if name not in self._known:
            self._known[name] = _measured(plan)
        decode, forward, width = self._known[name]
        train, val = len(plan.split("train")), len(plan.split("val"))
        views = plan.specs.features.views_of(plan.specs.augment.random, 1_000_000) or 0
        features = (train * (1 + views) + val) * (decode + forward)
        learn = self._learn(contender, plan, width)
        tried = min(plan.specs.export.gate.images, len(check_split(plan)))
        exported = _PASSES * forward * tried * len(plan.specs.export.writers)
        model = _BASE * slowness + learn + exported + val * (decode + forward)
        if contender.kind == "images":
            features, model = 0.0, model + val * (decode + forward)
        price = Price(features, learn * self._rounds, model, 1e3 * forward)
        return replace(contender, price=price)

    def _learn(self, contender: Contender, plan: Plan, width: int) -> float:
        """Seconds of one fit that is cross-validated by the inner folds."""
        labels, classes = plan.split("train").labels, len(plan.card.classes)
        fits = self.choice.folds + 1
        if contender.kind == "images":
            return fits * _step(plan) * len(labels) * plan.specs.trainer.epochs
        drawn = np.random.default_rng(0)
        noise = drawn.normal(size=(len(labels), width)).astype(np.float32)
        if contender.kind == "steps":
            short = replace(steps_of(plan), epochs=1)
            learner = TrainedLearner("", [noise], noise, labels, classes, short)
            rows = np.arange(len(labels))
            none = np.full(len(rows), -1)
            learner.learn(rows[:2], none[:2], rows[:1])  # what torch imports at its first step
            took = _timed(lambda: learner.learn(rows, none, rows[:1]))
            return fits * took * plan.specs.trainer.epochs
        measure, rows = measure_of(plan.specs.task.several), np.arange(len(labels))
        fold_of = measure.folds(labels, self.choice.folds, 0)
        if contender.kind == "filled":
            filled = FilledLearner("", noise, labels, classes, plan.specs.head)
            return _timed(lambda: filled.learn(rows, fold_of, rows[:1]))
        solved = SolvedLearner("", replace(problem_on(plan, [noise], noise), strengths=(1.0,)))
        return _timed(lambda: solved.learn(rows, fold_of, rows[:1])) * _STRENGTHS / _WEAKER


def steps_of(plan: Plan) -> Steps:
    """How the head of ``plan`` is trained on features."""
    specs = plan.specs
    size = specs.data.batch_size if specs.data else 1
    how = (specs.optim, specs.schedule, specs.trainer.epochs, size, specs.seed, specs.task)
    return Steps(specs.head, specs.loss, *how)


def problem_on(plan: Plan, views: Sequence[Matrix], evaluated: Matrix) -> Heads:
    """The head of ``plan`` to solve on these features (n, d), a view each that is trained on and
    the one that is evaluated. Which images are held out together is the choice's to say."""
    options: Any = plan.specs.optim
    loss: Any = plan.specs.loss
    problem = problem_of(plan, views, evaluated, plan.split("train"), options, loss)
    return replace(problem, groups=())


def _measured(plan: Plan) -> tuple[float, float, int]:
    """Seconds an image to decode it and to run the network on it, and the numbers that enter the
    head's layer."""
    import torch

    from xfer.core.device import device_of
    from xfer.data.loader import eval_images
    from xfer.models.network import assemble
    from xfer.training.backbone_features import with_linear_head
    from xfer.training.features.cut import inference
    from xfer.training.head_input import rows_of, watch

    pictures = eval_images(plan.split("train"), plan.card.input)
    count = min(_IMAGES, len(pictures))

    def collated() -> Any:
        batch = pictures.collate([pictures[i] for i in range(count)])
        if isinstance(batch, Exception):
            raise batch
        return batch

    decode = _least(collated) / count
    bare = with_linear_head(plan)
    net, path = assemble(bare.parts, bare.state), bare.layout.heads[0]
    device = device_of(plan.specs.trainer.accelerator)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    widths: list[int] = []

    def see(entering: torch.Tensor) -> None:
        widths.append(rows_of(net.get_submodule(path), entering).shape[1])

    images = collated()[0].to(device, memory_format=torch.channels_last)
    with torch.no_grad(), inference(net):
        with watch(net, path, see):
            net(images)
        forward = _least(lambda: float(net(images).sum())) / count
    return decode, forward, widths[0] if widths else 1


def _step(plan: Plan) -> float:
    """Seconds an image to train on it: decoded, forward and backward through all that trains."""
    import torch

    from xfer import freeze
    from xfer.core.device import device_of
    from xfer.data.loader import eval_images
    from xfer.models.network import assemble

    pictures = eval_images(plan.split("train"), plan.card.input)
    count = min(_IMAGES, len(pictures))
    images, labels = pictures.collate([pictures[i] for i in range(count)])
    device = device_of(plan.specs.trainer.accelerator)
    net = assemble(plan.parts, plan.state).to(device)
    freeze.apply(net, plan.phases[-1].rows)
    net.train()
    freeze.hold(net, plan.specs.freeze.batch_norm)
    images, labels = images.to(device), labels.to(device)
    specs, every = plan.specs, plan.split("train").labels
    loss = specs.task.loss(specs.loss, every, len(plan.card.classes)).to(device)

    def step() -> None:
        torch.autograd.backward(loss(net(images), labels))

    step()
    return _least(step) / count


def _least(act: Callable[[], Any]) -> float:
    """Seconds that ``act`` takes, the least of three: whatever else is at work can only add to
    them, and adds most to what is short."""
    return min(_timed(act) for _ in range(3))


def _timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def admitted(contenders: Sequence[Contender], seconds: float) -> list[Contender]:
    """The cheapest first, as many as ``seconds`` pay for; the others with the reason. Those of one
    backbone pay for its features once, and all of them for one finished model: the dearest."""
    paid: set[str] = set()
    total = model = 0.0
    decided = {c.name: c for c in contenders if c.problem or c.price is None}
    waiting = [c for c in contenders if c.name not in decided]

    def cost(contender: Contender) -> float:
        price, shared = contender.price, contender.candidate.weighted.name in paid
        return 0.0 if price is None else price.choosing + (0.0 if shared else price.features)

    while waiting:
        cheapest = min(waiting, key=cost)
        waiting.remove(cheapest)
        dearest = SLACK * cheapest.price.model if cheapest.price else 0.0
        price, left = cost(cheapest), seconds - total
        if price + max(model, dearest) <= left:
            total, model = total + price, max(model, dearest)
            if cheapest.kind != "images":
                paid.add(cheapest.candidate.weighted.name)
        else:
            asks = f"costs {price:,.0f} s and its model {dearest:,.0f} s"
            why = f"{asks}, and {max(0.0, left):,.0f} s are left"
            cheapest = replace(cheapest, problem=why)
        decided[cheapest.name] = cheapest
    return [decided[c.name] for c in contenders]
