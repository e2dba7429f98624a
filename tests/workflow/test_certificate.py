"""Prediction sets and p-values of real runs: checkpoint, table, Python and ONNX file agree."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from runs import facts, table
from sklearn.datasets import load_digits

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.certificate import MOST_BYTES
from xfer.core.errors import ColumnError, CombinationError, ExportError, Problems
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.core.types import Predictions
from xfer.data.preprocess import prepare
from xfer.export.answer_parity import CertifiedFile, pledge
from xfer.plan.make import make_plan
from xfer.plan.table import brief
from xfer.plan.table import table as table_of
from xfer.training.certificate_fit import HeldOut, certify, in_words
from xfer.weights.formats.checkpoint_format import read_snapshot

CLASSES = ["5", "6", "7", "8", "9"]
LAYERS = [*(f"layer{i}.0.conv1" for i in range(1, 5)), "fc"]


def shares(rows: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    return np.array([[float(row[f"p_{c}"]) for c in CLASSES] for row in rows])


def run_in(place: Path, experiment: str, *typed: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return xfer.run(experiment, ["certificate.coverage=0.9", *typed]).folder.resolve()


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in(tmp_path_factory.mktemp("solved"), "digits_freeze")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = ["trainer.max_epochs=2", "stages=[fit,evaluate,export]", "certificate.by_class=true"]
    more = ["freeze=none", "data.workers=0", "export=onnx"]
    return run_in(tmp_path_factory.mktemp("steps"), "digits_sgd", *short, *more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits 0 to 4 and forty 5 to 9 as files."""
    place = tmp_path_factory.mktemp("pictures")
    images, labels = load_digits(return_X_y=True)
    for name, chosen in (("low", labels < 5), ("high", labels >= 5)):
        for i, row in enumerate(images[chosen][:40]):
            (place / name).mkdir(exist_ok=True)
            grey = np.round(row.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(place / name / f"{i:02}.png")
    return place


def least_by_hand(p, labels, coverage: float) -> float:
    """The threshold from the formula of split conformal prediction alone."""
    scores = sorted(1 - p[i, label] for i, label in enumerate(labels))
    return float(1 - scores[math.ceil((len(scores) + 1) * coverage) - 1])


def sets_by_hand(p, least) -> list[str]:
    chosen = [{int(row.argmax())} | {k for k in range(5) if row[k] >= least[k]} for row in p]
    return ["|".join(CLASSES[k] for k in sorted(inside)) for inside in chosen]


def test_sets_of_a_solved_head_are_those_of_its_held_out_answers(solved: Path) -> None:
    held = table(solved / "predictions_cv.csv")
    labels = [CLASSES.index(row["label"]) for row in held]
    # The table has the answers before the head was calibrated.
    scaled = shares(held) ** (1 / facts(solved)["calibration"]["temperature"])
    least = least_by_hand(scaled / scaled.sum(axis=1, keepdims=True), labels, 0.9)
    made = read_snapshot(solved / "checkpoints/best.ckpt").card.certificate
    assert made is not None and made.fitted_on == "cv" and made.n == 717
    np.testing.assert_allclose(made.least, least, atol=1e-5)
    rows = table(solved / "predictions_val.csv")
    assert [*rows[0]][-2:] == ["set", "p_unlike"]
    assert [row["set"] for row in rows] == sets_by_hand(shares(rows), [least] * 5)
    assert len({row["set"] for row in rows}) > 5  # sets of more than one class among them


def test_a_fit_by_steps_is_certified_on_its_validation_images_class_by_class(steps: Path) -> None:
    rows = table(steps / "predictions_val.csv")
    p, labels = shares(rows), np.array([CLASSES.index(row["label"]) for row in rows])
    least = [least_by_hand(p[labels == k], labels[labels == k], 0.9) for k in range(5)]
    made = read_snapshot(steps / "checkpoints/best.ckpt").card.certificate
    assert made is not None and made.fitted_on == "val" and made.n == len(rows) == 179
    np.testing.assert_allclose(made.least, least, atol=2e-6)
    assert len(np.unique(made.least)) == 5
    said = facts(steps)["certificate"]
    assert said["by_class"] is True and said["checked_on"] is None and said["covered"] is None
    assert "not checked" in (steps / "run.log").read_text()
    assert made.unlike is not None and len(made.unlike.reference) == 179


def test_distances_are_of_what_enters_the_stages_and_the_head(solved: Path) -> None:
    """By torch alone: the means of maps of the network, and the arrays of the checkpoint."""
    model = xfer.load(solved)
    content = load_tensors(solved / "checkpoints/best.ckpt")["certificate"]
    plan = make_plan(compose_specs(["experiment=digits_freeze"]))
    images = plan.split("val").images
    x = torch.stack([torch.from_numpy(prepare(images[i], model.card.input)) for i in range(30)])
    entered: list[torch.Tensor] = []
    for layer in LAYERS:
        model.net.get_submodule(layer).register_forward_pre_hook(
            lambda _, args: entered.append(
                args[0].flatten(2).mean(2) if args[0].dim() > 2 else args[0]
            )
        )
    with torch.inference_mode():
        model.net(x)
    content = {name: tensor.double() for name, tensor in content.items()}
    away = (torch.cat(entered, 1).double() - content["mean"]) * content["scale"]
    z = away @ content["basis"].T
    outside = (away.square().sum(1) - z.square().sum(1)) * content["noise"]
    far = torch.cdist(z @ content["whiten"].T, content["centres"]).square() + outside[:, None]
    far = (far / content["radius"]).amin(1)
    p = (1 + (content["reference"] >= far[:, None]).sum(1)) / 718
    rows = table(solved / "predictions_val.csv")[:30]
    np.testing.assert_allclose([float(row["p_unlike"]) for row in rows], p, atol=3e-3)
    assert 0.1 < p.median() < 0.9


def test_everything_of_a_run_says_what_was_promised(solved: Path) -> None:
    said, rows = facts(solved)["certificate"], table(solved / "predictions_val.csv")
    covered = [row["label"] in row["set"].split("|") for row in rows]
    assert said["covered"] == pytest.approx(np.mean(covered)) and said["checked"] == 179
    assert said["checked_on"] == "val" and said["fitted_on"] == "cv" and said["n"] == 717
    assert sum(said["set_sizes"].values()) == 179
    planned = {"coverage": 0.9, "by_class": False, "fitted_on": "cv", "n": 717}
    assert facts(solved, "plan.json")["certificate"] == planned | {"layers": LAYERS}
    for name in ("report.html", "report.md"):
        text = (solved / name).read_text().replace("&nbsp;", " ")
        assert "to have the true class of 90 % of images" in text
    specs = compose_specs(["experiment=digits_freeze", "certificate.coverage=0.9"])
    line = next(x for x in brief(make_plan(specs)).splitlines() if x.startswith("certificate"))
    assert "90 % of images, by 717 training images, held out in folds" in line
    assert line.endswith("also in model.onnx; the network alone in model.safetensors")


def test_the_checkpoint_stays_plain_and_small(solved: Path) -> None:
    content = torch.load(solved / "checkpoints/best.ckpt", weights_only=True)
    assert sum(t.nbytes for t in content["certificate"].values()) < MOST_BYTES
    facts_of_card = content["xfer"]["card"]["certificate"]
    assert facts_of_card["coverage"] == 0.9 and facts_of_card["layers"] == LAYERS


def test_checkpoint_python_and_file_say_the_same_of_pictures(
    solved: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["stages=[predict]", f"predict.input={pictures}"]
    models = [f"checkpoint.path={solved}", f"predict.model={solved}/export/model.onnx"]
    rows = []
    for i, model in enumerate(models):
        done = xfer.run(overrides=[*asked, model, f"run.dir=run{i}"])
        rows.append(table(done.folder / "predictions.csv"))
        said = facts(done.folder)["certificate"]
        assert said["coverage"] == 0.9 and said["covered"] is None
    given = xfer.load(solved).predict(pictures)
    for ours, theirs, answer in zip(*rows, given, strict=True):
        assert ours["set"] == theirs["set"] == "|".join(answer.prediction_set or ())
        # One place further in the reference at most, where a distance is as good as equal.
        p = [float(ours["p_unlike"]), float(theirs["p_unlike"]), answer.p_unlike]
        assert p == pytest.approx([answer.p_unlike] * 3, abs=1.1 / 718)
    low = [float(row["p_unlike"]) <= 0.05 for row in rows[1] if "/low/" in row["path"]]
    high = [float(row["p_unlike"]) <= 0.05 for row in rows[1] if "/high/" in row["path"]]
    assert len(low) == len(high) == 40 and np.mean(low) > 0.6 and np.mean(high) < 0.13


def opened(file: Path) -> Any:
    """The file in onnxruntime alone, once it has been seen to have two more outputs."""
    session = onnxruntime.InferenceSession(file)
    outputs = {put.name: (put.type, len(put.shape)) for put in session.get_outputs()}
    assert outputs["prediction_set"] == ("tensor(bool)", 2)
    assert outputs["p_unlike"] == ("tensor(float)", 1)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["certificate"]["coverage"] == 0.9
    return session


def assert_answered(run: Path, picture: Path, session: Any, given: Any) -> None:
    """The file's set and p-value of ``given`` are those of the network for ``picture``."""
    _, sets, p = session.run(None, {"images": given})
    (answer,) = xfer.load(run).predict(picture)
    inside = tuple(c for c, member in zip(CLASSES, sets[0], strict=True) if member)
    assert inside == answer.prediction_set
    assert p[0] == pytest.approx(answer.p_unlike, abs=1.1 / 180)


@pytest.mark.parametrize("kind", ["solved", "steps"])
def test_a_file_has_two_more_outputs_for_onnxruntime_alone(
    kind: str, pictures: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(kind)
    session, spec = opened(run / "export/model.onnx"), xfer.load(run).card.input
    for picture in (pictures / "high" / "03.png", pictures / "low" / "03.png"):
        given = prepare(Image.open(picture), spec)[None]
        assert_answered(run, picture, session, given)


@pytest.mark.slow
def test_so_has_a_file_that_takes_pictures(
    solved: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["stages=[export]", f"checkpoint.path={solved}", "export=onnx_image", "run.dir=image"]
    xfer.run("digits_freeze", typed)
    said = facts(tmp_path / "image", "export/parity.json")[0]["facts"]["certificate"]
    assert said["sets_apart"] == 0 and said["checked_on"] == "val" and said["covered"] > 0.8
    session = opened(tmp_path / "image/export/model_image.onnx")
    for picture in (pictures / "high" / "03.png", pictures / "low" / "03.png"):
        given = np.asarray(Image.open(picture)).transpose(2, 0, 1)[None]
        assert_answered(solved, picture, session, np.ascontiguousarray(given))


def test_other_formats_say_nothing_of_a_certificate(solved: Path) -> None:
    from safetensors import safe_open

    with safe_open(solved / "export/model.safetensors", "pt") as opened:
        assert "certificate" not in json.loads(opened.metadata()["card"])


def test_the_gate_measures_the_files_coverage_where_nothing_was_fitted(
    solved: Path, steps: Path
) -> None:
    of_solved = facts(solved, "export/parity.json")[0]["facts"]["certificate"]
    assert of_solved["checked_on"] == "val" and of_solved["checked"] == 64
    assert 0.7 < of_solved["covered"] <= 1 and of_solved["sets_apart"] == 0
    for file in facts(steps, "export/parity.json"):
        said = file["facts"]["certificate"]
        assert said["checked_on"] is None and said["covered"] is None and said["p_apart"] < 0.02


def test_the_gate_refuses_other_sets_and_other_p_values(solved: Path, tmp_path: Path) -> None:
    model = xfer.load(solved)
    plan = make_plan(compose_specs(["experiment=digits_freeze"]))
    images = plan.split("val").images
    x = np.stack([prepare(images[i], model.card.input) for i in range(24)])
    certificate = model.card.certificate
    assert certificate is not None and certificate.unlike is not None
    want = pledge(model.net, certificate, x)
    session = onnxruntime.InferenceSession(solved / "export/model.onnx")

    def file(sets=lambda s: s, p=lambda p: p) -> CertifiedFile:
        def run(images):
            answers = session.run(None, {"images": images})
            return [answers[0], sets(answers[1]), p(answers[2])]

        return CertifiedFile(tmp_path / "model.onnx", "onnx", run, False, 1e-4)

    assert file().check(want, x, None, 1e-4)["sets_apart"] == 0
    full = [np.ones_like, np.zeros_like, lambda s: s[:, ::-1]]
    for change in full:
        with pytest.raises(ExportError, match=r"E958: .*other prediction sets than the network"):
            file(sets=change).check(want, x, None, 1e-4)
    for change in (lambda p: p + 0.01, lambda p: 1 - p, np.ones_like):
        with pytest.raises(ExportError, match=r"E959: .*other p-values than the network"):
            file(p=change).check(want, x, None, 1e-4)


def test_a_damaged_certificate_is_refused_and_a_checkpoint_without_one_has_none(
    solved: Path, tmp_path: Path
) -> None:
    content = load_tensors(solved / "checkpoints/best.ckpt")
    content["certificate"]["least"] = content["certificate"]["least"][:3].clone()
    save_tensors(tmp_path / "short.ckpt", content)
    with pytest.raises(Exception, match=r"E497: .*least is float32 of shape"):
        read_snapshot(tmp_path / "short.ckpt")
    del content["certificate"], content["xfer"]["card"]["certificate"]
    save_tensors(tmp_path / "old.ckpt", content)
    model = xfer.load(tmp_path / "old.ckpt")
    assert model.card.certificate is None
    (answer,) = model.predict(np.zeros((8, 8), np.uint8))
    assert answer.prediction_set is None and answer.p_unlike is None


def test_views_have_no_certificate_and_say_so(
    solved: Path, pictures: Path, tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["stages=[predict]", f"predict.input={pictures}/low", "tta=flip"]
    for i, model in enumerate(("checkpoint.path=", "predict.model=")):
        path = solved if i == 0 else solved / "export/model.onnx"
        with caplog.at_level(logging.WARNING):
            done = xfer.run(overrides=[*asked, f"{model}{path}", f"run.dir=run{i}"])
        assert "set" not in table(done.folder / "predictions.csv")[0]
        assert "they hold for one view" in (done.folder / "run.log").read_text()
    specs = compose_specs([*asked, "data=digits", f"checkpoint.path={solved}"])
    said = [x for x in brief(make_plan(specs)).splitlines() if x.startswith("certificate")]
    assert said == [
        "certificate  no prediction sets and no p_unlike: they hold for one view, tta is flip"
    ]
    both = ["stages=[predict,export]", "data=digits", *asked[1:], f"checkpoint.path={solved}"]
    line = next(x for x in brief(make_plan(compose_specs(both))).splitlines() if "sets with" in x)
    assert "; in model.onnx" in line and "of the answers here no prediction sets" in line


def refused(*typed: str) -> str:
    with pytest.raises((CombinationError, ColumnError, Problems)) as raised:
        make_plan(compose_specs([*typed]))
    return str(raised.value)


def test_the_plan_says_by_which_layers_what_is_unlike_is_told_and_how_to_leave_it_out(
    solved: Path,
) -> None:
    """Those of the certificate that is made; what it says to type is heeded."""
    typed = ["experiment=digits_freeze", "stages=[]"]
    said = table_of(make_plan(compose_specs([*typed, "certificate.coverage=0.9"])))
    line = next(line for line in said.splitlines() if "p_unlike" in line)
    assert line.strip().startswith(f"p_unlike looks at what enters {', '.join(LAYERS)}: ")
    assert "earlier stages tell apart" in line
    remedy = re.search(r"(certificate\.coverage=\S+) leaves it out", line)
    assert remedy and "p_unlike" not in table_of(make_plan(compose_specs([*typed, remedy[1]])))
    known = ["data=digits", f"checkpoint.path={solved}", "stages=[evaluate]"]
    said = table_of(make_plan(compose_specs(known)))
    assert f"enters {', '.join(LAYERS)}, as the checkpoint has it" in said
    assert "coverage=null" not in said
    filled = compose_specs([*typed, "certificate.coverage=0.9", "head=knn"])
    assert "no p_unlike: the head has no layer" in table_of(make_plan(filled))


@pytest.mark.parametrize("several", [False, True])
def test_a_class_called_unlike_has_no_certificate_and_the_remedy_works(
    tmp_path: Path, several: bool
) -> None:
    root = folder_of(tmp_path / "images", 24, 12)
    for split in root.iterdir():
        next(iter(sorted(split.iterdir()))).rename(split / "unlike")
    typed = [f"data.root={root}", "backbone=digits_resnet", "source=none"]
    typed += ["task=multilabel", "data=folder"] if several else []
    said = refused(*typed, "certificate.coverage=0.8")
    assert "E187: certificate.coverage: adds the column p_unlike to tables" in said
    remedy = said.rpartition("Fix: type ")[2].partition(",")[0]
    make_plan(compose_specs([*typed, remedy]))


def test_what_cannot_be_certified_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    digits = ["experiment=digits_sgd", "certificate.coverage=0.9"]
    said = refused(*digits, "tta=flip")
    assert "E017" in said and said.endswith("Fix: type tta=none")
    said = refused(
        "certificate.coverage=0.9", "stages=[predict]", "predict.input=x", "checkpoint.path=y"
    )
    assert "E018" in said and "drop it" in said
    said = refused("experiment=digits_sgd", "certificate.by_class=true")
    assert "E018" in said and "certificate.coverage=0.9 as well" in said
    root = folder_of(tmp_path / "five", 12, 5)
    few = [f"data.root={root}", "backbone=squeezenet1_0", "source=none", "optim=sgd"]
    said = refused(*few, "certificate.coverage=0.9")
    assert "E019: certificate.coverage: 0.9 asks for 9 validation images, and there are 5" in said
    assert "type certificate.coverage=0.83" in said
    make_plan(compose_specs([*few, "certificate.coverage=0.83"]))
    said = refused(*few, "certificate.coverage=0.83", "certificate.by_class=true")
    assert "of each class" in said and "type certificate.coverage=0.66" in said
    make_plan(compose_specs([*few, "certificate.coverage=0.66", "certificate.by_class=true"]))
    one = folder_of(tmp_path / "one", 12, 2)
    said = refused(f"data.root={one}", *few[1:], "certificate.coverage=0.6",
                   "certificate.by_class=true")  # fmt: skip
    assert "there are 1" in said and "type certificate.coverage=0.5" in said


def folder_of(root: Path, train: int, val: int) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            place = root / split / ("a" if i % 2 else "b")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)).save(place / f"{i}.png")
    return root


def test_numbers_follow_the_logits_that_are_given_and_constant_features_are_said() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    logits = (random.normal(size=(200, 3)) + 2 * np.eye(3)[labels]).astype(np.float32)
    logits[7] = np.nan  # an image that every fit had seen
    promise = compose_specs(["experiment=digits_sgd", "certificate.coverage=0.95"]).certificate
    made = certify(promise, HeldOut(logits, labels, "cv", "a"), None)
    half = certify(promise, HeldOut(logits / 2, labels, "cv", "a"), None)
    assert made is not None and half is not None and made.n == 199
    names = ("a", "b", "c")
    for scale, each in ((1, made), (2, half)):
        sound = np.flatnonzero(np.isfinite(logits[:, 0]))
        z = (logits[sound] / scale).astype(np.float32)
        sets = each.sets(Predictions((), z, None, names).probabilities)
        assert 190 <= sets[np.arange(199), labels[sound]].sum() <= 191
    assert made.least[0] != half.least[0]
    assert "no p_unlike" in in_words(made)
    assert (
        certify(replace(promise, coverage=None), HeldOut(logits, labels, "cv", "a"), None) is None
    )
