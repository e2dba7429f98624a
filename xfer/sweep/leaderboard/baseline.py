"""Which jobs of a sweep are its baseline: those that the sweep names, or that change nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from xfer.config.provenance import override_key
from xfer.core.bounded_yaml import built
from xfer.core.errors import XferError
from xfer.core.types import Plain
from xfer.plan.resume import flat
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord, read_facts

Compose = Callable[[Sequence[str]], Plain]
"""The configuration that overrides make."""


def baseline(sweep: SweepRecord, compose: Compose | None) -> frozenset[int]:
    """The numbers of the jobs that are the baseline, with whatever seed."""
    if sweep.baseline is not None:
        wanted = _values(sweep.baseline)
        return frozenset(job.number for job in sweep.jobs if _has(job, wanted))
    plain = _unvaried(sweep, compose) if compose else None
    if plain is None:
        return frozenset()
    return frozenset(job.number for job in sweep.jobs if _config(job) == plain)


def _has(job: JobRecord, wanted: Plain) -> bool:
    if not (job.parameters or job.overrides):
        return False
    values = _values(job.overrides) | job.parameters
    keys = (job.parameters.keys() | (wanted.keys() & values.keys())) - {"seed"}
    return all(key in wanted and wanted[key] == values[key] for key in keys)


def _values(overrides: Sequence[str]) -> Plain:
    return {override_key(text): _value(text.partition("=")[2]) for text in overrides}


def _value(text: str) -> Any:
    try:
        value = built(text)
    except ValueError:
        return text
    try:
        # YAML takes 1e-3 for a text, Hydra does not. What is in quotes is one for both.
        return float(value) if isinstance(value, str) and text[0] not in "'\"" else value
    except ValueError:
        return value


def _unvaried(sweep: SweepRecord, compose: Compose) -> Plain | None:
    """What the jobs' commands make without what the sweep varies; ``None`` where they do not say,
    or make nothing any more."""
    typed = []
    for text in [str(job.result["command"]) for job in sweep.jobs if job.result.get("command")]:
        try:
            typed.append(shlex.split(text)[3:])
        except ValueError:
            typed.append([])
    if len(typed) < 2 or not sweep.varied:
        return None
    shared = [text for text in typed[0] if all(text in other for other in typed[1:])]
    fixed = [text for text in shared if override_key(text) not in sweep.varied]
    try:
        return _comparable(compose(fixed))
    except XferError:
        return None  # options of another place or version: there is no telling


def _config(job: JobRecord) -> Plain | None:
    config = read_facts(job.folder / "plan.json")[0].get("config")
    return _comparable(config) if isinstance(config, dict) else None


def _comparable(config: Plain) -> Plain:
    """What decides a run, its seed apart."""
    facts: Plain = json.loads(json.dumps(flat(config), default=str, sort_keys=True))
    return {key: value for key, value in facts.items() if key != "seed"}
