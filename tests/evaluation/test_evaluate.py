"""Answers, their table and the most confident mistakes."""

import csv

import numpy as np
import pytest
import torch

from xfer.core.errors import DivergedError
from xfer.core.types import InputSpec, Predictions, Samples
from xfer.data.image import Arrays
from xfer.evaluation.evaluate import Reading, answers, most_wrong, score_of
from xfer.evaluation.predict import write_predictions

SPEC = InputSpec((8, 8), 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def predictions(logits, labels, names=None, classes=("a", "b")):
    logits = np.asarray(logits, np.float32)
    names = names or tuple(f"{i}.jpg" for i in range(len(logits)))
    return Predictions(names, logits, labels if labels is None else np.array(labels), classes)


def samples(n=5):
    pixels = np.random.default_rng(0).integers(0, 255, (n, 8, 8, 3), np.uint8)
    return Samples(tuple(map(str, range(n))), np.arange(n) % 2, Arrays(pixels), "")


class Mean(torch.nn.Module):
    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def test_every_image_is_answered_once_in_order_whatever_the_batch():
    one, many = (answers(Mean(), samples(), SPEC, ("a", "b"), Reading(n)) for n in (1, 4))
    assert one.names == many.names == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(one.logits, many.logits, atol=1e-6)
    assert score_of(one, False).n == 5


def test_nan_names_the_image():
    class Broken(Mean):
        def forward(self, x):
            return super().forward(x) * torch.nan

    with pytest.raises(DivergedError, match="xfer: error E701: 0: "):
        answers(Broken(), samples(), SPEC, ("a", "b"))


def test_the_table_has_a_share_for_every_class(tmp_path):
    write_predictions(predictions([[2, 0], [0, 1]], [0, 0]), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["path"], r["label"], r["prediction"]) for r in rows] == [
        ("0.jpg", "a", "a"),
        ("1.jpg", "a", "b"),
    ]
    assert float(rows[0]["p_a"]) == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


def test_a_spreadsheet_runs_nothing(tmp_path):
    hostile = predictions([[1, 0]], [0], ('=cmd|"/c calc"!A1',), ("@sum(a)", "+b"))
    write_predictions(hostile, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"].startswith("'=") and row["label"].startswith("'@")


@pytest.mark.parametrize("classes", [("-1", "+1"), ("-1.5", "=a"), ("+b", "-rf *"), ("a,\r", 'q"')])
def test_what_is_written_is_what_is_read_back(tmp_path, classes):
    found = predictions([[2, 0], [0, 1]], [0, 1], ("-1/0.jpg", "+1/0.jpg"), classes)
    write_predictions(found, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["-1/0.jpg", "+1/0.jpg"]
    plain = [name for name in classes if name[0] not in "=+-" or name[1:2].isdigit()]
    for name, row in zip(classes, rows, strict=True):
        assert row["prediction"] == row["label"] == (name if name in plain else f"'{name}")
        assert f"{max(float(row[f'p_{r}']) for r in (row['label'],)):.6f}" == row["confidence"]


def test_unknown_labels_leave_the_column_out(tmp_path):
    write_predictions(predictions([[1, 0]], None), tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().startswith("path,prediction,confidence,p_a,p_b\n")


def test_mistakes_come_most_confident_first():
    logits = [[1, 0], [0, 3], [0, 2], [5, 0], [0, 2]]
    found = predictions(logits, [0, 0, 0, 0, 0], ["a", "b", "d", "e", "c"])
    assert most_wrong(found).tolist() == [1, 4, 2]  # equals by name
    assert most_wrong(predictions([[0, 1]], None)).tolist() == []
