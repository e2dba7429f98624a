"""A network that learns from another one: the loss, the solved head, cached answers of the teacher,
a run that is killed, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from runs import assert_same, facts, finish, in_an_epoch, kill, only_run, start, wait_for
from torch.nn import functional as F

import xfer
from xfer.config.hydra import compose_specs
from xfer.config.verbs import spelt_out
from xfer.core.errors import CommandError, ResumeError, WeightsError, XferError
from xfer.data.loader import train_images
from xfer.evaluation import evaluate
from xfer.plan.make import make_plan
from xfer.plan.table import table
from xfer.plan.teacher_plan import plan_teacher, teacher_lines
from xfer.training import logistic, teacher
from xfer.training.feature_moments import moments
from xfer.training.loss import Distill
from xfer.training.soft_targets import SoftTargets
from xfer.training.teacher import Lessons, opened

DRAWN = np.random.default_rng(0)
STEPS = ["data.workers=0", "trainer.max_epochs=2", "stages=[fit,evaluate]"]
CROPS = ["augment=standard", "augment.scale=[0.6,1.0]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache and a teacher in it: a run and its ONNX file."""
    place = tmp_path_factory.mktemp("school")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        fine = ["freeze=none", "features=auto", "optim.lr=0.02", "export=onnx", "run.dir=sage"]
        xfer.run("digits_sgd", [*STEPS[:2], *fine, "stages=[fit,evaluate,export]"])
    return place


