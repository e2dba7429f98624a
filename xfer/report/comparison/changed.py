"""What differs in the configurations, versions and weights of several runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from xfer.core.types import Plain
from xfer.report.comparison.read_run import RunRecord
from xfer.report.format import ABSENT, short

_WIDE = 80
_OF_THE_RESULT = ("device", "precision")


def changed(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """The dotted keys that are not the same in all runs, with the value of each; a key that is
    absent is the same as one that is null. Versions, and the sha256 of weights and splits, come
    after the configuration."""
    every = [dict(_facts(run)) for run in runs]
    names = dict.fromkeys(name for facts in every for name in facts)
    rows = []
    for name in names:
        values = [facts.get(name) for facts in every]
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
            rows.append((name, tuple(_shown(value) for value in values)))
    return rows


def _facts(run: RunRecord) -> Iterator[tuple[str, Any]]:
    yield from flattened(run.config)
    for name in _OF_THE_RESULT:
        yield f"result: {name}", run.result.get(name)
    yield "weights: sha256", (run.result.get("source") or {}).get("sha256")
    yield "scored checkpoint: sha256", (run.result.get("checkpoint") or {}).get("sha256")
    yield "validation images: sha256", run.digest
    for name, version in sorted((run.result.get("versions") or {}).items()):
        yield f"version: {name}", version


def flattened(config: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists are values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return short(text, _WIDE)
