"""A run folder as far as runs are compared, held to the types and sizes that a run writes.

A stranger may have made it: no link out of it is followed, and what a run would not have written
is an error that names the file.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from xfer.config.verbs import data_of, override, shell
from xfer.core.bounded_yaml import read_yaml
from xfer.core.checked import checked
from xfer.core.errors import CommandError
from xfer.core.files import path_problem, read_bytes, read_json
from xfer.core.run_folder import refuse_odd
from xfer.core.types import Plain
from xfer.evaluation.out_of_fold import TABLE
from xfer.plan.label_task import refuse_several

_LARGEST = 1 << 26
"""Bytes of a JSON file of a run."""
_MOST_ROWS = 1_000_000
_MOST_EPOCHS = 100_000


class _Status(TypedDict, total=False):
    state: str
    message: str | None


class _Best(TypedDict, total=False):
    metric: str | None
    value: float | None
    epoch: int | None


class _Score(TypedDict, total=False):
    n: int | None
    acc: float | None
    acc_ci95: tuple[float, float] | None
    loss: float | None
    macro_f1: float | None
    auroc: float | None
    ece: float | None
    top5: float | None
    used_for_selection: bool | None


class _Weights(TypedDict, total=False):
    kind: str | None
    sha256: str | None
    coverage: float | None


class _Result(TypedDict, total=False):
    experiment: str | None
    seed: int | None
    best: _Best | None
    scores: dict[str, _Score]
    source: _Weights | None
    checkpoint: dict[str, Any] | None
    device: str | None
    precision: str | None
    versions: dict[str, str | None]


class _SplitFacts(TypedDict, total=False):
    n: int
    sha256: str


class _PlanFacts(TypedDict, total=False):
    task: Plain
    classes: list[str]
    splits: dict[str, _SplitFacts]


class Said(NamedTuple):
    """What a run said of one image."""

    label: str
    prediction: str
    confidence: float

    @property
    def right(self) -> bool:
        """Whether that is its class."""
        return self.label == self.prediction


@dataclass(frozen=True)
class RunRecord:
    """One run under a short ``name``. ``said`` is what it answered on the validation images by
    path, ``history`` the rows of ``metrics.csv``, ``digest`` the sha256 of the validation split:
    names, labels and contents."""

    name: str
    folder: Path
    experiment: str
    config: Plain
    result: Plain
    classes: tuple[str, ...]
    digest: str | None
    said: dict[str, Said]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, Plain]:
        """The scores by split."""
        return self.result.get("scores") or {}

    @property
    def solved(self) -> bool:
        """Whether the rows of its history are strengths of a penalty, and no epochs."""
        return any("l2" in row for row in self.history)


def read_run(folder: Path, name: str) -> RunRecord:
    """The run in ``folder``. Raises CommandError for what is no run folder, has not finished, has
    no predictions, or holds what no run writes, and SafetyError for a link that leads out."""
    if path_problem(str(folder)) or not (folder / "status.json").exists():
        what = "is a file" if folder.is_file() else "has no status.json" if folder.is_dir() else ""
        fix = "give a run folder, the end of its name, or last"
        raise CommandError(folder, f"is no run folder{what and f': it {what}'}", fix, 25)
    refuse_odd(folder)
    status = _facts(folder / "status.json", _Status)
    if status.get("state") != "finished":
        what = f"has not finished: it is {status.get('state') or 'of no state'}"
        raise CommandError(folder, what, f"type xfer resume {shlex.quote(str(folder))}", 20)
    result, plan = _facts(folder / "result.json", _Result), _facts(folder / "plan.json", _PlanFacts)
    if plan.get("task"):
        doing = "runs are compared image by image on"
        refuse_several(folder, doing, "see result.json, or the leaderboard of a sweep")
    if not (folder / "predictions_val.csv").exists():
        what = "has no predictions_val.csv: its validation images were not evaluated"
        if (folder / TABLE).exists():
            what = "is a cross-validation without val: its answers, which a leaderboard compares, "
            what += "are those of folds"
        fix = f"type {_evaluation(folder)}, and compare that run"
        raise CommandError(folder, what, fix, 21)
    digest = (plan.get("splits") or {}).get("val", {}).get("sha256")
    return RunRecord(
        name=name,
        folder=folder,
        experiment=str(result.get("experiment") or folder.resolve().parent.name),
        config=_config(folder / "config.yaml"),
        result=result,
        classes=tuple(plan.get("classes") or ()),
        digest=digest,
        said=_answers(folder / "predictions_val.csv"),
        history=_history(folder / "metrics.csv"),
    )


def _evaluation(folder: Path) -> str:
    """The command that evaluates a run on the data that it was given."""
    which = override("checkpoint.path", str(folder))
    if (folder / TABLE).exists():  # its model was fitted on all of its data
        return shell(["data.root=DIR", "stages=[evaluate]", which])
    try:
        data = data_of(folder)
    except CommandError:  # it does not say: whoever types knows
        data = ["data.root=DIR"]
    return shell([*data, "stages=[evaluate]", which])


def _odd(path: Path, error: object) -> CommandError:
    said = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return CommandError(path, f"is not what a run writes ({said})", "put it back", 24)


def _facts(path: Path, kind: type) -> Plain:
    try:
        facts: Plain = read_json(path, _LARGEST)
        checked(kind, facts)
    except (OSError, ValueError) as error:
        raise _odd(path, error) from error
    return facts


def _config(path: Path) -> Plain:
    try:
        config = read_yaml(path)
        return dict(checked(Plain, config))
    except (OSError, ValueError) as error:
        raise _odd(path, error) from error


def _rows(path: Path, most: int) -> Iterator[dict[str, str]]:
    """The rows of a CSV file one by one, each as long as its head. Raises CommandError."""
    try:
        text = read_bytes(path).decode(errors="surrogateescape")
        for i, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
            if None in row or None in row.values():
                raise ValueError(f"row {i} has not as many cells as the head")
            if i > most:
                raise ValueError(f"it has more than {most:,} rows")
            yield row
    except (OSError, ValueError, csv.Error) as error:
        raise _odd(path, error) from error


def _answers(path: Path) -> dict[str, Said]:
    said: dict[str, Said] = {}
    try:
        for row in _rows(path, _MOST_ROWS):
            sure = float(row["confidence"])
            if not 0 <= sure <= 1:
                raise ValueError(f"a confidence is {row['confidence'][:40]}")
            if row["path"] in said:
                raise ValueError(f"'{row['path'][:80]}' is there twice")
            said[row["path"]] = Said(row["label"], row["prediction"], sure)
    except KeyError as error:
        raise _odd(path, f"it has no column {error}") from error
    except ValueError as error:
        raise _odd(path, error) from error
    if not said:
        raise _odd(path, "it has no row")
    return said


def _history(path: Path) -> list[dict[str, float]]:
    """The finite numbers of every row; nothing for a run that did not train."""
    if not path.exists():
        return []
    try:
        rows = [
            {key: float(text) for key, text in row.items() if text}
            for row in _rows(path, _MOST_EPOCHS)
        ]
    except ValueError as error:
        raise _odd(path, error) from error
    return [{key: value for key, value in row.items() if math.isfinite(value)} for row in rows]
