"""Several labels an image: metrics against scikit-learn, thresholds against a search of all."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfer.core.errors import LabelsError
from xfer.core.probabilities import sigmoid
from xfer.core.types import Predictions
from xfer.data import Digits
from xfer.evaluation.multilabel_metrics import (
    average_precisions,
    best_thresholds,
    label_score,
    label_values,
)
from xfer.evaluation.multilabel_predictions import read_label_table, sign_for
from xfer.evaluation.predict import write_predictions
from xfer.evaluation.task import Multilabel, Single

CLASSES = ("a", "b", "c", "d")


def drawn(unknown: float = 0.0, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of 200 images; with many equal logits where there are ``ties``."""
    random = np.random.default_rng(3)
    labels = (random.random((200, 4)) < [0.5, 0.3, 0.1, 0.03]).astype(np.int64)
    logits = 1.5 * labels - 1 + random.normal(size=labels.shape)
    logits = np.round(logits, 1) if ties else logits
    labels[random.random(labels.shape) < unknown] = -1
    return logits, labels


@pytest.mark.parametrize("unknown", [0.0, 0.4])
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(unknown: float, ties: bool) -> None:
    from sklearn.metrics import average_precision_score

    logits, labels = drawn(unknown, ties)
    each = average_precisions(logits, labels)
    for c in range(4):
        known = labels[:, c] >= 0
        wanted = average_precision_score(labels[known, c], sigmoid(logits[known, c]))
        assert each[c] == pytest.approx(wanted, abs=1e-12)
    assert label_values(logits, labels)["map"] == pytest.approx(each.mean(), abs=1e-12)


def test_every_other_score_is_scikit_learns() -> None:
    from sklearn import metrics

    logits, labels = drawn()
    found, said, p = label_values(logits, labels), logits >= 0, sigmoid(logits)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(labels, said, average="micro"))
    assert found["acc"] == pytest.approx(metrics.accuracy_score(labels, said))
    assert found["hamming"] == pytest.approx(metrics.hamming_loss(labels, said))
    assert found["loss"] == pytest.approx(metrics.log_loss(labels.ravel(), p.ravel()))
    map_ = metrics.average_precision_score(labels, p, average="macro")
    assert found["map"] == pytest.approx(map_, abs=1e-12)


def test_unknown_is_not_absent() -> None:
    """What is masked changes no score, whatever the network says of it."""
    logits, labels = drawn(0.3)
    other = np.where(labels < 0, -5 * np.sign(logits), logits)
    first, second = label_values(logits, labels), label_values(other, labels)
    assert first == second
    absent = label_values(logits, np.maximum(labels, 0))
    assert absent["map"] != first["map"] and absent["loss"] != first["loss"]


@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_thresholds_have_the_best_f1_of_all(unknown: float) -> None:
    logits, labels = drawn(unknown)
    found, p = best_thresholds(logits, labels), sigmoid(logits)
    for c in range(4):
        known = labels[:, c] >= 0
        shares, had = p[known, c], labels[known, c] == 1

        def f1(cut: float, shares: np.ndarray = shares, had: np.ndarray = had) -> float:
            said = shares >= cut
            return 2 * float((said & had).sum()) / float(said.sum() + had.sum())

        assert f1(found[c]) == max(f1(cut) for cut in shares)


def test_a_class_that_nobody_has_has_no_threshold_of_its_own_and_no_precision() -> None:
    logits, labels = drawn()
    labels[:, 3] = 0
    assert best_thresholds(logits, labels)[3] == 0.5
    score = label_score(logits, labels, CLASSES, np.full(4, 0.5), "val", True)
    assert score.per_class["d"]["ap"] is None and score.per_class["d"]["recall"] is None
    three = average_precisions(logits[:, :3], labels[:, :3]).mean()
    assert score.map == pytest.approx(three)


def test_logits_that_are_no_numbers_have_no_score() -> None:
    logits, labels = drawn()
    logits[0, 0] = np.nan
    assert all(math.isnan(value) for value in label_values(logits, labels).values())


def test_the_table_names_labels_and_what_is_unknown(tmp_path: Path) -> None:
    def written(*given: Any) -> list[str]:
        write_predictions(given[0], tmp_path / "p.csv", *given[1:])
        return (tmp_path / "p.csv").read_text().splitlines()

    task = {"kind": "multilabel", "thresholds": [0.5, 0.9], "chosen_on": "val"}
    logits = np.array([[3.0, 1.0], [-3.0, -3.0]], np.float32)
    labels = np.array([[1, -1], [0, 0]])
    answers = Predictions(("x.png", "y.png"), logits, labels, ("a", "b|c"), task=task)
    assert sign_for(answers.classes) == ";"
    lines = written(answers)
    assert lines[0] == "path,label,prediction,p_a,p_b|c"
    assert lines[1] == "x.png,a;?b|c,a,0.952574,0.731059"
    assert lines[2] == "y.png,,,0.047426,0.047426"
    unknown = Predictions(("x.png",), logits[:1], None, ("a", "b|c"), task=task)
    twice = written(replace(answers, views=2), {"fold": [3, 4]})
    assert twice[0] == "path,fold,label,prediction,p_a,p_b|c,views"
    assert twice[2] == "y.png,4,,,0.047426,0.047426,2"
    read = read_label_table(csv.DictReader(lines), answers.classes)
    assert read.labels is not None and (read.labels == labels).all()
    assert (read.said == answers.said).all() and read.names == answers.names
    np.testing.assert_allclose(read.logits, logits, atol=1e-4)
    with pytest.raises(ValueError, match="there is no class 'd'"):
        odd = {"path": "x", "label": "d", "prediction": "", "p_a": "0.5", "p_b|c": "0.5"}
        read_label_table([odd], answers.classes)
    assert written(unknown)[0] == "path,prediction,p_a,p_b|c"


def test_a_task_reads_what_it_is_for() -> None:
    assert not Single().several and Single().card([], [], "cv") == {}
    with pytest.raises(LabelsError, match=r"has one label an image \(data=digits\)"):
        Multilabel().read(Digits((0, 1)), True)
    given = Multilabel(0.25).card(np.zeros((3, 2)), np.zeros((3, 2)), "cv")
    assert given == {"kind": "multilabel", "thresholds": [0.25, 0.25], "chosen_on": "given"}
