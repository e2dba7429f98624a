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

import numpy as np
from typing_extensions import TypedDict

from xfer.config.verbs import data_of, override, shell
from xfer.core.bounded_yaml import read_yaml
from xfer.core.errors import CommandError
from xfer.core.files import path_problem, read_bytes, read_json
from xfer.core.read_back import checked
from xfer.core.run_folder import refuse_odd
from xfer.core.types import Plain
from xfer.evaluation.multilabel_predictions import read_label_table
from xfer.evaluation.out_of_fold import TABLE

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
    map: float | None
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
    """What a run said of one image, whether that is ``right``, and how sure it was of it: with
    several labels an image whether every known label is, and the probability of that were they
    independent. ``known`` are then 1, 0 or -1 for unknown a class, and ``shares`` the probabilities
    of yes."""

    label: str
    prediction: str
    confidence: float
    right: bool
    known: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One run under a short ``name``. ``said`` is what it answered on the validation images by
    path, ``history`` the rows of ``metrics.csv``, ``digest`` the sha256 of the validation split:
    names, labels and contents. With ``several`` labels an image ``classes`` are in the order of
    what is ``said``."""

    name: str
    folder: Path
    experiment: str
    config: Plain
    result: Plain
    classes: tuple[str, ...]
    digest: str | None
    said: dict[str, Said]
    history: list[dict[str, float]] = field(default_factory=list)
    several: bool = False

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
        classes=(classes := tuple(plan.get("classes") or ())),
        digest=digest,
        said=_answers(folder / "predictions_val.csv", classes if plan.get("task") else None),
        history=_history(folder / "metrics.csv"),
        several=bool(plan.get("task")),
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


def _answers(path: Path, several: tuple[str, ...] | None) -> dict[str, Said]:
    """What was said of each image by path; of ``several`` classes that do not exclude each other
    where these are given."""
    said: dict[str, Said] = {}
    try:
        rows = _rows(path, _MOST_ROWS)
        for name, one in _single(rows) if several is None else _labels(list(rows), several):
            if name in said:
                raise ValueError(f"'{name[:80]}' is there twice")
            said[name] = one
    except KeyError as error:
        raise _odd(path, f"it has no column {error}") from error
    except ValueError as error:
        raise _odd(path, error) from error
    if not said:
        raise _odd(path, "it has no row")
    return said


def _single(rows: Iterator[dict[str, str]]) -> Iterator[tuple[str, Said]]:
    for row in rows:
        sure = float(row["confidence"])
        if not 0 <= sure <= 1:
            raise ValueError(f"a confidence is {row['confidence'][:40]}")
        right = row["label"] == row["prediction"]
        yield row["path"], Said(row["label"], row["prediction"], sure, right)


def _labels(rows: list[dict[str, str]], classes: tuple[str, ...]) -> Iterator[tuple[str, Said]]:
    answers = read_label_table(rows, classes)
    if answers.labels is None:
        raise ValueError("it has no labels")
    known, shares = answers.labels, answers.probabilities
    right = ~((known >= 0) & (answers.said != (known == 1))).any(axis=1)
    sure = np.where(answers.said, shares, 1 - shares).prod(axis=1)
    for i, row in enumerate(rows):
        words = (row["label"] or _NONE, row["prediction"] or _NONE)
        numbers = (tuple(known[i].tolist()), tuple(shares[i].tolist()))
        yield row["path"], Said(*words, float(sure[i]), bool(right[i]), *numbers)


_NONE = "no label"


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
