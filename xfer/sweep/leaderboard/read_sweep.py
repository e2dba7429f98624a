"""A sweep folder read back: its record and its jobs, whatever became of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired

from annotated_types import MinLen
from typing_extensions import TypedDict

from xfer.config.schema import value_at
from xfer.config.sweep_spec import Direction
from xfer.core.errors import ConfigError
from xfer.core.files import read_json
from xfer.core.read_back import checked
from xfer.core.types import Plain
from xfer.sweep.objective import Objective

_MOST_JOBS = 100_000
_FIX = "give sweep.dir=outputs/multirun/EXPERIMENT/SWEEP"


class _Goal(TypedDict):
    metric: str
    direction: Direction


class _Record(TypedDict):
    objectives: Annotated[list[_Goal], MinLen(1)]
    experiment: NotRequired[str | None]
    baseline: NotRequired[list[str] | None]
    jobs: NotRequired[int | None]


@dataclass(frozen=True)
class JobRecord:
    """One job. ``state`` is ``finished``, ``pruned`` (ended early by the sweep, with the value that
    it had), ``failed``, ``unfinished`` or ``not started``, ``why`` what is known of that;
    ``values`` has one entry an objective; ``images`` counts those that the first objective was
    measured on, ``split`` is the sha256 of their split."""

    number: int
    folder: Path
    state: str
    why: str
    parameters: Plain
    overrides: tuple[str, ...]
    result: Plain
    values: tuple[float | None, ...]
    images: int | None
    split: str | None

    @property
    def has_value(self) -> bool:
        """Whether the job can be compared."""
        return None not in self.values

    @property
    def folded(self) -> bool:
        """Whether its value is that of a cross-validation."""
        return value_at(self.result, "cv.n") is not None

    @property
    def seedless(self) -> str:
        """What jobs that differ only in ``seed`` share."""
        rest = {key: value for key, value in self.parameters.items() if key != "seed"}
        return json.dumps(rest, sort_keys=True)


@dataclass(frozen=True)
class SweepRecord:
    """A sweep folder. ``baseline``: the overrides of its baseline, ``None`` when none is named."""

    folder: Path
    experiment: str
    objectives: tuple[Objective, ...]
    baseline: tuple[str, ...] | None
    jobs: tuple[JobRecord, ...]

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that are not the same in all jobs, in their own order."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.parameters)
        known = [job.parameters for job in self.jobs if job.parameters]
        return tuple(k for k in keys if len({json.dumps(p.get(k)) for p in known}) > 1)


def read(folder: Path) -> SweepRecord:
    """The sweep in ``folder``. Raises ConfigError when that is none, or its record is at fault."""
    if not folder.is_dir():
        raise ConfigError("sweep.dir", f"there is no folder '{folder}'", _FIX, 77)
    facts, wrong = read_facts(folder / "sweep.json")
    if not (facts or wrong):
        raise ConfigError("sweep.dir", f"'{folder}' is no sweep: it has no sweep.json", _FIX, 78)
    wrong = wrong or _fault(facts)
    if wrong:
        raise ConfigError(folder, wrong, _FIX, 79)
    objectives = tuple(Objective(**goal) for goal in facts["objectives"])
    names = [path.parent.name for path in folder.glob("*/job.json")]
    begun = {int(name) for name in names if name.isdecimal() and name == str(int(name))}
    numbers = sorted(begun | {*range(facts.get("jobs") or 0)})
    baseline = facts.get("baseline")
    return SweepRecord(
        folder,
        facts.get("experiment") or "sweep",
        objectives,
        None if baseline is None else tuple(baseline),
        tuple(_read_job(number, folder / str(number), objectives) for number in numbers),
    )


def _fault(facts: Plain) -> str:
    """What is wrong with the facts of ``sweep.json``, or nothing."""
    if facts.get("format") != 1:
        return f"sweep.json has format {facts.get('format')}, and this version reads 1"
    try:
        checked(_Record, facts)
    except ValueError as error:
        return f"sweep.json is not what a sweep writes ({error})"
    total = facts.get("jobs") or 0
    if total > _MOST_JOBS:
        return f"sweep.json is not what a sweep writes ({total} jobs are more than {_MOST_JOBS:,})"
    return ""


def _read_job(number: int, folder: Path, objectives: Sequence[Objective]) -> JobRecord:
    asked, wrong = read_facts(folder / "job.json")
    status, torn = read_facts(folder / "status.json")
    result, bad = read_facts(folder / "result.json")
    plan, _ = read_facts(folder / "plan.json")
    parameters, overrides = asked.get("parameters"), asked.get("overrides")
    if asked and not (isinstance(parameters, dict) and isinstance(overrides, list)):
        wrong = "job.json is not what a sweep writes"
    state, why = _state(status, result, wrong or torn or bad)
    over = state == "finished"
    values = tuple(o.value(folder, result) if over else None for o in objectives)
    absent = [o.metric for o, v in zip(objectives, values, strict=True) if v is None]
    if over and absent:
        why = f"has no {', '.join(absent)}"
    split = objectives[0].split
    folded = split == "val" and value_at(result, "cv.n") is not None
    scored = "train" if folded else split
    n = value_at(result, f"scores.{scored}.n") or value_at(plan, f"splits.{scored}.n")
    digest = value_at(plan, f"splits.{scored}.sha256")
    return JobRecord(
        number,
        folder,
        "pruned" if over and (folder / "pruned.json").exists() else state,
        why,
        dict(parameters) if isinstance(parameters, dict) else {},
        tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        result if over else {},
        values,
        n if isinstance(n, int) else None,
        digest if isinstance(digest, str) else None,
    )


def _state(status: Plain, result: Plain, wrong: str) -> tuple[str, str]:
    if wrong:
        return "failed", wrong
    state, message = status.get("state"), str(status.get("message") or "")
    if state == "finished":
        return ("finished", "") if result else ("failed", "there is no result.json")
    if state == "failed":
        code = status.get("code")
        return "failed", f"E{code}: {message}" if code else message
    if state is None:
        return "not started", ""
    return "unfinished", message or "at work, or killed"


def read_facts(path: Path) -> tuple[Plain, str]:
    """The JSON object in ``path`` and what is wrong with it; neither when there is no file."""
    try:
        facts = read_json(path)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        return {}, f"{path.name} cannot be read ({line})"
    return (facts, "") if isinstance(facts, dict) else ({}, f"{path.name} holds no facts")
