"""Calibrated runs: the checkpoint, every exported file, the card, and what happens twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import runs
import torch
import warm
from runs import facts

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.torch_file import load_tensors
from xfer.core.types import Predictions
from xfer.data import Digits
from xfer.data.preprocess import prepare
from xfer.evaluation import calibration, metrics
from xfer.evaluation.evaluate import answers
from xfer.plan.make import make_plan
from xfer.training import calibrate
from xfer.training.logistic import folds
from xfer.weights.formats.checkpoint_format import read_snapshot

STEPS = ["trainer.max_epochs=3", "data.workers=0"]


def state(folder: Path) -> Any:
    return load_tensors(folder / "checkpoints" / "best.ckpt")["state_dict"]


def answered(folder: Path) -> Predictions:
    model = xfer.load(folder)
    return answers(
        model.net,
        Digits((5, 6, 7, 8, 9)).dataset(False).splits["val"],
        model.card.input,
        model.classes,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        yield place


@pytest.fixture(scope="module")
def solved(place: Path) -> Path:
    typed = ["export=[onnx,safetensors,torchscript]", "export.images=16"]
    return (place / xfer.run("digits_freeze", typed).folder).resolve()


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    typed = ["stages=[fit,evaluate]", "calibration=none"]
    return (place / xfer.run("digits_freeze", typed).folder).resolve()


@pytest.fixture(scope="module")
def stepped(place: Path) -> Path:
    typed = [*STEPS, "calibration=temperature", "stages=[fit,evaluate,report]"]
    return (place / xfer.run("digits_sgd", typed).folder).resolve()


@pytest.fixture(scope="module")
def stepped_plain(place: Path) -> Path:
    return (place / xfer.run("digits_sgd", [*STEPS, "stages=[fit,evaluate]"]).folder).resolve()


def test_a_solved_head_is_the_uncalibrated_one_over_its_temperature(solved, plain) -> None:
    found = facts(solved)["calibration"]
    assert facts(plain)["calibration"] is None and found["method"] == "temperature"
    assert found["fitted_on"] == "cv" and found["n"] == 717
    ours, theirs = state(solved), state(plain)
    for name, tensor in theirs.items():
        expected = tensor / found["temperature"] if name.startswith("fc.") else tensor
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-7)
    assert facts(solved)["freeze"]["proved"] is True
    assert (solved / "predictions_cv.csv").read_bytes() == (
        plain / "predictions_cv.csv"
    ).read_bytes()
    ours, theirs = answered(solved), answered(plain)
    np.testing.assert_allclose(ours.logits, theirs.logits / found["temperature"], atol=1e-5)
    for folder, given in ((solved, ours), (plain, theirs)):
        expected = metrics.values(given.logits, given.labels)
        assert facts(folder)["scores"]["val"]["ece"] == pytest.approx(expected["ece"], abs=1e-6)
    assert facts(solved)["scores"]["val"]["used_for_selection"] is False


def test_the_checkpoint_says_so_and_old_ones_say_nothing(solved, plain) -> None:
    card = read_snapshot(solved / "checkpoints" / "best.ckpt").card
    assert card.calibration == facts(solved)["calibration"]
    assert "calibration" not in read_snapshot(plain / "checkpoints" / "best.ckpt").card.to_plain()


def test_every_exported_file_answers_as_the_calibrated_network(solved, plain) -> None:
    files = {file["format"]: file for file in facts(solved)["export"]}
    assert len(files) == 3 and all(f["max_abs_diff"] <= f["bound"] for f in files.values())
    model, t = xfer.load(plain), facts(solved)["calibration"]["temperature"]
    samples = Digits((5, 6, 7, 8, 9)).dataset(False).splits["val"]
    images = np.stack([prepare(samples.images[i], model.card.input) for i in range(20)])
    with torch.inference_mode():
        expected = model.net(torch.from_numpy(images)).numpy() / t
    session = onnxruntime.InferenceSession(solved / "export" / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    stored = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert stored["calibration"]["temperature"] == t
    assert files["safetensors"]["facts"]["plain_loadable"] == "yes"


@pytest.mark.slow
def test_the_other_formats_answer_as_the_calibrated_network_too(place, solved) -> None:
    formats = "export=[pt2,mindir,mindspore_ckpt,onnx_image,int8]"
    typed = [f"checkpoint.path={solved}", "data=digits", "stages=[export]", formats]
    files = xfer.run(overrides=[*typed, "export.max_drop=0.1"]).facts["export"]
    assert len(files) == 5
    for file in files:
        assert file["format"] == "int8" or file["max_abs_diff"] <= file["bound"], file["format"]


def test_auto_leaves_a_fit_by_steps_alone_and_its_plan_says_why(stepped_plain) -> None:
    assert facts(stepped_plain)["calibration"] is None
    assert "calibration=temperature" in facts(stepped_plain, "plan.json")["calibration"]["why"]
    assert "calibrat" not in (stepped_plain / "run.log").read_text()


def test_a_fit_by_steps_is_calibrated_when_asked_and_its_error_is_of_other_images(
    stepped, stepped_plain
) -> None:
    found, plan = facts(stepped), facts(stepped, "plan.json")
    known = found["calibration"]
    assert (known["method"], known["fitted_on"], known["n"]) == ("temperature", "val", 179)
    assert found["scores"]["val"]["used_for_selection"] is True
    given = answered(stepped_plain)
    logits, labels = given.logits, given.labels
    theirs = calibration.fit_temperature(logits, labels)
    assert known["temperature"] == pytest.approx(1 / theirs.scale[0], rel=1e-6)
    fold_of = folds(labels, 5, calibrate.derive("calibration", 0))
    cross = calibration.cross_fitted(logits, labels, fold_of, calibration.fit_temperature)
    expected = metrics.values(cross, labels)
    assert known["after"]["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert known["after"]["loss"] != pytest.approx(found["scores"]["val"]["loss"], abs=1e-6)
    ours, before = state(stepped), state(stepped_plain)
    assert {n for n in ours if not ours[n].equal(before[n])} == {"fc.weight", "fc.bias"}
    log = (stepped / "run.log").read_text()
    assert "calibrated: temperature 0." in log and "on 179 validation images" in log
    assert plan["calibration"]["fitted_on"] == "val"


def test_the_validation_images_that_it_was_fitted_on_count_as_used_ever_after(place, stepped):
    typed = ["stages=[evaluate]", f"checkpoint.path={stepped}"]
    again = facts(place / xfer.run("digits_sgd", typed).folder)
    assert again["scores"]["val"]["used_for_selection"] is True
    assert again["calibration"] == facts(stepped)["calibration"]


def test_nothing_is_calibrated_twice(place, stepped) -> None:
    path = stepped / "checkpoints" / "best.ckpt"
    before, (temperature,) = path.read_bytes(), [facts(stepped)["calibration"]["temperature"]]
    typed = ["experiment=digits_sgd", *STEPS, "calibration=temperature"]
    card = calibrate.calibrate_best(
        make_plan(compose_specs(typed)), path, None, torch.device("cpu")
    )
    assert card.calibration["temperature"] == temperature and path.read_bytes() == before


def test_a_run_that_is_killed_around_its_calibration_ends_as_a_whole_one(
    tmp_path: Path, stepped
) -> None:
    script = (
        "import os, sys, xfer, xfer.training.calibrate as c\n"
        "write = c.write_snapshot\n"
        "def killed(path, snapshot):\n"
        "    if sys.argv[1] == 'before': os.kill(os.getpid(), 9)\n"
        "    write(path, snapshot)\n"
        "    if sys.argv[1] == 'after': os.kill(os.getpid(), 9)\n"
        "c.write_snapshot = killed\n"
        f"xfer.run('digits_sgd', {[*STEPS, 'calibration=temperature']!r} + "
        "['stages=[fit,evaluate]', 'checkpoint.resume=auto'])\n"
    )
    for when, code in (("before", -9), ("after", -9), ("never", 0)):
        process = warm.start(tmp_path, when, script=script)
        assert process.communicate() and process.returncode == code
    (run,) = (tmp_path / "outputs" / "digits_sgd").iterdir()
    runs.assert_same(run, stepped)
    assert facts(run)["calibration"] == facts(stepped)["calibration"]


def test_the_card_shows_the_reliability_before_and_after(solved, stepped) -> None:
    page = (stepped / "report.html").read_text()
    titles = re.findall(r"<h3><bdi>([^<]*): share right</bdi></h3>", page)
    assert titles == ["before calibration", "after calibration"]
    known = facts(stepped)["calibration"]
    assert "Each image is scaled by what was fitted without it." in page
    assert f"Calibration error {known['after']['ece']:.3f}" in page
    assert f"Calibration error {known['before']['ece']:.3f}" in page
    assert "also used for calibrating the network" in page
    assert "Calibrated by" in (stepped / "report.md").read_text()
    other = (solved / "report.html").read_text()
    assert f"Calibration error {facts(solved)['scores']['val']['ece']:.3f}" in other
    assert "fitted without it" not in other
    flattered = "the first is flattered, since the penalty is the one of least loss"
    assert flattered in other and flattered not in page


def test_its_own_folds_are_named_where_they_are_not_those_of_the_penalty(solved) -> None:
    log = (solved / "run.log").read_text()
    assert "by 5 folds of the training images" in log
    assert "; on 717 training images held out in 20 folds the calibration error" in log
