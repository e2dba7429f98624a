"""A sweep folder read back: its record and its jobs, whatever became of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.core.bounded_yaml import read_yaml
from xfer.core.errors import ConfigError
from xfer.core.files import read_json
from xfer.core.types import Plain
from xfer.plan.resume import flat
from xfer.sweep import Direction
from xfer.sweep.objective import Objective, entry


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
    def seedless(self) -> str:
        """What jobs that differ only in ``seed`` share."""
        rest = {key: value for key, value in self.parameters.items() if key != "seed"}
        return json.dumps(rest, sort_keys=True)


def read_job(number: int, folder: Path, objectives: Sequence[Objective], said: Plain) -> JobRecord:
    """The job in ``folder``; ``said`` are its parameters where it has no ``job.json``."""
    asked, wrong = read_facts(folder / "job.json")
    status, torn = read_facts(folder / "status.json")
    result, bad = read_facts(folder / "result.json")
    plan, _ = read_facts(folder / "plan.json")
    parameters = asked.get("parameters") if asked else said
    overrides = asked.get("overrides")
    if asked and not (isinstance(parameters, dict) and isinstance(overrides, list)):
        wrong = "job.json is not what a sweep writes"
    state, why = _state(status, result, wrong or torn or bad)
    over = state == "finished"
    values = tuple(o.value(folder, result) if over else None for o in objectives)
    absent = [o.metric for o, v in zip(objectives, values, strict=True) if v is None]
    if over and absent:
        why = f"has no {', '.join(absent)}"
    split = objectives[0].split
    n = entry(result, f"scores.{split}.n") or entry(plan, f"splits.{split}.n")
    digest = entry(plan, f"splits.{split}.sha256")
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
        found = read_json(path)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        return {}, f"{path.name} cannot be read ({line})"
    return (found, "") if isinstance(found, dict) else ({}, f"{path.name} holds no facts")


_MARKS = ("job.json", "config.yaml", "status.json")
_MOST_JOBS = 100_000
_FIX = "give sweep.dir=outputs/multirun/EXPERIMENT/SWEEP"


@dataclass(frozen=True)
class SweepRecord:
    """A sweep folder. ``baseline`` are the overrides of its baseline, ``None`` when none is named;
    ``remarks`` say what had to be found out otherwise."""

    folder: Path
    experiment: str
    objectives: tuple[Objective, ...]
    baseline: tuple[str, ...] | None
    jobs: tuple[JobRecord, ...]
    remarks: tuple[str, ...] = ()

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that are not the same in all jobs, in their own order."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.parameters)
        known = [job.parameters for job in self.jobs if job.parameters]
        return tuple(k for k in keys if len({json.dumps(p.get(k)) for p in known}) > 1)


def read(folder: Path) -> SweepRecord:
    """The sweep in ``folder``. Raises ConfigError when that is none, or its record is at fault."""
    folders = _folders(folder)
    remarks: list[str] = []
    record = _record(folder)
    said: Mapping[int, Plain] = {}
    if record is None or not any((path / "job.json").exists() for path in folders.values()):
        configs = {n: _yaml(path / "config.yaml") for n, path in folders.items()}
        said = _differences(configs)
        remarks.append("Parameters are what differs between the config.yaml of the jobs.")
        if record is None:
            record = _made_up(folder, list(configs.values()))
            remarks.append("There is no sweep.json: jobs that left no folder are not known.")
    objectives, baseline, total = _asked(folder, record)
    jobs = [read_job(n, path, objectives, said.get(n, {})) for n, path in sorted(folders.items())]
    none = tuple(None for _ in objectives)
    jobs += [
        JobRecord(n, folder / str(n), "not started", "", {}, (), {}, none, None, None)
        for n in range(total)
        if n not in folders
    ]
    experiment = str(record.get("experiment") or "sweep")
    in_order = tuple(sorted(jobs, key=lambda job: job.number))
    return SweepRecord(folder, experiment, objectives, baseline, in_order, tuple(remarks))


def _folders(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise ConfigError("sweep.dir", f"there is no folder '{folder}'", _FIX, 77)
    numbered = {p.name: p for p in folder.iterdir() if p.name.isdecimal() and p.name.isascii()}
    found = {int(n): p for n, p in numbered.items() if n == str(int(n))}
    jobs = {n: p for n, p in found.items() if any((p / mark).is_file() for mark in _MARKS)}
    if not jobs and not (folder / "sweep.json").is_file():
        what = f"'{folder}' is no sweep: it has neither sweep.json nor a folder of a job"
        raise ConfigError("sweep.dir", what, _FIX, 78)
    return jobs


def _record(folder: Path) -> Plain | None:
    found, wrong = read_facts(folder / "sweep.json")
    if found and found.get("format") != 1:
        wrong = f"sweep.json has format {found.get('format')}, and this version reads 1"
    if wrong:
        raise _faulty(folder, wrong)
    return found or None


def _asked(
    folder: Path, record: Plain
) -> tuple[tuple[Objective, ...], tuple[str, ...] | None, int]:
    try:
        directions: dict[str, Direction] = {"maximize": "maximize", "minimize": "minimize"}
        objectives = tuple(
            Objective(str(entry["metric"]), directions[entry["direction"]])
            for entry in record["objectives"]
        )
        baseline = record.get("baseline")
        named = None if baseline is None else tuple(map(str, baseline))
        total = int(record.get("jobs") or 0)
        if total > _MOST_JOBS:
            raise ValueError(f"{total} jobs are more than {_MOST_JOBS:,}")
    except (KeyError, TypeError, ValueError) as error:
        what = f"sweep.json is not what a sweep writes ({type(error).__name__}: {error})"
        raise _faulty(folder, what) from error
    if not objectives:
        raise _faulty(folder, "sweep.json names no objective")
    return objectives, named, total


def _made_up(folder: Path, configs: Sequence[Plain]) -> Plain:
    """A record from the metric that all jobs monitor."""
    kept = [config["checkpoint"] for config in configs if config.get("checkpoint")]
    monitored = {(str(k.get("monitor")), str(k.get("mode"))) for k in kept if isinstance(k, dict)}
    if len(monitored) != 1:
        known = ", ".join(sorted(metric for metric, _ in monitored)) or "none is known"
        raise _faulty(folder, f"there is no sweep.json, nor one metric in all jobs ({known})")
    ((metric, mode),) = monitored
    direction = "minimize" if mode == "min" else "maximize"
    objectives = [{"metric": metric, "direction": direction}]
    return {"objectives": objectives, "experiment": folder.resolve().parent.name}


def _faulty(folder: Path, what: str) -> ConfigError:
    return ConfigError(folder, what, _FIX, 79)


def _yaml(path: Path) -> Plain:
    try:
        found = read_yaml(path)
    except (OSError, ValueError):
        return {}  # the job is listed without its parameters
    return found if isinstance(found, dict) else {}


def _differences(configs: Mapping[int, Plain]) -> dict[int, Plain]:
    """The leaves of each configuration that are not the same in all of them."""
    leaves = {n: flat(config) for n, config in configs.items() if config}
    keys = dict.fromkeys(key for found in leaves.values() for key in found)
    values = {k: {json.dumps(f.get(k), default=str) for f in leaves.values()} for k in keys}
    differ = [key for key in keys if len(values[key]) > 1]
    # A date in YAML is none in JSON.
    plain = {n: json.loads(json.dumps(found, default=str)) for n, found in leaves.items()}
    return {n: {k: found[k] for k in differ if k in found} for n, found in plain.items()}
