"""Ways to choose what trains: rules over parameter names, stages of the backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from xfer.core.errors import ConfigError, closest
from xfer.core.regex import matches
from xfer.core.types import Plain
from xfer.freeze.rows import BatchNorm, Layout, ParameterRow, Phase, checked

Count = Annotated[int, Ge(1)]
Multiple = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]

_WORDS = ("head", "backbone", "norms")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A way to choose what trains.

    ``batch_norm`` says what a BatchNorm layer inside the frozen part does. ``eval``: nothing, it
    is in inference mode. ``adapt``: its scale and shift stay, its running statistics follow the
    data. ``train``: its scale and shift train as well, at multiple 1, and its statistics move.
    """

    batch_norm: BatchNorm = "eval"
    """what a BatchNorm inside the frozen part does"""

    def phases(self, layout: Layout, epochs: int) -> tuple[Phase, ...]:
        """The phases of a run of ``epochs`` epochs on a network. Raises ConfigError where a key
        does not suit the network or the run."""
        norms = set(layout.batch_norms)
        if self.batch_norm != "eval" and not norms:
            what = f"'{self.batch_norm}' has nothing to act on: the network has no BatchNorm"
            raise ConfigError("freeze.batch_norm", what, "type freeze.batch_norm=eval", 31)
        phases = checked(self.planned(layout, epochs), epochs)
        if self.batch_norm != "train":
            return phases
        trained = ({row.name for row in phase.rows if not row.frozen} for phase in phases)
        return tuple(
            replace(phase, rows=with_multiple(phase.rows, norms - names, 1.0))
            for phase, names in zip(phases, trained, strict=True)
        )

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Those of ``phases`` that are left to train where the head begins solved: all."""
        return phases

    def adapters(self, layout: Layout) -> Plain:
        """What :func:`xfer.models.adapters.put` gives the network before the phases are asked for:
        nothing."""
        return {}

    def planned(self, layout: Layout, epochs: int) -> Sequence[Phase]:
        """The phases as the policy itself wants them: one, unless it has more, with the head at 1
        and the stages at what ``_multiples`` says."""
        return [Phase(layout.rows(1, self._multiples(layout)), 0, None, "phase 1")]

    def _multiples(self, layout: Layout) -> list[float]:
        """The learning-rate multiple of each stage; 0 is frozen."""
        raise NotImplementedError


def with_multiple(
    rows: Iterable[ParameterRow], names: Collection[str], lr: float
) -> tuple[ParameterRow, ...]:
    """``rows``, with the multiple ``lr`` for those that ``names`` has."""
    return tuple(replace(row, lr=lr) if row.name in names else row for row in rows)


@dataclass(frozen=True)
class Rule:
    """``match``: ``head``, ``backbone`` (all but the head), ``norms`` (normalisation layers), the
    name of a stage, or a regular expression that must match a whole parameter name. ``lr``:
    multiple of the base learning rate; 0 is frozen."""

    match: str
    lr: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Later:
    """The rules of a later phase. It starts at epoch ``start``, counted from 0, or after
    ``patience`` epochs without a new best of the monitored metric; exactly one is given."""

    rules: tuple[Rule, ...]
    start: Count | None = None
    patience: Count | None = None


@dataclass(frozen=True)
class OrderedRules(Policy):
    """Rules in order, of which the first that matches a parameter counts, and those of later
    phases. Every parameter must match one, every rule must be needed."""

    rules: tuple[Rule, ...]
    """each rule is ``{match: PATTERN, lr: MULTIPLE}``, the first that matches a parameter
    decides; ``rules`` must be given only for ``freeze=rules``"""
    later: tuple[Later, ...] = ()
    """later phases, each ``{start: EPOCH, rules: [...]}`` or ``{patience: EPOCHS, rules:
    [...]}``"""

    def __post_init__(self) -> None:
        for i, phase in enumerate(self.later):
            if (phase.start is None) == (phase.patience is None):
                raise _one_of(f"freeze.later[{i}]", "start")
        for where, rules in self._lists():
            if not rules:
                raise ConfigError(where, "the list is empty", "use freeze=none", 30)
            for i, rule in enumerate(rules):
                if rule.match not in _WORDS:
                    matches(rule.match, "", f"{where}[{i}]")

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase, and one for each of ``later``."""
        starts = [(0, None), *((phase.start, phase.patience) for phase in self.later)]
        return [
            Phase(_table(rules, layout, where), *starts[i], name=f"phase {i + 1}")
            for i, (where, rules) in enumerate(self._lists())
        ]

    def _lists(self) -> list[tuple[str, tuple[Rule, ...]]]:
        more = [(f"freeze.later[{i}].rules", phase.rules) for i, phase in enumerate(self.later)]
        return [("freeze.rules", self.rules), *more]


