"""What a sweep looks for and its jobs are compared by, read from what a finished job left."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.config.schema import value_at
from xfer.config.sweep_spec import Direction
from xfer.core.errors import SweepError, closest
from xfer.core.files import read_json, read_text
from xfer.core.types import Plain
from xfer.evaluation.benchmark_names import EAGER, RUN, speeds
from xfer.evaluation.statistics import wilson

_PARAMS = ("params.total", "params.trainable", "params.frozen")
_TIMES = ("timing.fit_s", "timing.total_s", "timing.step_ms_median")


@dataclass(frozen=True)
class Objective:
    """``metric`` is a column of ``metrics.csv``, taken at the best epoch, ``<split>_<score>`` of
    the evaluation, a dotted key of ``result.json``, or ``benchmark.<file>.<measure>``."""

    metric: str
    direction: Direction = "maximize"

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return self.direction == "maximize"

    def value(self, folder: Path, result: Plain) -> float | None:
        """Its value in the run folder with this ``result.json``; ``None`` where there is none."""
        if self.metric.startswith("benchmark."):
            name, _, measure = self.metric.removeprefix("benchmark.").rpartition(".")
            try:
                rows = read_json(folder / "benchmark.json")
            except (OSError, ValueError):
                return None  # the job is listed as one without that value
            named = rows[:1] if name == EAGER else [row for row in rows if row["name"] == name]
            return number_at(named[0], measure) if named else None
        if (pooled := self._pooled(result)) is not None:
            return pooled
        if value_at(result, "best.metric") == self.metric:
            return number_at(result, "best.value")
        value = number_at(result, self.metric)
        if value is None:
            value = _logged(folder, self.metric, value_at(result, "best.epoch"))
        if value is None:
            value = number_at(result, "scores." + self.metric.replace("_", ".", 1))
        return value

    def _pooled(self, result: Plain) -> float | None:
        """The value over all folds, where the job is a cross-validation: of ``val_`` and a metric,
        and of ``scores.val.`` where there is no ``val`` beside the folds."""
        for start in ("val_", "scores.val."):
            beside = start != "val_" and value_at(result, "scores.val") is not None
            if self.metric.startswith(start) and not beside:
                return number_at(result, f"cv.{self.metric.removeprefix(start)}")
        return None

    @property
    def is_time(self) -> bool:
        """Whether what else the machine does changes it."""
        return self.metric.startswith("timing.") or self.metric.endswith((".ms", ".images_per_s"))

    @property
    def split(self) -> str:
        """The split whose images it is measured on; ``val`` for what is measured on none."""
        start = self.metric.removeprefix("scores.").replace(".", "_").partition("_")[0]
        return start if start in ("test", "train") else "val"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of images, which has Wilson's interval."""
        from xfer.evaluation.multilabel_metrics import metric_of

        metric = metric_of(self.metric)
        return metric is not None and metric.share

    def interval(
        self, value: float | None, images: int | None, result: Plain
    ) -> tuple[float, float] | None:
        """Wilson's 95 % interval of a share of ``images``, that of ``result`` for the accuracy of a
        cross-validation; ``None`` for any other number."""
        if value is None or not (self.is_share and images):
            return None
        if (pooled := self._pooled(result)) is not None:
            ends = result["cv"]["acc_ci95"] if pooled == result["cv"]["acc"] else None
            return (float(ends[0]), float(ends[1])) if ends else None
        return wilson(round(value * images), images)

    def gain(self, value: float) -> float:
        """``value``, or its negative, so that more is better."""
        return value if self.maximize else -value


def objectives(
    asked: Mapping[str, Direction],
    monitor: tuple[str, str],
    stages: Sequence[str],
    searches: bool = False,
    files: Sequence[str] = (),
    scores: Collection[str] | None = None,
) -> tuple[Objective, ...]:
    """Those ``asked`` for, else the ``monitor``ed metric with its mode (max or min), where jobs
    train; the accuracy where they only evaluate; none where they do neither. ``files`` are the
    names of those that every job exports, ``scores`` those of what a split is scored by.

    Raises SweepError for what a job with these ``stages`` never logs, and for a sweep that
    ``searches`` for nothing.
    """
    known = _known(stages, files, scores)
    for metric in asked:
        if metric not in known:
            what = f"'{metric}' is never logged with stages=[{','.join(stages)}]"
            fix = closest(metric, known) if known else "add fit to stages"
            timed = any(name.startswith("benchmark.") for name in known)
            if metric.startswith("benchmark.") and not timed:
                fix = "type export=onnx, and add export,benchmark to stages"
            raise SweepError("sweep.objectives", what, fix, 7)
    if asked:
        return tuple(Objective(metric, direction) for metric, direction in asked.items())
    if "fit" in stages and monitor[0] in known:
        return (Objective(monitor[0], "maximize" if monitor[1] == "max" else "minimize"),)
    if "fit" in stages or (searches and not known):
        what = f"'{monitor[0]}' is never logged with stages=[{','.join(stages)}]"
        fix = closest(monitor[0], known) if known else "add fit to stages"
        raise SweepError("checkpoint.monitor", what, fix, 17)
    return (Objective("scores.val.acc", "maximize"),) if known else ()


def _known(
    stages: Sequence[str], files: Sequence[str], scored: Collection[str] | None
) -> list[str]:
    # With numpy, which help does without.
    from xfer.evaluation import metrics

    names: list[str] = []
    scores = [metric.name for metric in metrics.METRICS] if scored is None else scored
    if "fit" in stages:
        columns = [f"val_{name}" for name in scores]
        names += [*columns, "train_loss", *_PARAMS, *_TIMES]
    if "evaluate" in stages:
        names += [f"scores.val.{name}" for name in scores]
    if "benchmark" in stages and ("fit" not in stages or any(f.endswith(RUN) for f in files)):
        names += speeds(files)
    return names


def values(folder: Path, wanted: Sequence[Objective]) -> list[float] | None:
    """The objectives of a finished job in ``folder``; ``None`` where one of them is not there."""
    try:
        result = read_json(folder / "result.json")
    except (OSError, ValueError):
        return None
    every = [objective.value(folder, result) for objective in wanted]
    known = [value for value in every if value is not None]
    return known if len(known) == len(wanted) else None


def _logged(folder: Path, metric: str, epoch: object) -> float | None:
    """The column ``metric`` of ``metrics.csv`` in the row of ``epoch``."""
    try:
        table = csv.DictReader(read_text(folder / "metrics.csv").splitlines())
        cells = {row["epoch"]: row.get(metric) for row in table}
        return number_at({"cell": float(cells.get(str(epoch)) or "nan")}, "cell")
    except (OSError, ValueError, KeyError, csv.Error):
        return None  # the job is listed as one without that value


def trial_value(result: Plain, monitor: str) -> float | None:
    """What a sweeper that knows one number learns of a run: the monitored metric over all folds of
    a cross-validation, else that of the best epoch."""
    pooled = number_at(result, f"cv.{monitor.removeprefix('val_')}")
    return number_at(result, "best.value") if pooled is None else pooled


def number_at(node: object, key: str) -> float | None:
    """The finite number at the dotted ``key``; ``None`` where there is none."""
    value = value_at(node, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
