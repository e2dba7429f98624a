"""head=knn and head=prototype: scikit-learn's answers, in the network, the checkpoint and ONNX."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch.nn import functional as F

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, HeadError
from xfer.models.head.filled_layers import FilledHead, NearestImages, NearestMean, Sizes, best_scale
from xfer.plan.make import make_plan
from xfer.training.backbone_features import backbone_features
from xfer.weights.formats.checkpoint_format import read_snapshot

COUNT, WIDTH, CLASSES = 90, 24, 3


def clouds(count: int, seed: int) -> tuple[Any, Any]:
    drawn = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(9).normal(size=(CLASSES, WIDTH))
    x = drawn.normal(size=(count, WIDTH)) + 0.6 * centres[labels] + 1.5
    return x.astype(np.float32), labels.astype(np.int64)


def filled(head: FilledHead) -> np.ndarray:
    x, labels = clouds(COUNT, 0)
    return head.fill(torch.from_numpy(x), torch.from_numpy(labels)).numpy()


def answers(head: FilledHead, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_neighbours_answer_as_scikit_learns_do(k: int, distance: str) -> None:
    (x, labels), (asked, _) = clouds(COUNT, 0), clouds(400, 1)
    head = NearestImages(Sizes(WIDTH, CLASSES, False), COUNT, k, distance)
    held_out = filled(head)
    theirs = KNeighborsClassifier(k, metric=distance).fit(x, labels)
    ours = answers(head, asked)
    assert np.array_equal(ours.argmax(axis=1), theirs.predict(asked))
    shares = (theirs.predict_proba(asked) * k + 1 / CLASSES) / (k + 1)
    assert np.allclose(np.exp(ours), shares, atol=1e-6)
    fresh = KNeighborsClassifier(k, metric=distance)
    assert np.array_equal(
        held_out.argmax(axis=1), cross_val_predict(fresh, x, labels, cv=LeaveOneOut())
    )


def test_means_answer_as_scikit_learns_do() -> None:
    (x, labels), (asked, _) = clouds(COUNT, 0), clouds(400, 1)
    head = NearestMean(Sizes(WIDTH, CLASSES, False), "euclidean")
    held_out = filled(head)
    theirs = NearestCentroid().fit(x, labels)
    assert np.array_equal(answers(head, asked).argmax(axis=1), theirs.predict(asked))
    left_out = cross_val_predict(NearestCentroid(), x, labels, cv=LeaveOneOut())
    assert np.array_equal(held_out.argmax(axis=1), left_out)
    # The distance to the mean without the image itself, worked out for one of them.
    others = x[(labels == labels[7]) & (np.arange(COUNT) != 7)].mean(axis=0)
    distance = ((x[7] - others) ** 2).sum()
    assert held_out[7, labels[7]] == pytest.approx(-float(head.scale) * distance, rel=1e-4)


def test_the_scale_has_the_least_loss() -> None:
    drawn = np.random.default_rng(2)
    squares = drawn.gamma(4.0, 30.0, size=(300, CLASSES))
    labels = squares.argmin(axis=1)
    wrong = drawn.random(300) < 0.2
    labels[wrong] = drawn.integers(CLASSES, size=int(wrong.sum()))
    best = best_scale(torch.from_numpy(squares), torch.from_numpy(labels))

    def loss(scale: float) -> float:
        z = torch.from_numpy(-scale * squares)
        return float(log_loss(labels, F.softmax(z, dim=1).numpy(), labels=range(CLASSES)))

    assert loss(best) < min(loss(best * 1.2), loss(best / 1.2))


def test_means_that_are_right_about_all_images_are_not_certain_of_them() -> None:
    labels = torch.arange(48) % 2
    squares = 100 * torch.stack([labels, 1 - labels], dim=1).double()
    said = F.softmax(-best_scale(squares, labels) * squares, dim=1)[torch.arange(48), labels]
    assert said.numpy() == pytest.approx(49 / 50, abs=1e-4)  # by Platt: one mistake in 50
    x, truth = clouds(COUNT, 0)
    head = NearestMean(Sizes(WIDTH, CLASSES, False), "euclidean")
    apart = torch.from_numpy(x) + 1000 * F.one_hot(torch.from_numpy(truth), WIDTH)
    right = F.softmax(head.fill(apart, torch.from_numpy(truth)), dim=1).max(dim=1).values
    assert float(right.mean()) == pytest.approx(1 - 1 / (COUNT + 2), abs=1e-3)


def test_an_image_alone_in_its_class_is_left_out_by_none() -> None:
    x, labels = clouds(COUNT, 0)
    labels[:] = np.arange(COUNT) % 2
    labels[5] = 2
    for head in (
        NearestImages(Sizes(WIDTH, CLASSES, False), COUNT, 3, "euclidean"),
        NearestMean(Sizes(WIDTH, CLASSES, False), "euclidean"),
    ):
        logits = head.fill(torch.from_numpy(x), torch.from_numpy(labels)).numpy()
        assert np.flatnonzero(np.isnan(logits).any(axis=1)).tolist() == [5]


def test_a_map_is_answered_by_its_mean() -> None:
    head = NearestMean(Sizes(WIDTH, CLASSES, True), "euclidean")
    filled(head)
    x = torch.from_numpy(clouds(6, 3)[0])
    maps = x[:, :, None, None].expand(-1, -1, 2, 5)
    assert head(maps).shape == (6, CLASSES, 1, 1)
    assert torch.allclose(head(maps)[:, :, 0, 0], head.answer(x), atol=1e-4)


HEADS = {
    "knn": lambda x, y: KNeighborsClassifier(5).fit(x, y),
    "prototype": lambda x, y: NearestCentroid().fit(x, y),
}


@pytest.fixture(scope="module", params=HEADS)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    place = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        typed = [f"head={request.param}", "optim=auto", "export=onnx"]
        folder = xfer.run("digits_freeze", [*typed, "stages=[fit,evaluate,export,report]"]).folder
        return request.param, (place / folder).resolve()


def predicted(run: Path, name: str = "predictions_val.csv") -> list[str]:
    with (run / name).open() as stream:
        return [row["prediction"] for row in csv.DictReader(stream)]


def test_the_run_answers_as_scikit_learn_on_its_features(made: tuple[str, Path]) -> None:
    name, run = made
    plan = make_plan(compose_specs(["experiment=digits_freeze", "stages=[fit]"]))
    features = backbone_features(plan, "test")
    splits = features.cached.work.splits
    theirs = HEADS[name](features.rows["train"], splits["train"].labels)
    answers = theirs.predict(features.rows["val"])
    assert predicted(run) == [plan.card.classes[label] for label in answers]
    cv = json.loads((run / "result.json").read_text())["best"]
    assert (cv["metric"], cv["epoch"], cv["step"]) == ("cv_loss", 1, 0)
    # Nothing was trained: the card names no best epoch, and has no curve of one dot.
    card = (run / "report.md").read_text()
    assert "Nothing was trained: the head holds training images" in card
    assert "Best epoch" not in card and not (run / "figures/curves.png").exists()
    page = (run / "report.html").read_text()
    assert "cv_loss" in page and "over the epochs" not in page


def test_nothing_trains_and_what_was_frozen_is_proved(made: tuple[str, Path]) -> None:
    _, run = made
    result = json.loads((run / "result.json").read_text())
    chosen = json.loads((run / "plan.json").read_text())["auto"]
    assert "optim" not in {row["key"] for row in chosen}, "nothing is optimised"
    assert result["params"]["trainable"] == 0
    assert result["freeze"]["proved"] is True
    assert result["scores"]["val"]["used_for_selection"] is False


def test_the_checkpoint_and_the_exported_file_answer_the_same(
    made: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, run = made
    monkeypatch.chdir(tmp_path)
    result = json.loads((run / "result.json").read_text())
    (file,) = result["export"]
    assert file["agree"] == 1.0
    again = xfer.run(
        "digits_freeze", [f"checkpoint.path={run}", "stages=[evaluate]", "run.dir=again"]
    )
    assert predicted(Path(again.folder)) == predicted(run)
    held = xfer.load(run)
    assert held.card.head["_target_"].endswith({"knn": "Knn", "prototype": "Prototype"}[name])


def test_maps_of_votes_are_refused_in_our_words_and_those_of_means_are_drawn(
    made: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, run = made
    monkeypatch.chdir(tmp_path)
    card = (run / "report.html").read_text("utf-8")
    Image.fromarray((load_digits().images[5] * 15.9).astype(np.uint8)).save("5.png")
    typed = ["stages=[predict]", f"checkpoint.path={run}", "predict.input=5.png"]
    if name == "prototype":
        folder = xfer.run(None, [*typed, "predict.maps=1", "run.dir=means"]).folder
        assert 'class="heat-map"' in (folder / "predictions.html").read_text("utf-8")
        assert 'class="heat-map"' in card
        return
    assert "There are no heat maps: the answers have no gradient" in card
    with pytest.raises(HeadError, match=r"E661: predict\.maps: .*Fix: drop predict\.maps"):
        xfer.run(None, [*typed, "predict.maps=1"])
    xfer.run(None, typed)


@pytest.mark.parametrize("typed", ["head.images=3", "head.multilabel=true"])
def test_what_the_plan_sets_is_refused_where_it_is_typed(typed: str) -> None:
    base = ["experiment=digits_freeze", "optim=auto", "head=knn", "stages=[fit]"]
    key = typed.partition("=")[0]
    with pytest.raises(HeadError, match=f"E662: {key}: .*which the plan sets.*Fix: drop it"):
        compose_specs([*base, typed])


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        (["freeze=none"], "freeze=head_only"),
        (["optim=adamw"], "optim=auto"),
        (["loss=smoothed"], "loss=cross_entropy"),
        (["data.sampler=balanced"], "data.sampler=shuffled"),
        (["augment=standard"], "augment=none"),
        (["features=never"], "features=auto"),
        (["head.k=5000"], "head.k=716"),
        (["trainer.max_epochs=3"], "trainer.max_epochs=auto"),
    ],
)
def test_what_would_train_is_refused_with_what_to_type(typed: list[str], fix: str) -> None:
    base = ["experiment=digits_freeze", "optim=auto", "head=knn", "stages=[fit]"]
    with pytest.raises(CombinationError) as error:
        make_plan(compose_specs([*base, *typed]))
    assert error.value.number == 32
    assert f"type {fix}" in error.value.fix
    make_plan(compose_specs([*base, *typed, fix]))


def test_sets_of_a_head_that_is_filled_are_those_of_images_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["stages=[fit,evaluate]", "head=knn", "certificate.coverage=0.9"]
    done = xfer.run("digits_freeze", typed)
    made = read_snapshot(done.folder / "checkpoints/best.ckpt").card.certificate
    assert made is not None and made.unlike is None and made.fitted_on == "cv"
    assert made.n == 717 and done.facts is not None
    assert 0.85 < done.facts["certificate"]["covered"] <= 1