def _one_of(where: str, other: str) -> ConfigError:
    return ConfigError(where, f"takes exactly one of {other} and patience", "give one of them", 36)


def _table(rules: Sequence[Rule], layout: Layout, where: str) -> tuple[ParameterRow, ...]:
    winner: dict[str, int] = {}
    for i, rule in enumerate(rules):
        names = _matched(rule.match, layout, f"{where}[{i}]")
        new = [name for name in names if name not in winner]
        if not new:
            earlier = {winner[name] for name in names}
            raise _unused(rule.match, f"{where}[{i}]", sorted(earlier), layout)
        winner |= dict.fromkeys(new, i)
    for name in layout.names:
        if name not in winner:
            what, fix = f"no rule covers '{name}'", "end with {match: backbone, lr: 0}"
            raise ConfigError(where, what, fix, 33)
    return tuple(
        ParameterRow(n, layout.in_head(n), float(rules[winner[n]].lr)) for n in layout.names
    )


def _matched(match: str, layout: Layout, where: str) -> Sequence[str]:
    if match in ("head", "backbone"):
        return [name for name in layout.names if layout.in_head(name) == (match == "head")]
    if match == "norms":
        return [name for name in layout.norms if not layout.in_head(name)]
    stage = dict(layout.stages).get(match)
    return stage or [name for name in layout.names if matches(match, name, where)]


def _unused(match: str, where: str, earlier: Sequence[int], layout: Layout) -> ConfigError:
    if earlier:
        rules = "rule " + " and ".join(str(i) for i in earlier)
        what = f"'{match}' matches only what an earlier rule takes ({rules}, counted from 0)"
        return ConfigError(where, what, "move it up, or drop it", 35)
    if match in _WORDS:
        return ConfigError(where, f"the network has no {match}", "choose another freeze option", 32)
    inner = (".".join(n.split(".")[:k]) for n in layout.names for k in (1, 2, 3))
    known = dict.fromkeys([*(stage for stage, _ in layout.stages), *inner, *_WORDS])
    return ConfigError(where, f"'{match}' matches no parameter", closest_match(match, known), 32)


def closest_match(pattern: str, names: Iterable[str]) -> str:
    """A hint with the one of ``names`` that is nearest to a pattern."""
    return closest(pattern.replace("\\", "").rstrip(".*"), names)


@dataclass(frozen=True, kw_only=True)
class LayerDecay(Policy):
    """Everything trains; the multiple is ``decay`` to the power of the stage's distance from the
    head, whose own is 1 (ELECTRA, Clark et al. 2020; BEiT, Bao et al. 2022)."""

    decay: Share = 0.75
    """a stage's multiple is this to the power of its distance from the head; the last stage's
    distance is 1, the head's multiple 1"""

    def _multiples(self, layout: Layout) -> list[float]:
        return [self.decay**distance for distance in range(len(layout.stages), 0, -1)]


@dataclass(frozen=True, kw_only=True)
class Discriminative(Policy):
    """Everything trains; the multiples rise by one factor from stage to stage, from ``lowest`` at
    the first to 1 at the head (the sliced learning rates of fastai)."""

    lowest: Share = 0.01
    """multiple of the first stage; from stage to stage it grows by one factor, up to 1 at the
    head"""

    def _multiples(self, layout: Layout) -> list[float]:
        count = len(layout.stages)
        return [self.lowest ** (distance / count) for distance in range(count, 0, -1)]


