"""A fit that goes wrong says so, with a key that mends it; a healthy one says nothing."""

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import finish, kill, only_run, start, wait_for

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.types import Predictions
from xfer.plan.make import make_plan
from xfer.report.inputs import Work
from xfer.report.result import outcome
from xfer.training.fit_health import Terms, alarm, saturated, saturation, terms, warnings_of
from xfer.training.loss import CrossEntropy
from xfer.training.optim import Exact

FIVE = Terms(5, 0.1)
GUESSING = math.log(5)
# One process after another finds the features of the first.
FAST = ["features=auto", "stages=[fit,evaluate,report]", "data.workers=0"]


def rows(train, val=None):
    pairs = zip(train, val or train, strict=True)
    return [{"epoch": i + 1, "train_loss": t, "val_loss": v} for i, (t, v) in enumerate(pairs)]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The quick start at a rate of 1000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("wrong"))
        fast = [*FAST, "optim.lr=1000", "trainer.max_epochs=3"]
        yield xfer.run("digits_sgd", fast).folder.resolve()


def test_a_rate_of_1000_is_said_while_it_runs_and_in_every_report(wrong):
    said = [line for line in (wrong / "run.log").read_text().splitlines() if "WARNING" in line]
    assert "epoch 1: the training loss is" in said[0] and "optim.lr=1000 is too high" in said[0]
    assert [line.split("WARNING ")[1] for line in said[1:]] == result(wrong)["warnings"]
    for page in ("report.html", "report.md"):
        assert "the fit went wrong" in (wrong / page).read_text(), page


def test_it_counts_the_images_whose_probabilities_are_one(wrong):
    with (wrong / "predictions_val.csv").open() as stream:
        sure = [float(row["confidence"]) for row in csv.DictReader(stream)]
    (line,) = [w for w in result(wrong)["warnings"] if "probability of exactly 1" in w]
    assert int(line.split()[0]) >= sum(value == 1 for value in sure) > 100


