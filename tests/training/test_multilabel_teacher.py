"""A network with several labels an image that learns from another one: the loss against numpy, the
solved head against torch, cached answers, whole runs, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import labelled
import numpy as np
import onnx
import pytest
import torch
import warm
from runs import assert_same, rows
from torch.nn import functional as F

from xfer.config.hydra import compose_specs
from xfer.core.errors import XferError
from xfer.core.files import read_json
from xfer.core.torch_file import load_tensors
from xfer.core.types import Predictions
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan
from xfer.plan.table import table
from xfer.report.teacher_section import compared_labels
from xfer.training import oom
from xfer.training.feature_moments import moments
from xfer.training.head_problem import solution_of
from xfer.training.loss import Distill
from xfer.training.module import Classifier
from xfer.training.multilabel_logistic import LabelHeads, LabelProblem
from xfer.training.soft_targets import SoftTargets
from xfer.training.teacher import Lessons
from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot

DATA = ["data=csv", "data.file=columns.csv", "task=multilabel", "data.leakage=ignore"]
NETWORK = ["experiment=digits_freeze", *DATA, "trainer.accelerator=cpu", "data.workers=0"]
STEPS = ["experiment=digits_sgd", *NETWORK[1:], "freeze=head_only", "head=linear", "optim=sgd"]
STEPS += ["optim.lr=0.02", "trainer.max_epochs=2", "stages=[fit,evaluate]"]
HEAT, WEIGHT = 3.0, 0.3
DRAWN = np.random.default_rng(0)
LABELS = np.array([[1, 0, -1], [0, 1, 1], [0, 0, 0], [-1, -1, 1], [-1, -1, -1]])


def numpy_loss(z: np.ndarray, sage: np.ndarray, y: np.ndarray) -> float:
    """(1 - w) of the known labels' mean and w T^2 of all labels' mean cross-entropy."""
    p, q = (1 / (1 + np.exp(-each / HEAT)) for each in (sage, z))
    soft = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    of_label = 1 / (1 + np.exp(-z))
    hard = -np.where(y == 1, np.log(of_label), np.log(1 - of_label))[y >= 0].mean()
    return float((1 - WEIGHT) * hard + WEIGHT * HEAT**2 * soft)


def test_the_loss_is_that_of_numpy_and_teaches_what_is_unknown() -> None:
    z, sage = (DRAWN.normal(size=LABELS.shape) for _ in range(2))
    logits = torch.tensor(z, requires_grad=True)
    spec = Distill(teacher="a", temperature=HEAT, weight=WEIGHT)
    loss = spec.of_labels([1, 1, 2], [2, 2, 1])
    value = loss(logits, torch.tensor(LABELS), torch.tensor(sage))
    assert value.item() == pytest.approx(numpy_loss(z, sage, LABELS), rel=1e-6)
    value.backward()
    p, q = (torch.tensor(each / HEAT).sigmoid() for each in (sage, z))
    unknown = torch.tensor(LABELS < 0)
    expected = (WEIGHT * HEAT * (q - p) / LABELS.size)[unknown]
    torch.testing.assert_close(logits.grad[unknown], expected, rtol=1e-5, atol=1e-8)
    same = loss(logits, torch.full(LABELS.shape, -1), torch.tensor(sage))
    assert same.item() == pytest.approx(loss.soft(logits, torch.tensor(sage)).item())


def test_guessing_has_the_loss_of_the_probability_one_half() -> None:
    spec = Distill(teacher="a", temperature=2.5, weight=0.7, label_smoothing=0.1)
    sage, labels = torch.tensor(DRAWN.normal(size=LABELS.shape)), torch.tensor(LABELS)
    has, lacks = ((labels == side).sum(0).tolist() for side in (1, 0))
    value = spec.of_labels(has, lacks)(torch.zeros(LABELS.shape), labels, sage)
    assert float(value) == pytest.approx(spec.guessing_labels(has, lacks), rel=1e-6)


def heads(weight: float = WEIGHT) -> LabelHeads:
    """Forty images of six features in two views; the third label is known of no image."""
    drawn = np.random.default_rng(1)
    x = [drawn.normal(size=(40, 6)).astype(np.float32) for _ in range(2)]
    y = (drawn.random((40, 3)) < 0.4).astype(np.int64)
    y[drawn.random(y.shape) < 0.2] = -1
    y[:, 2] = -1
    soft = SoftTargets([drawn.normal(size=(40, 3)) * 3 for _ in x], HEAT, weight)
    weigh = lambda _: [2.0, 1.0, 1.0]  # noqa: E731
    return LabelHeads(x, x[0], y, weigh, 0.1, (0.05,), 4, 0, soft=soft)


@pytest.mark.parametrize("weight", [WEIGHT, 1.0])
def test_a_head_is_solved_for_soft_targets_as_torch_would(weight: float) -> None:
    problem = heads(weight)
    solution = solution_of(problem)[1]
    (strength,), y = solution.path, torch.tensor(np.tile(problem.labels, (2, 1)))
    # The same problem in another library, with another algorithm in other coordinates.
    mean, std = (torch.tensor(part) for part in moments(problem.views))
    z = torch.cat([(torch.tensor(v, dtype=torch.float64) - mean) / std for v in problem.views])
    w, b = (torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (3,)))
    p = (torch.tensor(np.concatenate(problem.soft.logits)) / HEAT).sigmoid()
    targets = y.clamp(min=0).double() * 0.9 + 0.05
    balance = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)

    def loss() -> torch.Tensor:
        logits = z @ w.T + b
        each = F.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=balance
        )
        known = (y >= 0).double()
        hard = ((each * known).sum(0) / known.sum(0).clamp(min=1)).sum()
        soft = F.binary_cross_entropy_with_logits(logits / HEAT, p, reduction="none")
        return (1 - weight) * hard + weight * HEAT**2 * soft.mean(0).sum()

    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss() + 0.05 / 2 * (w**2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    ours = problem.held @ strength.weight.T + strength.bias
    np.testing.assert_allclose(ours, (z[:40] @ w.T + b).detach().numpy(), atol=2e-5)
    assert strength.train_loss == pytest.approx(float(loss().detach()) / 3, abs=1e-7)
    # The teacher answers for the label that nobody has looked for, in the folds as well.
    assert np.isfinite(solution.held_out[problem.rows().folds >= 0]).all()


def test_the_gradient_is_that_of_the_loss_and_folds_hold_the_teacher_out() -> None:
    from scipy.optimize import check_grad

    rows_of = heads().rows()
    problem = LabelProblem(rows_of)
    theta, shares = np.random.default_rng(1).normal(size=(3, 7)), problem.shares(0)
    at = lambda flat: problem.loss(flat.reshape(theta.shape), shares, 0.1)  # noqa: E731
    slope = lambda flat: at(flat)[1].ravel()  # noqa: E731
    assert check_grad(lambda flat: at(flat)[0], slope, theta.ravel()) < 1e-5
    assert ((shares[:, 3] > 0) == (rows_of.folds != 0)).all()


def test_each_network_is_judged_by_its_own_thresholds() -> None:
    labels = np.array([[1, 0], [1, -1], [0, 1]])
    student = Predictions(
        ("a", "b", "c"), np.array([[2.0, -2], [2, 2], [-2, 2]], np.float32), labels, ("x", "y"),
        task={"kind": "multilabel", "thresholds": [0.5, 0.5], "chosen_on": "val"},
    )  # fmt: skip
    taught = np.array([[2, -2], [0.1, -2], [-2, 0]], np.float32)
    score = compared_labels(student, taught, labels, (0.9, 0.4))
    assert score["student_acc"] == 1 and score["acc"] == pytest.approx(1 / 3)
    assert (score["student_alone"], score["teacher_alone"]) == (2, 0)
    assert score["agree"] == pytest.approx(3 / 6) and score["map"] == score["student_map"] == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with labels, and a teacher of them: a run and its ONNX file."""
    folder = tmp_path_factory.mktemp("school")
    named = [(f"images/{name}", labels) for name, labels in labelled.digits(folder / "images", 101)]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.3)
    ran(folder, "sage", *NETWORK, "stages=[fit,evaluate,export]", "export=onnx")
    return folder


