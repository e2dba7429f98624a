"""A metric that is one more row of the table is everywhere at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, SweepError
from xfer.evaluation import metrics
from xfer.evaluation.metrics import Answers, Metric, names
from xfer.plan.multilabel_task import watched
from xfer.sweep.objective import Objective, objectives

STAGES = ("fit", "evaluate")


def brier(answers: Answers) -> float:
    shares = np.exp(answers.logits - answers.largest[:, None]) / answers.total[:, None]
    return float(np.mean(((shares - np.eye(shares.shape[1])[answers.truth]) ** 2).sum(axis=1)))


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Metric:
    added = Metric("brier", brier, "min", "Brier score")
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, added))
    return added


def test_a_new_metric_is_in_every_file_of_a_run(
    row: Metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        *("trainer.max_epochs=2", "stages=[fit,evaluate,report]", "report.maps=0"),
        "checkpoint.monitor=val_brier",
    ]
    folder = xfer.run("digits_sgd", overrides).folder
    with (folder / "metrics.csv").open() as stream:
        table = [float(line["val_brier"]) for line in csv.DictReader(stream)]
    result = json.loads((folder / "result.json").read_text())
    best = result["best"]
    assert (best["metric"], best["value"]) == ("val_brier", min(table))
    # Computed of other batches: as near as the loss of the same weights is.
    assert result["scores"]["val"]["brier"] == pytest.approx(best["value"], rel=1e-5)
    log = (folder / "run.log").read_text()
    assert all(f"  val brier {value:.4f}  " in log for value in table)
    for card in ("report.md", "report.html"):
        text = (folder / card).read_text()
        assert "Brier score" in text and "val_brier" in text
    assert Objective("val_brier", "minimize").value(folder, result) == min(table)
    (found,) = objectives({"scores.val.brier": "minimize"}, ("val_acc", "max"), STAGES)
    assert found.value(folder, result) == result["scores"]["val"]["brier"]


def test_a_new_metric_is_monitored_and_looked_for_at_its_better_end(row: Metric) -> None:
    with pytest.raises(ConfigError, match="the best val_brier is its minimum"):
        compose_specs(["checkpoint.monitor=val_brier", "checkpoint.mode=max"])
    compose_specs(["checkpoint.monitor=val_brier", "checkpoint.mode=min"])
    assert watched(compose_specs(["checkpoint.monitor=val_brier"])) == ("val_brier", "min")
    (found,) = objectives({}, ("val_brier", "min"), STAGES)
    assert (found.metric, found.direction, found.is_share) == ("val_brier", "minimize", False)


def test_without_the_row_nothing_knows_the_metric() -> None:
    assert "val_brier" not in names(10)
    with pytest.raises(SweepError, match="never logged"):
        objectives({"scores.val.brier": "minimize"}, ("val_acc", "max"), STAGES)


@pytest.mark.parametrize(("classes", "defined"), [(2, False), (3, True), (5, True), (6, False)])
def test_a_metric_is_logged_for_the_classes_that_it_is_defined_for(
    classes: int, defined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Metric("brier", brier, "min", "Brier score", least=3, most=5, share=True)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, some))
    labels = np.arange(12) % classes
    found = metrics.score(np.eye(classes)[labels], labels, tuple("abcdef"[:classes]), False)
    assert ("brier" in found.to_plain()) == defined == ("val_brier" in names(classes))
    assert Objective("val_brier").is_share