def test_the_rate_that_it_names_mends_it(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (rate,) = re.findall(r"try (optim\.lr=\S+),", result(wrong)["warnings"][0])
    mended = xfer.run("digits_sgd", [*FAST, rate, "trainer.max_epochs=3"]).folder
    assert result(mended)["warnings"] == []
    assert "WARNING" not in (mended / "run.log").read_text()


def test_a_healthy_fit_has_nothing_to_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = xfer.run("digits_sgd", [*FAST, "trainer.max_epochs=5"]).folder
    assert result(folder)["warnings"] == []
    assert "WARNING" not in (folder / "run.log").read_text()
    assert "the fit went wrong" not in (folder / "report.html").read_text()


def test_smoothing_bounds_the_logits(tmp_path, monkeypatch):
    """The other remedy for saturated probabilities, where the rate itself is well."""
    monkeypatch.chdir(tmp_path)
    known = [*FAST, "data=digits_0_4", "optim.lr=0.3", "trainer.max_epochs=10"]
    fit = [*known, "schedule=constant", "stages=[fit,evaluate]"]
    sharp = xfer.run("digits_sgd", fit).folder
    smooth = xfer.run("digits_sgd", [*fit, "loss=smoothed"]).folder
    (line,) = result(sharp)["warnings"]
    assert "float32 probability of exactly 1" in line and "loss=smoothed" in line
    assert result(smooth)["warnings"] == []


@pytest.mark.slow
def test_a_killed_run_says_what_a_whole_one_says(tmp_path):
    fast = ["features=auto", "augment=none", "freeze=head_only", "trainer.max_epochs=12"]
    asked = [*fast, "optim.lr=1000", "checkpoint.every_n_steps=0"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    finish(start(tmp_path / "whole", *asked))
    process = start(tmp_path / "killed", *asked)
    csv_files = "outputs/digits_sgd/*/metrics.csv"
    wait_for(lambda: any((tmp_path / "killed").glob(csv_files)), process)
    kill(process)
    finish(start(tmp_path / "killed", *asked, "checkpoint.resume=auto"))
    whole, killed = (result(only_run(tmp_path / name)) for name in ("whole", "killed"))
    assert whole["warnings"] == killed["warnings"] != []


def test_the_remarks_of_the_plan_are_among_the_warnings(tmp_path):
    plan = make_plan(compose_specs(["experiment=digits_sgd"]))
    plan.facts["remarks"] = ["two images are the same"]
    work = Work(plan, tmp_path, 0.0, 0.0, warnings=["the fit went wrong"])
    assert outcome(work)["warnings"] == ["two images are the same", "the fit went wrong"]


@pytest.mark.parametrize(
    ("train", "val", "what", "remedy"),
    [
        ([1.2, 0.8, 0.5], [1.1, 0.9, 1.9], "the validation loss ends at 1.9", "max_epochs=2"),
        ([0.5, 0.3], [9.4, 5.4], "the validation loss ends at 5.4", "optim.lr=0.01"),
        ([1.2, 0.8, 1.5], None, "rises from 1.2 to 1.5", "optim.lr=0.01"),
        ([2.0, 1.9, 1.8], None, "the training loss ends at 1.8", "optim.lr=0.02"),
        ([3.0, 3.1, 0.4], None, "the training loss was 3.1 in epoch 2", "optim.lr=0.01"),
        ([16.1, 2.0, 0.4], None, "the training loss was 16.1 in epoch 1", "optim.lr=0.002"),
    ],
)
def test_each_way_to_go_wrong(train, val, what, remedy):
    (line,) = warnings_of(rows(train, val), FIVE)
    assert what in line and remedy in line and "guessing among 5 classes has 1.61" in line


def test_the_best_epoch_is_judged_as_well():
    found = rows([1.2, 0.9, 0.7], [1.1, 2.5, 1.2])
    (line,) = warnings_of(found, FIVE, best=2)
    assert "that of the best epoch, 2, is 2.5" in line and "trainer.max_epochs=1" in line
    assert warnings_of(found, FIVE, best=1) == []


@pytest.mark.parametrize(
    "train",
    [
        [1.5, 1.1, 0.9],
        [GUESSING, GUESSING + 0.005],  # a rate too low for anything is no rate too high
        [0.010, 0.012, 0.011],  # at its floor a loss has noise
        [2.5, 0.9, 0.5],  # a large first step, made good
        [0.2],
    ],
)
def test_what_is_not_wrong(train):
    assert warnings_of(rows(train), FIVE) == []


def test_what_the_weights_came_to_counts_and_not_the_mean_of_the_epoch_before():
    """The final model of a cross-validation may have one epoch of two steps."""
    assert warnings_of(rows([1.8], [0.3]), FIVE) == []
    assert warnings_of(rows([2.0, 1.8], [1.2, 0.3]), FIVE) == []
    assert warnings_of([{"epoch": 1, "train_loss": 1.8, "val_loss": None}], FIVE) == []
    (line,) = warnings_of([{"epoch": 1, "train_loss": 3.5, "val_loss": None}], FIVE)
    assert "the training loss ends at 3.5" in line


def test_a_head_from_the_source_may_begin_above_guessing():
    found = rows([6.0, 2.5, 0.8])
    assert alarm(found[:1], FIVE) is not None
    kept = Terms(5, 0.1, fresh=False)
    assert warnings_of(found, kept) == [] and alarm(found[:1], kept) is None


def test_no_rate_above_those_of_lr_find_passes_in_silence():
    assert "stages=[lr_find]" in warnings_of(rows([1.2, 0.4]), Terms(5, 1000.0))[0]


def test_of_a_solved_head_the_chosen_strength_alone_is_judged():
    """It has neither a rate nor epochs, and what the weakest penalty does is of no matter."""
    found = rows([1.0, 0.6, 0.1], [1.2, 0.9, 2.5])
    assert warnings_of(found, Terms(5, None), best=2) == []
    (line,) = warnings_of(found, Terms(5, None), best=3)
    assert "the validation loss is 2.5; guessing among 5 classes has 1.61" in line
    assert not re.search("optim|epoch", line)
    (line,) = warnings_of(rows([2.0], None), Terms(5, None), best=1)
    assert "worse than guessing: the training loss is 2" in line


def test_a_loss_before_calibration_says_so():
    """Evaluation scores the calibrated network, whose loss is another."""
    (solved,) = warnings_of(rows([2.0], [8.27]), Terms(5, None, calibrated=True), best=1)
    assert "the training loss before calibration is 2, the validation loss before cali" in solved
    (trained,) = warnings_of(rows([1.0], [8.27]), Terms(5, 0.1, calibrated=True))
    assert "the validation loss before calibration ends at 8.27" in trained
    for words, expected in (([], True), (["calibration=none"], False)):
        plan = make_plan(compose_specs(["experiment=digits_freeze", "stages=[fit]", *words]))
        assert terms(plan).calibrated is expected


def test_the_alarm_is_given_once():
    found = rows([16.0, 20.0, 30.0])
    assert [alarm(found[:n], FIVE) is not None for n in (1, 2, 3)] == [True, False, False]


def test_a_probability_of_one_is_one_in_float32():
    logits = np.array([[0, 10], [0, 16], [0, 17.5], [400, 0], [20, 20]], np.float32)
    ones = torch.from_numpy(logits).softmax(dim=1).max(dim=1).values == 1
    assert saturated(logits) == int(ones.sum()) == 2
    steps = compose_specs(["optim=sgd", "data=digits"])
    answers = Predictions(("a",) * 5, logits, np.zeros(5, np.int64), ("a", "b"))
    (line,) = saturation("val", answers, steps)
    assert line.startswith("2 of 5 val images") and "A lower optim.lr" in line
    few = replace(answers, logits=np.repeat(logits[:2], 20, axis=0))
    assert saturation("val", few, steps) == []
    # Where nothing trains step by step there is no rate, and no loss bounds anything.
    for nothing in (replace(steps, optim=Exact()), replace(steps, stages=("evaluate",))):
        (line,) = saturation("val", answers, nothing)
        assert line.endswith("too large to say how sure the network is")


@pytest.mark.parametrize("weights", ["none", "balanced", (3.0, 1.0, 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_guessing_is_that_of_the_loss_in_use(weights, smoothing):
    spec, counts = CrossEntropy(smoothing, weights), [2, 5, 13]
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    loss = spec.build(counts)(torch.zeros(20, 3), labels)
    assert spec.guessing(counts) == pytest.approx(float(loss))


def test_terms_are_those_of_the_plan():
    options = ["experiment=digits_sgd", "optim.lr=0.3", "loss.label_smoothing=0.1"]
    found = terms(make_plan(compose_specs(options)))
    assert (found.classes, found.lr, found.fresh) == (5, 0.3, True)
    assert found.trained == pytest.approx(GUESSING)
    known = ["data=digits_0_4", "head=remap"]
    assert not terms(make_plan(compose_specs([*options, *known]))).fresh
