"""The search space: what varies, and the values that each may take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xfer.core.errors import SweepError
from xfer.core.types import Plain


@dataclass(frozen=True)
class Choice:
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


Parameter = Choice | Interval


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
    rows: list[list[tuple[str, Any]]] = []
    for parameter in space:
        if isinstance(parameter, Interval):
            what = "an interval has no grid of values"
            fix = "type sweep.sampler=tpe sweep.n_trials=32, or list values"
            raise SweepError(parameter.key, what, fix, 6)
        rows.append(list(zip(parameter.texts, parameter.values, strict=True)))
    return [_job(i, space, row) for i, row in enumerate(itertools.product(*rows))]


def chosen(number: int, space: Sequence[Parameter], found: Plain, trial: Plain | None) -> Job:
    """The job of the values that a sampler chose: positions of choices, and numbers."""
    row = []
    for parameter in space:
        value = found[parameter.key]
        if isinstance(parameter, Choice):
            row.append((parameter.texts[value], parameter.values[value]))
        else:
            row.append((repr(value), value))
    return _job(number, space, row, trial)


def drawn(job: Job, space: Sequence[Parameter]) -> Plain:
    """What :func:`chosen` made the job of. Raises SweepError where it is of another space."""
    found: Plain = {}
    for p in space:
        if isinstance(p, Choice):
            at = [i for i, text in enumerate(p.texts) if f"{p.key}={text}" in job.overrides]
            value = at[0] if at else None
        else:
            value = job.parameters.get(p.key)
        if value is None:
            what = f"job {job.number} has no value of it that the space has"
            raise SweepError(p.key, what, "choose another sweep.dir", 24)
        found[p.key] = value
    return found


def is_finite(parameter: Parameter) -> bool:
    """Whether its numbers are, also those in lists."""
    values = (
        parameter.values if isinstance(parameter, Choice) else (parameter.low, parameter.high)
    )  # fmt: skip
    try:
        json.dumps(values, allow_nan=False, default=str)
    except ValueError:
        return False
    return True


def unmatched(space: Sequence[Parameter], wanted: Mapping[str, Any]) -> str:
    """Why no job has the ``wanted`` values, with whatever seed; nothing where one has."""
    for p in space:
        if p.key == "seed":
            continue
        if p.key not in wanted:
            return f"it does not say {p.key}, which every job sets"
        value = wanted[p.key]
        if isinstance(p, Choice):
            there = value in p.values
        else:
            there = isinstance(value, int | float) and p.low <= value <= p.high
        if not there:
            return f"no job has {p.key}={value}"
    return ""


def _job(
    number: int,
    space: Sequence[Parameter],
    row: Sequence[tuple[str, Any]],
    trial: Plain | None = None,
) -> Job:
    pairs = list(zip(space, row, strict=True))
    texts = tuple(f"{p.key}={text}" for p, (text, _) in pairs)
    return Job(number, texts, {p.key: value for p, (_, value) in pairs}, trial)


def probes(space: Sequence[Parameter]) -> list[tuple[str, ...]]:
    """A few combinations with every value of every choice, and both ends of every interval."""
    ends = [
        p.texts if isinstance(p, Choice) else (repr(p.low), repr(p.high)) for p in space
    ]  # fmt: skip
    return [
        tuple(f"{p.key}={texts[i % len(texts)]}" for p, texts in zip(space, ends, strict=True))
        for i in range(max(map(len, ends), default=0))
    ]