@pytest.fixture
def school(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XFER_CACHE", str(place / "cache"))
    return place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher answers, chunk by chunk."""
    counts: list[int] = []

    def counting(*given: Any) -> Any:
        answers = opened(*given)
        return lambda images: (counts.append(len(images)), answers(images))[1]

    monkeypatch.setattr(teacher, "opened", counting)
    return counts


def taught(*more: str, by: str = "sage") -> list[str]:
    return ["loss=distill", f"loss.teacher={by}", *more]


def planned(experiment: str, *typed: str) -> Any:
    return make_plan(compose_specs([f"experiment={experiment}", "stages=[]", *typed]))


def test_the_loss_is_that_of_hinton_vinyals_and_dean() -> None:
    n, classes, heat, weight = 7, 4, 3.0, 0.3
    logits = torch.tensor(DRAWN.normal(size=(n, classes)), requires_grad=True)
    sage, labels = torch.tensor(DRAWN.normal(size=(n, classes))), torch.arange(n) % classes
    loss = Distill(teacher="a", temperature=heat, weight=weight).build([1] * classes)
    value = loss(logits, labels, sage)
    # Another formula for the same: the divergence, and the entropy that it lacks.
    p, log_q = (sage / heat).softmax(1), (logits / heat).log_softmax(1)
    divergence = F.kl_div(log_q, p, reduction="batchmean")
    entropy = -(p * p.log()).sum(1).mean()
    hard = -logits.log_softmax(1)[range(n), labels].mean()
    expected = (1 - weight) * hard + weight * heat**2 * (divergence + entropy)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    value.backward()
    of_labels = logits.softmax(1) - F.one_hot(labels, classes)
    gradient = ((1 - weight) * of_labels + weight * heat * (log_q.exp() - p)) / n
    torch.testing.assert_close(logits.grad, gradient.detach(), rtol=1e-5, atol=1e-6)


def test_smoothing_and_class_weights_are_of_the_labels_alone() -> None:
    logits, sage = (torch.tensor(DRAWN.normal(size=(6, 3))).float() for _ in range(2))
    labels, given = torch.tensor([0, 1, 2, 0, 1, 2]), {"label_smoothing": 0.1}
    spec = Distill(teacher="a", temperature=1.0, weight=0.5, class_weights=(1.0, 2.0, 5.0), **given)
    hard = F.cross_entropy(logits, labels, torch.tensor([1.0, 2.0, 5.0]), **given)
    soft = F.cross_entropy(logits, sage.softmax(1))
    torch.testing.assert_close(spec.build([2, 2, 2])(logits, labels, sage), (hard + soft) / 2)


def test_guessing_has_the_loss_that_equal_probabilities_have() -> None:
    spec = Distill(teacher="a", temperature=2.5, weight=0.7, label_smoothing=0.1)
    sage, labels = torch.tensor(DRAWN.normal(size=(9, 3))).float(), torch.arange(9) % 3
    value = spec.build([3, 3, 3])(torch.zeros(9, 3), labels, sage)
    assert float(value) == pytest.approx(spec.guessing([3, 3, 3]), rel=1e-6)


def rows_of(soft: SoftTargets, views: int = 2) -> logistic.TrainingRows:
    drawn = np.random.default_rng(1)
    x = [drawn.normal(size=(40, 6)).astype(np.float32) for _ in range(views)]
    labels = np.arange(40) % 3
    weights, balance = np.linspace(0.5, 2, 40), np.array([1.0, 2.0, 0.5])
    return logistic.TrainingRows(
        x, x[0], labels, weights, balance, 0.1, logistic.folds(labels, 4, 0), soft
    )


@pytest.mark.parametrize(("heat", "weight"), [(1.0, 0.5), (3.0, 0.8), (0.7, 1.0)])
def test_a_head_is_solved_for_soft_targets_as_torch_would(heat: float, weight: float) -> None:
    sage = [np.random.default_rng(2 + i).normal(size=(40, 3)) * 3 for i in range(2)]
    rows, l2 = rows_of(SoftTargets(sage, heat, weight)), 0.05
    (strength,) = logistic.solve(rows, (l2,)).path
    # The same problem in another library, with another algorithm in other coordinates.
    mean, std = (torch.tensor(part) for part in moments(rows.views))
    z = torch.cat([(torch.tensor(v, dtype=torch.float64) - mean) / std for v in rows.views])
    labels = torch.tensor(np.tile(rows.labels, 2))
    share = torch.tensor(np.tile(rows.weights, 2))
    w, b = (torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in ((3, 6), (3,)))
    p = (torch.tensor(np.concatenate(sage)) / heat).softmax(1)

    def loss() -> torch.Tensor:
        logits, balance = z @ w.T + b, torch.tensor(rows.class_weights)
        each = F.cross_entropy(logits, labels, balance, label_smoothing=0.1, reduction="none")
        hard = (share * each).sum() / (share * balance[labels]).sum()
        soft = -(p * (logits / heat).log_softmax(1)).sum(1) * heat**2
        return (1 - weight) * hard + weight * (share * soft).sum() / share.sum()

    optimizer = torch.optim.LBFGS(
        [w, b],
        max_iter=2000,
        tolerance_grad=1e-10,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-14,
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss() + l2 / 2 * (w**2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    ours = rows.held @ strength.weight.T + strength.bias
    theirs = (z[:40] @ w.T + b).detach().numpy()
    centred = [a - a.mean(axis=1, keepdims=True) for a in (ours, theirs)]
    np.testing.assert_allclose(*centred, atol=2e-5)
    assert strength.train_loss == pytest.approx(float(loss().detach()), abs=1e-7)


def test_a_student_with_the_teachers_features_becomes_the_teacher() -> None:
    rows = rows_of(SoftTargets([], 1.0, 1.0), views=1)
    sage = rows.held @ DRAWN.normal(size=(6, 3)) + [0.5, 0, -1]
    strength = logistic.solve(replace(rows, soft=SoftTargets([sage], 2.0, 1.0)), (1e-9,)).path[0]
    ours = rows.held @ strength.weight.T + strength.bias
    centred = [a - a.mean(axis=1, keepdims=True) for a in (ours, sage)]
    np.testing.assert_allclose(*centred, atol=1e-3)


@pytest.fixture(scope="module")
def first(place: Path) -> Any:
    """The first student's ``result.json``, after a run that has asked for everything once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        xfer.run("digits_freeze", taught("stages=[fit,evaluate,report]", "run.dir=first"))
    return facts(place / "first")


def test_a_second_student_asks_the_teacher_nothing(
    school: Path, first: Any, asked: list[int]
) -> None:
    assert (first["teacher"]["images"], first["teacher"]["hit"]) == (717, False)
    # Weights of another network, other ways to train, another loss: the same images.
    other = taught("loss.temperature=4", "loss.weight=0.9", "freeze=none", "source=none")
    xfer.run("digits_sgd", [*STEPS, *other, "seed=3", "run.dir=second"])
    assert asked == []
    second = facts("second")["teacher"]
    assert (second["images"], second["hit"], second["seconds"]) == (0, True, 0)
    assert second["scores"]["val"]["acc"] == first["teacher"]["scores"]["val"]["acc"]


def test_what_is_counted_is_what_the_teacher_answers(school: Path, asked: list[int]) -> None:
    plan = planned("digits_freeze", *taught(by="sage/export/model.onnx"))
    Lessons(plan, plan.teacher, torch.device("cpu")).entry("val", None)
    assert sum(asked) == 179


def test_the_plan_solves_the_head_of_a_student(school: Path) -> None:
    plan = planned("digits_freeze", *taught())
    assert plan.specs.optim.solves
    said, noted = table(plan), plan.facts["teacher"]
    assert "accuracy" in said and "0.5 of the teacher at temperature 2 (times 4)" in said
    assert noted["trained_on"] == ["train"] and noted["parameters"] == 91541
    assert noted["score"]["acc"] == facts("sage")["scores"]["val"]["acc"]
    # 32 x 32 pixels: the convolutions alone.
    assert 5e6 < noted["operations"] < 7e6


def test_accuracy_and_agreement_are_those_of_the_two_tables(school: Path, first: Any) -> None:
    def answers(run: str) -> list[tuple[str, str]]:
        with (school / run / "predictions_val.csv").open() as stream:
            return [(row["label"], row["prediction"]) for row in csv.DictReader(stream)]

    ours, theirs = answers("first"), answers("sage")
    score = first["teacher"]["scores"]["val"]
    assert score["agree"] == np.mean([a[1] == b[1] for a, b in zip(ours, theirs, strict=True)])
    assert score["acc"] == np.mean([label == said for label, said in theirs])
    assert score["loss"] == pytest.approx(facts("sage")["scores"]["val"]["loss"], abs=1e-4)
    alone = sum(a[0] == a[1] != b[1] for a, b in zip(ours, theirs, strict=True))
    assert score["student_alone"] == alone
    card = (school / "first" / "report.html").read_text()
    assert "Learned from sage/checkpoints/best.ckpt" in card and "Student and teacher" in card


def test_an_augmented_view_is_the_students_own_crop(school: Path) -> None:
    plan = planned("digits_sgd", *taught(*CROPS, by="sage/export/model.onnx"))
    lessons = Lessons(plan, plan.teacher, torch.device("cpu"))
    pictures = train_images(plan.split("train"), plan.card.input, plan.specs.augment)
    images = torch.stack([torch.from_numpy(pictures[(5, i)][0]) for i in range(8)])
    net = xfer.load("sage").net
    with torch.no_grad():
        expected = net(images)
    given = torch.from_numpy(np.array(lessons.entry("train", 5).array[:8]))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    other = torch.from_numpy(np.array(lessons.entry("train", 6).array[:8]))
    assert not torch.allclose(given, other, atol=1e-2)
    # A batch of the loader has the logits of its images, by their keys.
    keys = [(5, 3), (5, 0)]
    assert torch.equal(lessons.batch(keys), given[[3, 0]])


def test_a_larger_teacher_is_given_the_crop_resized(school: Path) -> None:
    plan = planned("digits_sgd", *taught(*CROPS))
    larger = replace(plan.teacher, input=replace(plan.teacher.input, size=(48, 48), mean=(0, 0, 0)))
    lessons = Lessons(plan, larger, torch.device("cpu"))
    pictures = lessons._pictures("train", 0)
    image = torch.from_numpy(pictures[(0, 4)][0])[None]
    student = train_images(plan.split("train"), plan.card.input, plan.specs.augment)[(0, 4)][0]
    spec, other = plan.card.input, larger.input
    pixels = student * np.array(spec.std)[:, None, None] + np.array(spec.mean)[:, None, None]
    again = pixels / np.array(other.std)[:, None, None]
    np.testing.assert_allclose(image[0], again, atol=1e-4)
    assert lessons._resized(image, 0).shape == (1, 3, 48, 48)
    assert lessons.key(0) != Lessons(plan, plan.teacher, torch.device("cpu")).key(0)


def test_features_and_images_of_the_same_views_have_the_same_answers(
    school: Path, asked: list[int]
) -> None:
    """Both views of a frozen network's cached features, then a fine-tuning on two epochs."""
    cached = taught(*CROPS, "features=auto", "features.views=2", "trainer.max_epochs=3")
    xfer.run("digits_sgd", [STEPS[0], STEPS[2], *cached, "run.dir=frozen"])
    frozen = facts("frozen")
    assert frozen["features"]["cached"] and frozen["features"]["views"] == 2
    assert frozen["teacher"]["views"] == [0, 1] and frozen["teacher"]["images"] == 2 * 717
    asked.clear()
    xfer.run("digits_sgd", [*STEPS, *taught(*CROPS), "freeze=none", "run.dir=tuned"])
    assert asked == [] and facts("tuned")["teacher"]["hit"] is True


def test_classes_in_another_order_are_matched_by_name(school: Path) -> None:
    file = school / "turned.onnx"
    model = onnx.load(school / "sage" / "export" / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "classes":
            names = json.loads(entry.value)
            entry.value = json.dumps(names[::-1])
    onnx.save(model, file)
    plan = planned("digits_freeze", *taught(by="turned.onnx"))
    assert plan.teacher.columns == (4, 3, 2, 1, 0)
    assert "put into our order" in "".join(teacher_lines(plan.teacher, plan.dataset, follows=False))
    same = planned("digits_freeze", *taught(by="sage/export/model.onnx"))
    logits = [
        np.array(Lessons(p, p.teacher, torch.device("cpu")).entry("val", None).array)
        for p in (plan, same)
    ]
    np.testing.assert_array_equal(logits[0], logits[1][:, ::-1])


def test_an_onnx_file_without_names_takes_those_beside_it(school: Path) -> None:
    bare = school / "bare" / "model.onnx"
    bare.parent.mkdir()
    model = onnx.load(school / "sage" / "export" / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, bare)
    with pytest.raises(CommandError, match=r"class names, and there is no labels\.json") as caught:
        planned("digits_freeze", *taught(by="bare/model.onnx"))
    assert caught.value.number == 84
    for name in ("labels.json", "preprocess.json"):
        shutil.copy(school / "sage" / "export" / name, bare.parent)
    plan = planned("digits_freeze", *taught(by="bare/model.onnx"))
    assert plan.teacher.classes == ("5", "6", "7", "8", "9")


def refused(number: int, *typed: str, experiment: str = "digits_freeze") -> XferError:
    with pytest.raises(XferError) as caught:
        planned(experiment, *typed)
    assert caught.value.number == number, caught.value
    return caught.value


def fixed(error: XferError, *typed: str, experiment: str = "digits_freeze") -> None:
    """Type what the message says after 'type', over what was typed."""
    named = re.search(r"type ([^,]+)", error.fix)
    assert named, error.fix
    words = named[1].split()
    keys = {word.partition("=")[0] for word in words}
    rest = [word for word in typed if word.partition("=")[0] not in keys]
    if "without" in words:
        left_out = words[words.index("without") + 1]
        rest = [word for word in rest if word.partition("=")[0] != left_out]
        words = words[: words.index("without")]
    planned(experiment, *rest, *words)


def test_what_does_not_go_with_a_teacher_is_refused_with_what_to_type(school: Path) -> None:
    mixing = taught("augment=mixed", "optim=adamw")
    fixed(refused(85, *mixing), *mixing)
    drawn = taught("data.sampler=balanced", *CROPS, "optim=adamw")
    fixed(refused(85, *drawn), *drawn)
    promise = taught("certificate.coverage=0.9")
    fixed(refused(88, *promise), *promise)
    planned("digits_freeze", *taught("certificate.coverage=0.9", "optim=adamw"))


def test_folds_are_refused_and_the_fix_works(school: Path) -> None:
    typed = taught("data.folds=3")
    error = refused(86, *typed)
    assert error.fix == "drop it, or type loss=cross_entropy without loss.teacher"
    fixed(error, *typed)


@pytest.mark.parametrize("head", ["knn", "prototype"])
def test_a_head_that_trains_nothing_has_no_teacher(school: Path, head: str) -> None:
    typed = taught(f"head={head}")
    error = refused(32, *typed)
    assert "loss has a teacher" in error.what
    fixed(error, *typed)


def test_a_teacher_of_other_classes_is_refused_by_their_names(school: Path) -> None:
    error = refused(83, *taught(), experiment="digits_pretrain")
    assert "does not know '0', '1', '2' and 2 more and also answers '5', '6', '7'" in error.what


def test_no_run_is_its_own_teacher(school: Path) -> None:
    for word in ("run.dir=sage", "checkpoint.resume=sage"):
        assert "no run teaches itself" in refused(82, *taught(word)).what
    assert refused(82, *taught("run.dir=sage", by="sage/export/model.onnx"))


def test_last_is_a_run_on_the_command_line_alone(school: Path) -> None:
    refused(87, *taught(by="last"))
    there = school / "outputs" / "digits" / "2026-01-01_10-00-00_abc123"
    there.mkdir(parents=True)
    shutil.copytree(school / "sage", there, dirs_exist_ok=True)
    run = f"loss.teacher={there.relative_to(school)}"
    for word in ("last", "abc123"):
        assert spelt_out(["loss=distill", f"loss.teacher={word}"]) == ["loss=distill", run]
    data = ["train", "outputs", f"loss.teacher={there.name}"]
    assert spelt_out(data)[-1] == run
    same = ["loss.teacher=a.onnx", "loss.teacher=a,b", "loss.teacher=sage"]
    assert spelt_out(same) == same
    with pytest.raises(CommandError, match="is no run folder"):
        spelt_out(["loss.teacher=nobody"])
    shutil.rmtree(school / "outputs")


def test_pixels_of_another_range_are_refused(school: Path) -> None:
    plan = planned("digits_freeze", *taught())
    data, classes = replace(plan.dataset, range=(0.0, 4095.0)), plan.card.classes
    with pytest.raises(CommandError, match="those of the data are otherwise") as caught:
        plan_teacher(plan.specs, data, classes)
    assert caught.value.number == 89


def test_a_teacher_of_the_validation_images_is_used_with_a_remark(school: Path) -> None:
    plan = planned("digits_freeze", *taught())
    seen = replace(plan.teacher, trained=plan.split("val").sha256)
    (remark,) = replace(plan, teacher=seen).facts["remarks"]
    assert remark.startswith("the teacher was trained on the images of val")


def test_a_teacher_that_is_gone_costs_the_comparison_and_not_the_run(
    school: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("sage", "moves", dirs_exist_ok=True)
    monkeypatch.setenv("XFER_CACHE", str(school / "other"))

    def leaving(*given: Any, **more: Any) -> Any:
        shutil.rmtree("moves")
        return evaluate.answered(*given, **more)

    monkeypatch.setattr("xfer.training.inference.answered", leaving)
    facts_of_it = xfer.run("digits_sgd", [*STEPS, *taught("run.dir=alone", by="moves")]).facts
    assert facts_of_it is not None
    assert facts_of_it["teacher"]["scores"] == {} and facts_of_it["scores"]["val"]["acc"] > 0
    assert any("nothing is known of the teacher there" in w for w in facts_of_it["warnings"])


def test_a_choice_has_no_teacher(school: Path) -> None:
    with pytest.raises(CommandError, match="judges by images held out"):
        xfer.run("digits_freeze", taught("choose=cached"))


def test_a_teacher_that_has_changed_is_no_longer_asked(school: Path) -> None:
    plan = planned("digits_freeze", *taught())
    with pytest.raises(WeightsError, match="is gone, or another file"):
        opened(replace(plan.teacher, sha256="0" * 64), plan, torch.device("cpu"))


def test_a_rate_is_looked_for_with_the_teacher(school: Path) -> None:
    climb = ["freeze=none", "run.dir=climb", "stages=[lr_find]"]
    xfer.run("digits_sgd", [STEPS[0], *climb, *taught()])
    losses = facts("climb", "lr_find.json")["losses"]
    assert losses[0] == pytest.approx(0.5 * np.log(5) + 0.5 * 4 * np.log(5), rel=0.05)


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder, *taught(by=str(place / "sage")), XFER_CACHE=str(folder / "cache")))
    return only_run(folder)


def test_a_killed_student_ends_as_one_that_was_not(
    place: Path, unbroken: Path, tmp_path: Path
) -> None:
    """With an empty cache, in the middle of an epoch, whose view the teacher answers anew."""
    typed = taught(by=str(place / "sage"))
    run = start(tmp_path, *typed, XFER_CACHE=str(tmp_path / "cache"))
    wait_for(lambda: in_an_epoch(tmp_path, 23), run)
    kill(run)
    shutil.rmtree(tmp_path / "cache")
    finish(start(tmp_path, *typed, "checkpoint.resume=auto", XFER_CACHE=str(tmp_path / "cache")))
    assert_same(only_run(tmp_path), unbroken)


@pytest.mark.slow
def test_two_devices_learn_from_one_teacher(place: Path, tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=16"]
    short = ["trainer.max_epochs=1", "checkpoint.every_n_steps=0"]
    finish(start(tmp_path, *taught(by=str(place / "sage")), *two, *short))
    (run,) = (tmp_path / "outputs" / "digits_sgd").iterdir()
    noted = facts(run)["teacher"]
    assert noted["images"] == 717 and noted["views"] == [0]
    assert 0 < noted["scores"]["val"]["agree"] <= 1


def test_another_teacher_under_the_same_name_is_not_resumed(
    unbroken: Path, place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    plan = facts(run, "plan.json")
    plan["teacher"]["sha256"] = "0" * 64
    (run / "plan.json").write_text(json.dumps(plan))
    from xfer.plan.resume import Earlier, check_same

    with pytest.raises(ResumeError, match="teacher's weights have changed"):
        check_same(Earlier(run, finished=False), facts(unbroken, "plan.json"))
