"""One job of a sweep as it lies on the disk, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.files import read_json
from xfer.sweep.objective import Objective, entry
from xfer.types import Plain


@dataclass(frozen=True)
class Job:
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


def read_job(number: int, folder: Path, objectives: Sequence[Objective], said: Plain) -> Job:
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
    return Job(
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
