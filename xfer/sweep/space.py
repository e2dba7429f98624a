"""The search space: what varies, and the values that each may take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xfer.core.errors import SweepError
from xfer.core.types import Plain


@dataclass(frozen=True)
class Choices:
    """One of ``texts``, as an override has them; ``values`` are the same as plain values.
    ``ordered``: they are numbers of a range."""

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]
    ordered: bool = False


@dataclass(frozen=True)
class Interval:
    """A number from ``low`` to ``high``, both of them in; ``log``: even in its logarithm."""

    key: str
    low: float
    high: float
    whole: bool = False
    log: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Both ends, as an override has them."""
        return repr(self.low), repr(self.high)

    @property
    def values(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.low, self.high


Parameter = Choices | Interval


@dataclass(frozen=True)
class Job:
    """One job: the ``overrides`` that set it apart, and the same as plain values by key.
    ``trial``: how the job finds its trial, where a pruner watches it."""

    number: int
    overrides: tuple[str, ...]
    parameters: Plain
    trial: Plain | None = None


def grid(space: Sequence[Parameter]) -> list[Job]:
    """Every combination, the last parameter fastest. Raises SweepError for an interval."""
    for p in space:
        if isinstance(p, Interval):
            what = "an interval has no grid of values"
            fix = "type sweep.sampler=tpe sweep.n_trials=32, or list values"
            raise SweepError(p.key, what, fix, 6)
    rows = itertools.product(*(zip(p.texts, p.values, strict=True) for p in space))
    return [_job(number, space, row) for number, row in enumerate(rows)]


def chosen(number: int, space: Sequence[Parameter], drawn: Plain, trial: Plain | None) -> Job:
    """The job of the values that a sampler chose: positions of choices, and numbers."""
    pairs = [(p, drawn[p.key]) for p in space]
    row = [
        (p.texts[at], p.values[at]) if isinstance(p, Choices) else (repr(at), at) for p, at in pairs
    ]
    return _job(number, space, row, trial)


def _job(
    number: int, space: Sequence[Parameter], row: Iterable[tuple[str, Any]], trial: Any = None
) -> Job:
    pairs = list(zip(space, row, strict=True))
    texts = tuple(f"{p.key}={text}" for p, (text, _) in pairs)
    return Job(number, texts, {p.key: value for p, (_, value) in pairs}, trial)


def drawn(job: Job, space: Sequence[Parameter]) -> Plain:
    """What :func:`chosen` made the job of. Raises SweepError where it is of another space."""
    values: Plain = {}
    for p in space:
        if isinstance(p, Choices):
            at = [i for i, text in enumerate(p.texts) if f"{p.key}={text}" in job.overrides]
            value = at[0] if at else None
        else:
            value = job.parameters.get(p.key)
        if value is None:
            what = f"job {job.number} has none of the values that the space has"
            raise SweepError(p.key, what, "choose another sweep.dir", 24)
        values[p.key] = value
    return values


def is_finite(parameter: Parameter) -> bool:
    """Whether its numbers are, also those in lists."""
    try:
        json.dumps(parameter.values, allow_nan=False, default=str)
    except ValueError:
        return False
    return True


def unmatched(space: Sequence[Parameter], wanted: Mapping[str, Any]) -> str:
    """Why no job has the ``wanted`` values, with whatever seed; nothing where one has."""
    for p in space:
        value = wanted.get(p.key)
        if p.key == "seed":
            continue
        if p.key not in wanted:
            return f"it does not say {p.key}, which every job sets"
        if isinstance(p, Choices):
            there = value in p.values
        else:
            there = isinstance(value, int | float) and p.low <= value <= p.high
        if not there:
            return f"no job has {p.key}={value}"
    return ""


def probes(space: Sequence[Parameter]) -> list[tuple[str, ...]]:
    """A few combinations with every value of every choice, and both ends of every interval."""
    return [
        tuple(f"{p.key}={p.texts[i % len(p.texts)]}" for p in space)
        for i in range(max((len(p.texts) for p in space), default=0))
    ]
