"""One choice from its price list to the finished model, within its minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import CombinationError, XferError
from xfer.core.log import LINES, log
from xfer.sweep.choosing.candidates import listed, without_choice
from xfer.sweep.choosing.clock import TimeIsOver, TimeLimit
from xfer.sweep.choosing.halving import Halved, Halving, Learner, Round, halve, judge, worth
from xfer.sweep.choosing.learners import (
    FilledLearner,
    FittedLearner,
    ScaledLearner,
    SolvedLearner,
    TrainedLearner,
)
from xfer.sweep.choosing.measure import Measure, measure_of
from xfer.sweep.choosing.pricing import (
    SLACK,
    Contender,
    Price,
    Scales,
    admitted,
    planned,
    problem_on,
    steps_of,
)

if TYPE_CHECKING:
    from xfer.config.choose import Choice
    from xfer.config.specs import Specs
    from xfer.core.types import Dataset, Plain
    from xfer.plan.plan import Plan


@dataclass
class Session:
    """What a choice has come to so far: who takes part at what price (``contenders``), how the
    halving on all training images ended, the rounds that judged it, and the finished model."""

    specs: Specs
    choice: Choice
    clock: TimeLimit
    contenders: list[Contender] = field(default_factory=list)
    halved: Halved | None = None
    rounds: list[Round] = field(default_factory=list)
    final: Specs | None = None
    model: Path | None = None
    facts: Plain | None = None
    computed_s: float = 0.0
    model_s: float = 0.0
    _learn_from: list[Learner] = field(default_factory=list)
    _round_s: float = 0.0

    @classmethod
    def of(cls, specs: Specs, began: float) -> Session:
        """The choice that ``specs`` ask for, whose minutes ``began`` then."""
        choice: Any = specs.choose
        return cls(specs, choice, TimeLimit(choice.minutes, began))

    @property
    def measure(self) -> Measure:
        """What candidates are judged by."""
        return measure_of(self.specs.task.several)

    @property
    def worth(self) -> Plain | None:
        """What the choosing is worth, as far as it has been judged, JSON-like."""
        if not self.rounds or not (said := worth(self.rounds, self.measure)):
            return None
        facts = asdict(said)
        return {self.measure.key: facts.pop("score"), **facts}

    @property
    def base(self) -> list[str]:
        """The overrides that all candidates share."""
        return without_choice(self.specs.overrides)

    def contender(self, name: str) -> Contender:
        """The one of that name."""
        return next(c for c in self.contenders if c.name == name)

    @property
    def reserve(self) -> float:
        """Seconds that the finished model is given, whichever of those that take part it is."""
        prices = [c.price.model for c in self.contenders if c.price and not c.problem]
        return SLACK * max(prices, default=0.0)

    def prepare(self) -> None:
        """Plan and price every candidate, and admit what the minutes pay for. Nothing is computed
        but two images. One candidate is priced in any case, to say how many minutes it needs."""
        scales, shared = Scales(self.choice), _Shared()
        for candidate in listed(self.specs, self.choice):
            if self.clock.left < 0 and any(c.price for c in self.contenders):
                late = "the time was over before it had a price"
                self.contenders.append(Contender(candidate, problem=late))
                continue
            try:
                specs = self._variant([*self.base, *candidate.overrides])
                plan = shared.plan(specs)
                contender = planned(candidate, plan)
                if not shared.has(plan):
                    other = "some images do not suit its input, so it would be judged on others"
                    contender = Contender(candidate, problem=other)
                self.contenders.append(scales.price(contender, self.clock.slowness))
            except XferError as error:
                self.contenders.append(Contender(candidate, problem=error.what, fix=error.fix))
        self.contenders = admitted(self.contenders, self.clock.left)

    def _variant(self, overrides: list[str]) -> Specs:
        if self.specs.variant is None:
            raise ValueError("specs that were not composed have no variants")
        return self.specs.variant(overrides)

    def refuse_none(self) -> None:
        """Raise CombinationError where no candidate takes part."""
        if any(not c.problem for c in self.contenders):
            return
        priced = [c for c in self.contenders if c.price]
        if not priced:
            first = self.contenders[0]
            what = f"no candidate can be tried; {first.name}: {first.problem}"
            fix = "type 'choose.sources={BACKBONE: FILE}', or 'choose.backbones=[resnet18]'"
            fix = f"{first.fix}; or {fix}" if first.fix else fix
            raise CombinationError("choose", what, fix, 45)
        costs = [p.features + p.choosing + SLACK * p.model for c in priced if (p := c.price)]
        seconds = min(costs) + self.clock.spent
        needed = math.ceil(10 * seconds * 1.1 / 60) / 10
        given, fix = 60 * self.choice.minutes, f"type choose.minutes={needed:g}"
        what = f"{given:g} s do not pay for one candidate, which takes about {seconds:.0f} s"
        raise CombinationError("choose.minutes", what, fix, 44)

    def choose(self, folder: Path) -> None:
        """Compute the features, choose on all training images, and judge the choosing on outer
        folds, drawn anew for as long as there is time."""
        self._learn_from = self._learners(folder)
        labels, reserve = self._plan().split("train").labels, self.reserve
        every = np.arange(len(labels))
        log.info(f"choosing among {len(self._learn_from)} candidates on {len(labels)} images")
        with self.clock.limit(reserve):
            self.halved = halve(self._learn_from, labels, every, every[:0], self._rules())
        self.judge(reserve)

    def judge(self, reserve: float) -> None:
        """Draw the outer folds anew until that was done often enough, or the next time would not
        leave ``reserve`` seconds. A draw that the end of the time cuts short does not count."""
        labels = self._plan().split("train").labels
        while len(self.rounds) < self.choice.repeats:
            if self.clock.left - reserve < self._round_s:
                return
            before, number = self.clock.spent, len(self.rounds)
            try:
                with self.clock.limit(reserve):
                    self.rounds.append(judge(self._learn_from, labels, self._rules(), number))
            except TimeIsOver:
                return
            self._round_s = self.clock.spent - before

    def finish(self, folder: Path, train: Callable[[Specs], Any]) -> None:
        """Make the model of the winner, by an ordinary run, with what is left of the minutes."""
        if self.halved is None:
            raise ValueError("nothing has been chosen")
        winner = self.contender(self.halved.winner.name)
        inside = [f"run.dir={folder / 'model'}"] if self.specs.run_dir is not None else []
        specs = self._variant([*self.base, *winner.candidate.overrides, *inside])
        before, self.final = self.clock.spent, specs
        with self.clock.limit():
            result = train(specs)
        self.model, self.facts = result.folder, result.facts
        self.model_s = self.clock.spent - before

    def _rules(self) -> Halving:
        choice, groups = self.choice, self._plan().split("train").groups
        seed = self.specs.seed
        return Halving(choice.by, choice.folds, choice.rungs, seed, groups=groups or None)

    def _plan(self) -> Plan:
        return next(c.plan for c in self.contenders if c.plan and not c.problem)

    def _learners(self, folder: Path) -> list[Learner]:
        """A learner for each candidate that takes part, on features that are computed here."""
        pooled: dict[str, _Pooled | str] = {}
        learners: list[Learner] = []
        began = self.clock.spent
        for i, contender in enumerate(self.contenders):
            if contender.problem or contender.plan is None:
                continue
            plan, name = contender.plan, contender.candidate.weighted.name
            if contender.kind == "images":
                learners.append(_calibrated(FittedLearner(contender.name, plan, folder), plan))
                continue
            if name not in pooled:
                pooled[name] = self._pooled(plan)
            features = pooled[name]
            if isinstance(features, str):
                self.contenders[i] = replace(contender, problem=features)
            else:
                learners.append(_calibrated(features.learner(contender, plan), plan))
        self.computed_s = self.clock.spent - began
        if not learners:
            self.refuse_none()
        return learners

    def _pooled(self, plan: Plan) -> _Pooled | str:
        """The features of a backbone; in words why there are none."""
        from xfer.training.exact import NotExact

        try:
            with self.clock.limit(self.reserve):
                return _features(plan)
        except TimeIsOver:
            return "its features took longer than their price, and the time was over"
        except NotExact as error:
            return str(error)
        except XferError as error:
            return error.what


class _Shared:
    """Plans that share one data set: it is scanned once, and every candidate is compared on the
    same images."""

    def __init__(self) -> None:
        self._dataset: Dataset | None = None
        self._names: Sequence[str] = ()

    def plan(self, specs: Specs) -> Plan:
        """The plan of a candidate. Raises XferError."""
        from xfer.plan.make import make_plan

        if self._dataset is None and specs.data is not None:
            self._dataset = specs.task.read(specs.data, training=True)
        known, data = self._dataset, replace(specs.data)  # type: ignore[type-var]
        # Of this one object: its class reads the folder anew for every plan.
        reads = "labelled" if specs.task.several else "dataset"
        object.__setattr__(data, reads, lambda *_: known)
        plan = make_plan(replace(specs, data=data))
        self._names = self._names or plan.split("train").names
        return plan

    def has(self, plan: Plan) -> bool:
        """Whether ``plan`` is of the same training images as the first one."""
        return plan.split("train").names == self._names


@dataclass(frozen=True, eq=False)
class _Pooled:
    """What enters the heads of a backbone: float32 (n, d) of the training images, a view each that
    is trained on, and of the view that is evaluated."""

    views: list[Any]
    evaluated: Any

    def learner(self, contender: Contender, plan: Plan) -> Learner:
        """The candidate on these features."""
        labels, classes = plan.split("train").labels, len(plan.card.classes)
        if contender.kind == "steps":
            how = steps_of(plan)
            return TrainedLearner(contender.name, self.views, self.evaluated, labels, classes, how)
        if contender.kind == "filled":
            head = plan.specs.head
            return FilledLearner(contender.name, self.evaluated, labels, classes, head)
        return SolvedLearner(contender.name, problem_on(plan, self.views, self.evaluated))


def _calibrated(learner: Learner, plan: Plan) -> Learner:
    """The candidate as its finished model will answer, which the ``plan`` may calibrate."""
    method = plan.calibration.method
    if method == "none":
        return learner
    return ScaledLearner(learner, plan.split("train").labels, method)


def _features(plan: Plan) -> _Pooled:
    """Read from the store, or computed: the same entries that the finished model is fitted on."""
    from xfer.training.backbone_features import head_input
    from xfer.training.exact import NotExact

    entering = head_input(plan)
    log.info(entering.cached.summary())
    evaluated = entering.of("train")
    if not np.isfinite(evaluated).all():
        raise NotExact("the backbone's features are NaN or Inf")
    return _Pooled(entering.views, evaluated)


def price_table(session: Session) -> str:
    """What every candidate would cost, the cheapest of a backbone's features once, and which take
    part: a row each below the name of its backbone, and below it why it does not."""
    columns = ("features", "choosing", "model", "an image")
    rows = [(_numbers(c.price), c) for c in session.contenders]
    widths = [max(len(n[i]) for n in (columns, *(n for n, _ in rows))) for i in range(4)]
    wide = max(len(_fitted(c)) for _, c in rows)
    lines = [_row("candidate", wide, columns, widths)]
    backbone = why = ""
    for numbers, c in rows:
        if c.candidate.weighted.name != backbone:
            lines.append(backbone := c.candidate.weighted.name)
            why = ""
        row = _row(_fitted(c), wide, numbers, widths)
        told = "as above" if c.problem == why else "; ".join(filter(None, (c.problem, c.fix)))
        lines += [row, f"    left out: {told}"] if c.problem else [f"{row}  takes part"]
        why = c.problem
    return "\n".join(lines)


def _fitted(contender: Contender) -> str:
    """The head and the policy of a candidate, as a row below its backbone begins."""
    return f"  {contender.candidate.head} {contender.candidate.freeze}"


def _numbers(price: Price | None) -> tuple[str, ...]:
    if price is None:
        return "", "", "", ""
    seconds = (f"{s:.1f} s" for s in (price.features, price.choosing, price.model))
    return (*seconds, f"{price.ms:.1f} ms")


def _row(name: str, wide: int, numbers: Sequence[str], widths: Sequence[int]) -> str:
    cells = (n.rjust(width) for n, width in zip(numbers, widths, strict=True))
    return "  ".join((name.ljust(wide), *cells)).rstrip()


def announce(session: Session) -> None:
    """Log the price list, before anything starts."""
    minutes, spent = session.choice.minutes, session.clock.spent
    lines = [
        price_table(session),
        "measured on two images; features that are cached cost less. "
        f"Of choose.minutes={minutes:g}, {spent:.0f} s are spent and {session.reserve:.0f} s are "
        "held back for the finished model",
    ]
    log.info("\n".join(lines), extra=LINES)
