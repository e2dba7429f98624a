"""Rules of one's own: an ordered list of patterns over parameter names, first match wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from xfer.core.errors import ConfigError, closest
from xfer.core.regex import matches
from xfer.freeze.policy import Policy
from xfer.freeze.rows import Layout, Phase, Row

_WORDS = ("head", "backbone", "norms")


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
    start: Annotated[int, Ge(1)] | None = None
    patience: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class Freeze(Policy):
    """Rules in order, and those of later phases. Every parameter must match one, every rule must
    be needed."""

    rules: tuple[Rule, ...]
    later: tuple[Later, ...] = ()

    def __post_init__(self) -> None:
        for i, phase in enumerate(self.later):
            if (phase.start is None) == (phase.patience is None):
                raise one_of(f"freeze.later[{i}]", "start", "patience")
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


def one_of(where: str, first: str, second: str) -> ConfigError:
    """The error for two keys of which exactly one must be given."""
    return ConfigError(where, f"takes exactly one of {first} and {second}", "give one of them", 36)


def _table(rules: Sequence[Rule], layout: Layout, where: str) -> tuple[Row, ...]:
    found = [_matched(rule.match, layout, f"{where}[{i}]") for i, rule in enumerate(rules)]
    winner: dict[str, int] = {}
    for i, names in enumerate(found):
        own = [name for name in names if name not in winner]
        if not own:
            earlier = {winner[name] for name in names}
            raise _unused(rules[i].match, f"{where}[{i}]", sorted(earlier), layout)
        winner |= dict.fromkeys(own, i)
    for name in layout.names:
        if name not in winner:
            what, fix = f"no rule covers '{name}'", "end with {match: backbone, lr: 0}"
            raise ConfigError(where, what, fix, 33)
    return tuple(Row(n, layout.in_head(n), float(rules[winner[n]].lr)) for n in layout.names)


def _matched(match: str, layout: Layout, where: str) -> list[str]:
    stages = dict(layout.stages)
    if match in ("head", "backbone"):
        return [name for name in layout.names if layout.in_head(name) == (match == "head")]
    if match == "norms":
        return [name for name in layout.norms if not layout.in_head(name)]
    if match in stages:
        return list(stages[match])
    return [name for name in layout.names if matches(match, name, where)]


def _unused(match: str, where: str, earlier: Sequence[int], layout: Layout) -> ConfigError:
    if earlier:
        rules = "rule " + " and ".join(str(i) for i in earlier)
        what = f"'{match}' matches only what an earlier rule takes ({rules}, counted from 0)"
        return ConfigError(where, what, "move it up, or drop it", 35)
    if match in _WORDS:
        return ConfigError(where, f"the network has no {match}", "choose another freeze option", 32)
    inner = (".".join(n.split(".")[:k]) for n in layout.names for k in (1, 2, 3))
    known = dict.fromkeys([*(stage for stage, _ in layout.stages), *inner, *_WORDS])
    hint = closest(match.replace("\\", "").rstrip(".*"), known)
    return ConfigError(where, f"'{match}' matches no parameter", hint, 32)
