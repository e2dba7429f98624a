"""What a sweep looks for, read from what a finished job left."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfer.errors import SweepError, closest
from xfer.logged import names
from xfer.sweep import Direction

_PARAMS = ("params.total", "params.trainable", "params.frozen")
_TIMES = ("timing.fit_s", "timing.total_s", "timing.step_ms_median")
_SCORES = tuple(f"scores.val.{name}" for name in ("acc", "loss", "macro_f1"))


@dataclass(frozen=True)
class Objective:
    """``metric`` is a column of ``metrics.csv``, taken at the best epoch, or a dotted number of
    ``result.json``."""

    metric: str
    direction: Direction


def objectives(
    asked: Mapping[str, Direction],
    monitor: tuple[str, str],
    stages: Sequence[str],
    searches: bool = False,
) -> tuple[Objective, ...]:
    """Those ``asked`` for, else the ``monitor``ed metric with its mode (max or min), where jobs
    train; the accuracy where they only evaluate; none where they do neither.

    Raises SweepError for what a job with these ``stages`` never logs, and for a sweep that
    ``searches`` for nothing.
    """
    known = _known(stages)
    for metric in asked:
        if metric not in known:
            what = f"'{metric}' is never logged with stages=[{','.join(stages)}]"
            fix = closest(metric, known) if known else "add fit to stages"
            raise SweepError("sweep.objectives", what, fix, 8)
    if asked:
        return tuple(Objective(metric, direction) for metric, direction in asked.items())
    if "fit" in stages and monitor[0] in known:
        return (Objective(monitor[0], "maximize" if monitor[1] == "max" else "minimize"),)
    if "fit" in stages or (searches and not known):
        what = f"'{monitor[0]}' is never logged with stages=[{','.join(stages)}]"
        fix = closest(monitor[0], known) if known else "add fit to stages"
        raise SweepError("checkpoint.monitor", what, fix, 17)
    return (Objective("scores.val.acc", "maximize"),) if known else ()


def _known(stages: Sequence[str]) -> list[str]:
    fitted = [*names(1000), *_PARAMS, *_TIMES] if "fit" in stages else []
    return fitted + (list(_SCORES) if "evaluate" in stages else [])


def values(folder: Path, wanted: Sequence[Objective]) -> list[float] | None:
    """The objectives of a finished job in ``folder``; ``None`` where one of them is not there."""
    try:
        result = json.loads((folder / "result.json").read_text())
        found = [_value(folder, result, objective.metric) for objective in wanted]
        return [float(value) for value in found]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _value(folder: Path, result: Any, metric: str) -> Any:
    if "." in metric:
        for part in metric.split("."):
            result = result[part]
        return result
    best = result["best"]
    if best["metric"] == metric:
        return best["value"]
    with (folder / "metrics.csv").open() as stream:
        return next(r[metric] for r in csv.DictReader(stream) if int(r["epoch"]) == best["epoch"])
