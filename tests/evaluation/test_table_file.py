"""Predictions as parquet: the table that CSV has, in row groups that are written as they come."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
import warm
from pictures import folders
from runs import finish

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, CommandError
from xfer.core.types import Predictions
from xfer.evaluation.certificate_answers import words_beside
from xfer.evaluation.predict import write_beside, write_predictions

FEW, MANY = 40_000, 120_000
ROWS = 1 << 14  # of a row group


def drawn(count: int = 700, width: int = 3, **other: Any) -> Predictions:
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, width)).astype(np.float32)
    labels = random.integers(0, width, count)
    # Names that a spreadsheet would run, and one that is no UTF-8.
    names = ["=a.jpg", "\udcff.jpg", *(f"{i}.jpg" for i in range(2, count))]
    classes = ("a", "=b", *(f"c{i}" for i in range(2, width)))
    return Predictions(names[:count], logits, labels, classes, **other)


LABELS = {"kind": "multilabel", "thresholds": [0.5] * 3, "chosen_on": "val"}
TABLES = {
    "usual": drawn(),
    "certified": drawn(sets=np.ones((700, 3), bool), p_unlike=np.linspace(0, 1, 700), views=2),
    "many_classes": drawn(width=101),
    "several_labels": replace(drawn(task=LABELS), labels=np.tile([1, 0, -1], (700, 1))),
    "unknown": replace(drawn(), labels=None),
    "empty": drawn(0),
}


def test_a_line_for_people_says_what_a_certificate_found() -> None:
    sets = np.array([[1, 1, 0], [0, 0, 0]], bool)
    found = drawn(2, sets=sets, p_unlike=np.array([0.124, 0.002]))
    assert [words_beside(found, i) for i in (0, 1)] == [
        "; prediction set a|=b; 12.4 % of images like those of training look as strange",
        "; prediction set of 0; 0.2 % of images like those of training look as strange",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_parquet_has_the_columns_and_rows_of_csv(name: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    given = TABLES[name]
    beside = {"fold": [i % 5 for i in range(len(given.names))]}
    for file in ("p.csv", "p.parquet", "again.parquet"):
        write_predictions(given, tmp_path / file, beside)
    with (tmp_path / "p.csv").open(errors="surrogateescape", newline="") as stream:
        heading, *rows = csv.reader(stream)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert [column.replace("p_=", "p_'=") for column in table.column_names] == heading
    kinds = {str(field.type) for field in table.schema}
    assert kinds <= {"string", "double", "int64"} and "double" in kinds
    for i, column in enumerate(table.columns):
        values = column.to_pylist()
        if str(column.type) == "double":
            assert [f"{value:.6f}" for value in values] == [row[i] for row in rows]
            continue
        plain = [row[i].removeprefix("'").replace("\udcff", "\\udcff") for row in rows]
        assert [str(value) for value in values] == plain
    assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


class Seen(Sequence[str]):
    """Names that note how much memory Arrow holds whenever some of them are read."""

    def __init__(self, count: int, held: list[int]) -> None:
        self.count, self.held = count, held

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        import pyarrow

        self.held.append(pyarrow.total_allocated_bytes())
        return [f"{i:09d}.jpg" for i in range(self.count)[at]] if isinstance(at, slice) else ""


def test_row_groups_are_written_before_the_next_are_made(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    peaks = []
    for count in (FEW, MANY):
        held: list[int] = []
        answers = replace(drawn(2), names=Seen(count, held), labels=None)
        answers = replace(answers, logits=np.zeros((count, 3), np.float32))
        write_predictions(answers, tmp_path / "p.parquet")
        peaks.append(max(held) - held[0])
        file = parquet.ParquetFile(tmp_path / "p.parquet").metadata
        groups = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert sum(groups) == count and max(groups) == ROWS and min(groups[:-1]) == ROWS
    # Three times the images take no more memory than a row group has.
    assert peaks[1] < 1.1 * peaks[0] < 0.5 * 40 * MANY


def test_a_later_table_takes_a_number_that_neither_kind_has(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    names = [write_beside(drawn(), tmp_path, kind).name for kind in ("csv", "parquet", "csv")]
    assert names == ["predictions.csv", "predictions_2.parquet", "predictions_3.csv"]


WORDS = ["experiment=digits_sgd", "stages=[predict]", "predict.input=photos"]


def test_it_is_refused_with_what_to_type_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xfer.config.contradictions.find_spec", lambda name: None)
    with pytest.raises(CombinationError, match=r"E035: predict\.format: parquet is .* not"):
        compose_specs([*WORDS, "predict.format=parquet"])
    compose_specs([*WORDS, "predict.format=csv"])  # as it says
    monkeypatch.setattr("xfer.config.contradictions.find_spec", lambda name: name)
    with pytest.raises(CommandError, match=r"E090: .*type 'stages=\[predict\]'"):
        compose_specs(["experiment=digits_sgd", "predict.format=parquet"])
    compose_specs([*WORDS, "predict.format=parquet"])


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folders(tmp_path / "photos", {"a": 30, "b": 39})
    finish(warm.start(tmp_path, "experiment=digits_freeze", "stages=[fit]", "run.dir=run"))
    shared = ["checkpoint.path=run", "data.eval_batch_size=32", "trainer.accelerator=cpu"]
    for devices in (1, 2):
        more = [f"trainer.devices={devices}", f"run.dir=of_{devices}", "predict.format=parquet"]
        said = finish(warm.start(tmp_path, *WORDS, *shared, *more))
        assert f"69 predictions in of_{devices}/predictions.parquet" in said
    one, two = ((tmp_path / f"of_{n}" / "predictions.parquet").read_bytes() for n in (1, 2))
    assert one == two
