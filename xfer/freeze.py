"""Which parameters train and how fast: an ordered list of patterns, first match wins.

The idea of ordered name patterns with learning-rate multiples follows big_vision; frozen means
inference mode, as in Keras: no gradient, no dropout, no moving statistics, in no optimizer group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from xfer.errors import ConfigError, closest

if TYPE_CHECKING:
    from torch import nn

_RESERVED = ("head", "backbone")


@dataclass(frozen=True)
class Rule:
    """``match``: ``head``, ``backbone`` (all but the head) or a regular expression that must
    match a whole parameter name. ``lr``: multiple of the base learning rate; 0 is frozen."""

    match: str
    lr: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Row:
    """One parameter: its name, whether it is the head's, and its learning-rate multiple."""

    name: str
    head: bool
    lr: float

    @property
    def frozen(self) -> bool:
        """Whether it never moves."""
        return self.lr == 0


@dataclass(frozen=True)
class Freeze:
    """Rules in order. Every parameter must match one, every rule must be needed."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ConfigError("freeze.rules", "the list is empty", "use freeze=none", 30)
        for i, rule in enumerate(self.rules):
            if rule.match not in _RESERVED:
                _compiled(rule.match, i)

    def table(self, names: Sequence[str], heads: Iterable[str]) -> list[Row]:
        """One row a parameter, in the order of ``names``.

        Raises ConfigError for a rule that matches nothing or only what earlier rules took, a
        parameter without a rule, and a table with nothing to train.
        """
        prefixes = tuple(f"{h}." for h in heads)
        used = [False] * len(self.rules)
        rows = []
        for name in names:
            is_head = name.startswith(prefixes)
            i = self._first(name, is_head)
            used[i] = True
            rows.append(Row(name, is_head, float(self.rules[i].lr)))
        self._refuse_unused(used, names)
        if all(row.frozen for row in rows):
            raise ConfigError(
                "freeze.rules", "leave nothing to train", "give one rule an lr above 0", 34
            )
        return rows

    def _first(self, name: str, is_head: bool) -> int:
        for i, rule in enumerate(self.rules):
            if _matches(rule.match, name, is_head):
                return i
        raise ConfigError(
            "freeze.rules", f"no rule covers '{name}'", "end with {match: backbone, lr: 0}", 33
        )

    def _refuse_unused(self, used: Sequence[bool], names: Sequence[str]) -> None:
        for i, rule in enumerate(self.rules):
            if not used[i]:
                stages = dict.fromkeys(".".join(n.split(".")[:k]) for n in names for k in (1, 2, 3))
                raise ConfigError(
                    f"freeze.rules[{i}]",
                    f"'{rule.match}' matches no parameter that an earlier rule left",
                    closest(rule.match.replace("\\", "").rstrip(".*"), stages),
                    32,
                )


def _compiled(pattern: str, position: int) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"freeze.rules[{position}]",
            f"'{pattern}' is no pattern ({error})",
            "write e.g. layer4\\..*",
            31,
        ) from error


def _matches(match: str, name: str, is_head: bool) -> bool:
    if match in _RESERVED:
        return is_head == (match == "head")
    return re.fullmatch(match, name) is not None


def apply(net: nn.Module, rows: Sequence[Row]) -> None:
    """Set ``requires_grad`` of every parameter from the table."""
    trains = {row.name: not row.frozen for row in rows}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trains[name])


def hold(net: nn.Module) -> None:
    """Put every wholly frozen module into inference mode; call after each ``net.train()``.

    A module without parameters (dropout) goes with the next one beside it that has some.
    """
    parameters = list(net.parameters())
    if not parameters:
        return
    if not any(p.requires_grad for p in parameters):
        net.eval()
        return
    before_frozen = False
    for child in reversed(list(net.children())):
        own = list(child.parameters())
        if own:
            before_frozen = not any(p.requires_grad for p in own)
            hold(child)
        elif before_frozen:
            child.eval()