def ran(place: Path, name: str, *typed: str, cache: str = "cache") -> Path:
    run = warm.start(place, f"run.dir={name}", *typed, XFER_CACHE=str(place / cache))
    said, _ = run.communicate()
    assert run.returncode == 0, said
    return place / name


def taught(*more: str, by: str = "sage") -> list[str]:
    return ["loss=distill", f"loss.teacher={by}", *more]


def teacher_of(run: Path) -> dict:
    return read_json(run / "result.json")["teacher"]


@pytest.fixture(scope="module")
def solved(place: Path) -> Path:
    return ran(place, "solved", *NETWORK, *taught("stages=[fit,evaluate,report]"))


def test_a_solved_student_and_its_teacher_stand_side_by_side(place: Path, solved: Path) -> None:
    noted, sage = teacher_of(solved), read_json(place / "sage" / "result.json")["scores"]["val"]
    score = noted["scores"]["val"]
    assert noted["images"] == read_json(solved / "plan.json")["splits"]["train"]["n"]
    assert score["map"] == pytest.approx(sage["map"]) and score["acc"] == sage["acc"]
    assert score["student_map"] == read_json(solved / "result.json")["scores"]["val"]["map"]

    def said(run: Path) -> list[set[str]]:
        with (run / "predictions_val.csv").open() as stream:
            return [set(filter(None, r["prediction"].split("|"))) for r in csv.DictReader(stream)]

    differing = sum(len(a ^ b) for a, b in zip(said(solved), said(place / "sage"), strict=True))
    assert score["agree"] == pytest.approx(1 - differing / (4 * score["n"]))
    card = (solved / "report.html").read_text().replace("&nbsp;", " ")
    assert "Learned from sage/checkpoints/best.ckpt" in card and "exact match" in card
    assert "has every known label right in" in card and " % of all labels" in card