@dataclass(frozen=True, kw_only=True)
class Gradual(Policy):
    """The head trains first, then one stage more from the last to the first, every ``every``
    epochs; ``lr`` is the stages' multiple, the head's is 1 (ULMFiT, Howard and Ruder 2018)."""

    every: Count = 1
    """epochs from one stage to the next; the last of them must begin within the run"""
    lr: Multiple = 0.01
    """multiple of the stages that train; the head's is 1"""

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase for the head, and one a stage."""
        names = ["head alone", *(name for name, _ in reversed(layout.stages))]
        count = len(layout.stages)
        multiples = [
            [0.0] * (count - trained) + [self.lr] * trained for trained in range(count + 1)
        ]
        return [
            Phase(layout.rows(1, multiples[i]), i * self.every, None, name)
            for i, name in enumerate(names)
        ]


@dataclass(frozen=True, kw_only=True)
class LpFt(Policy):
    """Linear probe, then fine-tune from it (Kumar et al. 2022): the head trains alone, then
    everything."""

    probe_epochs: Count | None = None
    """epochs that the head trains alone; ``null`` without ``freeze.patience`` is half of
    ``trainer.max_epochs``, or none where the head begins solved"""
    patience: Count | None = None
    """instead: the head trains alone until so many epochs brought no new best of
    ``checkpoint.monitor``"""
    backbone_lr: Multiple = 0.01
    """multiple of the backbone's last stage afterwards"""
    head_lr: Multiple = 0.01
    """multiple of the head afterwards"""
    decay: Share = 1.0
    """each stage before the last is slower by this factor than the next nearer the head"""
    norms: Literal["train", "freeze"] = "train"
    """whether BatchNorm trains afterwards as well, or stays as it came, in inference mode: the
    statistics of small batches can be much worse than those of the pretraining, see fine-tune"""

    def __post_init__(self) -> None:
        if self.probe_epochs is not None and self.patience is not None:
            raise _one_of("freeze", "probe_epochs")

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """See :meth:`Policy.after_solved`: the probe is done, unless it was given a length."""
        if self.probe_epochs is not None or self.patience is not None:
            return phases
        return (replace(phases[1], start=0),)

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """Two phases."""
        count = len(layout.stages)
        start = None
        if self.patience is None:
            start = self.probe_epochs or max(1, epochs // 2)
        slower = [self.backbone_lr * self.decay ** (count - 1 - i) for i in range(count)]
        tuned = layout.rows(self.head_lr, slower)
        if self.norms == "freeze":
            tuned = with_multiple(tuned, set(layout.batch_norms), 0.0)
        probe = layout.rows(1, [0.0] * count)
        return [
            Phase(probe, 0, None, "linear probe"),
            Phase(tuned, start, self.patience, "fine-tune"),
        ]


@dataclass(frozen=True, kw_only=True)
class _Split(Policy):
    """``lr``: learning-rate multiple of the stages that train; the head's is 1."""

    lr: Multiple = 0.01
    """multiple of the stages that train; the head's is 1"""

    def _multiples(self, layout: Layout) -> list[float]:
        cut = self._cut(layout)
        return [self.lr if i >= cut else 0.0 for i in range(len(layout.stages))]

    def _cut(self, layout: Layout) -> int:
        """How many stages are frozen."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LastStage(_Split):
    """The head and the last ``stages`` stages train."""

    stages: Count = 1
    """``last_stage``: how many stages train beside the head"""

    def _cut(self, layout: Layout) -> int:
        return len(layout.stages) - _at_most(self.stages, layout, "freeze.stages")


@dataclass(frozen=True, kw_only=True)
class FirstN(_Split):
    """The first ``n`` stages are frozen."""

    n: Count
    """``first_n``: how many stages are frozen"""

    def _cut(self, layout: Layout) -> int:
        return _at_most(self.n, layout, "freeze.n")


@dataclass(frozen=True, kw_only=True)
class UpTo(_Split):
    """Every stage up to ``stage``, and ``stage`` itself, is frozen."""

    stage: str
    """``up_to``: the last stage that is frozen"""

    def _cut(self, layout: Layout) -> int:
        names = [name for name, _ in layout.stages]
        if self.stage not in names:
            what = f"the network has no stage '{self.stage}'"
            raise ConfigError("freeze.stage", what, closest(self.stage, names), 39)
        return names.index(self.stage) + 1


def _at_most(count: int, layout: Layout, where: str) -> int:
    names = [name for name, _ in layout.stages]
    if count > len(names):
        what = f"is {count}, but the network has {len(names)} stages: {', '.join(names)}"
        raise ConfigError(where, what, f"type {where}={len(names)} or less", 39)
    return count
