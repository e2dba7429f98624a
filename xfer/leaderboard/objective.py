"""What the jobs of a sweep are compared by, read from a job's ``result.json``."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from xfer.statistics import wilson
from xfer.types import Plain


@dataclass(frozen=True)
class Objective:
    """``metric`` is a column of ``metrics.csv``, taken at the best epoch, ``<split>_<score>`` of
    the evaluation, or a dotted key of ``result.json``."""

    metric: str
    maximize: bool = True

    def value(self, folder: Path, result: Plain) -> float | None:
        """Its value in the run folder with this ``result.json``; ``None`` where there is none."""
        if entry(result, "best.metric") == self.metric:
            return number_at(result, "best.value")
        split, _, name = self.metric.partition("_")
        found = (
            number_at(result, self.metric),
            _logged(folder, self.metric, entry(result, "best.epoch")),
            number_at(result, f"scores.{split}.{name}"),
        )
        return next((value for value in found if value is not None), None)

    @property
    def split(self) -> str:
        """The split whose images it is measured on; ``val`` for what is measured on none."""
        start = self.metric.removeprefix("scores.").replace(".", "_").partition("_")[0]
        return start if start in ("test", "train") else "val"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of images, which has Wilson's interval."""
        return self.metric.replace(".", "_").endswith(("_acc", "_top5"))

    def interval(self, value: float, images: int | None) -> tuple[float, float] | None:
        """Wilson's 95 % interval of a share of ``images``; ``None`` for any other number."""
        if not (self.is_share and images):
            return None
        return wilson(round(value * images), images)

    def gain(self, value: float) -> float:
        """``value``, or its negative, so that more is better."""
        return value if self.maximize else -value


def _logged(folder: Path, metric: str, epoch: object) -> float | None:
    """The column ``metric`` of ``metrics.csv`` in the row of ``epoch``."""
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as stream:
            cells = {row["epoch"]: row.get(metric) for row in csv.DictReader(stream)}
        return number_at({"cell": float(cells.get(str(epoch)) or "nan")}, "cell")
    except (OSError, ValueError, KeyError, csv.Error):
        return None  # the job is listed as one without that value


def entry(node: object, key: str) -> object:
    """What is at the dotted ``key`` of JSON facts; ``None`` where there is nothing."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def number_at(node: object, key: str) -> float | None:
    """The finite number at the dotted ``key``; ``None`` where there is none."""
    value = entry(node, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