def test_a_student_of_steps_is_the_same_with_cached_answers_and_without(place: Path) -> None:
    """The first asks the teacher, the second finds its answers, the third its features too."""
    first = ran(place, "first", *STEPS, *taught(), cache="other")
    second = ran(place, "second", *STEPS, *taught(), cache="other")
    asked = [teacher_of(run)["hit"] for run in (first, second)]
    assert asked == [False, True]
    assert_same(second, first)
    alone = ran(place, "alone", *STEPS, cache="other")
    assert rows(alone)[-1]["val_loss"] != rows(first)[-1]["val_loss"]


@pytest.mark.slow
def test_cached_features_change_nothing(place: Path) -> None:
    views = [*STEPS, *taught("augment=standard", "augment.scale=[0.6,1.0]")]
    uncached = ran(place, "uncached", *views)
    cached = ran(place, "cached", *views, "features=require", "features.views=max")
    assert teacher_of(cached)["hit"] and teacher_of(cached)["views"] == [0, 1]
    assert read_json(cached / "result.json")["features"]["cached"]
    assert_same(cached, uncached)


@pytest.mark.slow
def test_two_devices_learn_as_one_does_with_the_whole_batch(place: Path) -> None:
    """The part of the labels is a mean of all known ones, of which each device has another number;
    the teacher's is one of all images, of which one has fewer in the last batch."""
    steps = [*STEPS, *taught("trainer.ema_decay=0")]
    two = ran(place, "two", *steps, "trainer.devices=2", "data.batch_size=8")
    one = ran(place, "one", *steps, "data.batch_size=16")
    ours, theirs = (load_tensors(run / "checkpoints" / "last.ckpt") for run in (two, one))
    for name in ("net.fc.weight", "net.fc.bias"):
        torch.testing.assert_close(
            ours["state_dict"][name], theirs["state_dict"][name], rtol=1e-4, atol=1e-6
        )


@pytest.fixture
def school(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XFER_CACHE", str(place / "cache"))
    return place


def planned(*typed: str, base: Sequence[str] = NETWORK) -> Plan:
    return make_plan(compose_specs([*base, *typed]))


@pytest.mark.parametrize("file", ["sage", "sage/export/model.onnx"])
def test_a_run_and_its_onnx_file_answer_alike(school: Path, file: str) -> None:
    plan = planned(*taught(by=file))
    assert plan.specs.optim.solves and "; mAP" in table(plan)
    sage = read_json(school / "sage" / "result.json")["scores"]["val"]
    assert plan.facts["teacher"]["score"] == {k: sage[k] for k in ("map", "n")} | {"split": "val"}
    cuts = [sage["thresholds"][name] for name in plan.card.classes]
    assert plan.teacher.thresholds == tuple(cuts)
    given = Lessons(plan, plan.teacher, torch.device("cpu")).entry("val", None).array
    with (school / "sage" / "predictions_val.csv").open() as stream:
        shares = [[float(r[f"p_{c}"]) for c in plan.card.classes] for r in csv.DictReader(stream)]
    np.testing.assert_allclose(1 / (1 + np.exp(-given)), shares, atol=2e-5)


def test_a_teacher_of_one_label_is_refused_and_the_fix_works(school: Path) -> None:
    one = school / "one.ckpt"
    snapshot = read_snapshot(school / "sage" / "checkpoints" / "best.ckpt")
    write_snapshot(one, replace(snapshot, card=replace(snapshot.card, task={})))
    model = onnx.load(school / "sage" / "export" / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "card":
            entry.value = json.dumps(json.loads(entry.value) | {"task": {}})
    onnx.save(model, school / "one.onnx")
    for file in ("one.ckpt", "one.onnx"):
        with pytest.raises(XferError, match=r"error E083: .* gives an image one label") as caught:
            planned(*taught(by=file))
        fix = (
            "type loss.teacher=RUN with a run of task=multilabel, or an ONNX file that it exported"
        )
        assert caught.value.fix == fix
    planned(*taught(by="sage"))


def test_a_batch_that_is_too_large_is_tried_with_a_teacher(school: Path) -> None:
    plan = planned(*taught(), base=STEPS)
    module = Classifier(assemble(plan.parts, plan.state), plan)
    error = oom.too_large_error(module, plan, plan.specs.data)
    assert error.number == 801 and "which was tried and fits" in error.fix
