"""A metric of the user's: in every file of a run, monitored, and never run unasked."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, SafetyError, SweepError
from xfer.core.types import Score
from xfer.evaluation import metrics
from xfer.report.tables import scores
from xfer.sweep.requirements import wanted

PARTS = '''
import numpy as np


class Balanced:
    """Mean recall over the classes."""

    better = "max"

    def __init__(self, power: float = 1.0):
        self.power = power

    def compute(self, logits, labels):
        right = logits.argmax(axis=1) == labels
        return np.mean([right[labels == c].mean() for c in np.unique(labels)]) ** self.power


class Surprise:
    better = "min"

    def compute(self, logits, labels):
        z = logits - logits.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


class Text(Balanced):
    def compute(self, logits, labels):
        return "high"


class Writes(Balanced):
    def compute(self, logits, labels):
        logits -= 1
        return 0.0


class Undefined(Balanced):
    def compute(self, logits, labels):
        return float("inf")


class NoCompute:
    better = "max"


class NoEnd:
    def compute(self, logits, labels):
        return 0.0


class WrongEnd(Balanced):
    better = "most"


class Short(Balanced):
    def compute(self, logits):
        return 0.0
'''
BALANCED, SURPRISE = (
    "balanced: {_target_: scored.Balanced}",
    "surprise: {_target_: scored.Surprise}",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scored.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XFER_ALLOW", "scored")
    return tmp_path


def answers(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    shares = [[float(v) for k, v in row.items() if k.startswith("p_")] for row in rows]
    return (
        [r["label"] for r in rows],
        [r["prediction"] for r in rows],
        (table := np.array(shares)) / table.sum(axis=1)[:, None],
    )  # they are rounded


@pytest.mark.parametrize("optim", ["sgd", "exact"])
def test_it_is_in_every_file_of_a_run(optim: str, here: Path) -> None:
    experiment = {"sgd": "digits_sgd", "exact": "digits_freeze"}[optim]
    steps = ["checkpoint.monitor=val_balanced", "trainer.max_epochs=2"] if optim == "sgd" else []
    typed = [
        f"trainer.metrics={{{BALANCED}, {SURPRISE}}}",
        "stages=[fit,evaluate,report]",
        "report.maps=0",
    ]
    folder = xfer.run(experiment, [*typed, *steps]).folder
    result = json.loads((folder / "result.json").read_text())
    truth, chosen, shares = answers(folder / "predictions_val.csv")
    score = result["scores"]["val"]
    assert score["balanced"] == pytest.approx(balanced_accuracy_score(truth, chosen), abs=1e-12)
    assert score["surprise"] == pytest.approx(log_loss(truth, shares), abs=1e-4)
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    if optim == "sgd":
        best = max(rows, key=lambda row: float(row["val_balanced"]))
        assert result["best"]["metric"] == "val_balanced"
        assert result["best"]["value"] == float(best["val_balanced"])
        log = (folder / "run.log").read_text()
        assert all(f"val balanced {float(r['val_balanced']):.4f}" in log for r in rows)
    assert all(float(r["val_surprise"]) == pytest.approx(float(r["val_loss"])) for r in rows)
    (table,) = scores(result["scores"])
    cells = dict(zip(table.head, table.rows[0], strict=True))
    for name in ("balanced", "surprise"):
        for card in ("report.md", "report.html"):
            assert re.search(rf"(?<!val_)\b{name}\b", (folder / card).read_text())
        assert float(cells[name]) == pytest.approx(score[name], rel=1e-2)
    # The checkpoint needs none of it.
    again = xfer.run(experiment, [f"checkpoint.path={folder}", "stages=[evaluate]"])
    assert "balanced" not in again.facts["scores"]["val"]
    more = [f"checkpoint.path={folder}", "stages=[evaluate]", f"trainer.metrics={{{BALANCED}}}"]
    assert xfer.run(experiment, more).facts["scores"]["val"]["balanced"] == score["balanced"]


def test_it_has_arguments_and_a_better_end(here: Path) -> None:
    typed = [f"trainer.metrics={{{SURPRISE}}}", "checkpoint.monitor=val_surprise"]
    with pytest.raises(ConfigError, match=r"E272.*the best val_surprise is its minimum"):
        xfer.run("digits_sgd", [*typed, "checkpoint.mode=max", "stages=[]"])
    xfer.run("digits_sgd", [*typed, "stages=[]"])
    node = "trainer.metrics={b: {_target_: scored.Balanced, power: 2.0}}"
    assert compose_specs(["experiment=digits_sgd", node]).metrics["b"].power == 2.0


def test_a_sweep_may_look_for_it(here: Path) -> None:
    typed = ["experiment=digits_sgd", "stages=[fit,evaluate]", f"trainer.metrics={{{SURPRISE}}}"]
    goal = ["sweep=lr_head", "sweep.objectives={scores.val.surprise: minimize}"]
    (objective,) = wanted(compose_specs([*typed, *goal]))
    assert (objective.metric, objective.direction) == ("scores.val.surprise", "minimize")
    with pytest.raises(SweepError, match="never logged"):
        wanted(compose_specs([*typed[:2], *goal]))


MISTAKES = {
    "{m: {_target_: scored.NoCompute}}": "NoCompute has no method compute",
    "{m: {_target_: scored.NoEnd}}": "NoEnd has no better",
    "{m: {_target_: scored.WrongEnd}}": "better is 'most' in WrongEnd. Fix: make it 'max' or 'min'",
    "{m: {_target_: scored.Short}}": r"a method compute that does not take 2 argument\(s\)",
    "{m: {_target_: scored.Balanced, pow: 2}}": "did you mean 'trainer.metrics.m.power'",
    "{m: {power: 2.0}}": "trainer.metrics.m names no class",
    "{M-1: {_target_: scored.Balanced}}": "'M-1' cannot name a column",
    "{acc: {_target_: scored.Balanced}}": "'acc' means something else in result.json",
    "{per_class: {_target_: scored.Balanced}}": "'per_class' means something else",
    "{m: {_target_: scored.Text}}": "Text.compute gave str and no number",
    "{m: {_target_: scored.Writes}}": r"E221: scored, line \d+: ValueError",
    "[scored.Balanced]": "must be {name: value}",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_in_it_is_one_line(given: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=MISTAKES[given]):
        xfer.run("digits_sgd", [f"trainer.metrics={given}", "trainer.max_epochs=1", "stages=[fit]"])


def test_where_it_is_not_defined_it_has_no_value(here: Path) -> None:
    typed = ["trainer.metrics={m: {_target_: scored.Undefined}}", "trainer.max_epochs=1"]
    done = xfer.run("digits_sgd", [*typed, "stages=[fit,evaluate]"])
    assert done.facts["scores"]["val"]["m"] is None
    with pytest.raises(ConfigError, match="no epoch looked at had a val_m"):
        xfer.run("digits_sgd", [*typed, "checkpoint.monitor=val_m", "stages=[fit]"])


@pytest.mark.parametrize("name", ["os.system", "scored.Balanced", "xfer.evaluation.metrics.Metric"])
def test_nothing_is_run_that_was_not_allowed(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_ALLOW", "another")
    with pytest.raises(SafetyError, match=f"'{name}' may not be used for metric"):
        xfer.run("digits_sgd", [f"trainer.metrics={{m: {{_target_: {name}}}}}", "stages=[]"])


def test_every_name_that_result_json_gives_a_score_is_taken() -> None:
    logits, labels = np.eye(3), np.arange(3)
    given = metrics.score(logits, labels, ("a", "b", "c"), False).to_plain()
    for name in {*given, *Score.__annotations__, *(m.name for m in metrics.METRICS)}:
        with pytest.raises(ConfigError, match="means something else"):
            metrics.check_names({name: None})  # type: ignore[dict-item]
