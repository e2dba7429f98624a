"""stages=[worth] with several labels an image: the curve of mAP, and a whole run on the digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import labelled
import numpy as np
import pytest
from browser import check_page
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import DataError
from xfer.plan.make import make_plan
from xfer.training import multilabel_subsampling as subsampling
from xfer.training import subsampling as sizing
from xfer.training import worth
from xfer.training.feature_moments import moments
from xfer.training.subsampling import FOLDS
from xfer.training.worth import of_features

SHARES = np.array([0.5, 0.3, 0.1])


def drawn(count: int, apart: float = 2.0, seed: int = 0, unknown: float = 0.1) -> Any:
    """Features float32 (n, d) in which each label has a direction, and labels, some unknown."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((count, 3)) < SHARES).astype(np.int64)
    x = draw.normal(size=(count, 12)) + apart * labels @ np.eye(3, 12)
    labels[draw.random(labels.shape) < unknown] = -1
    return x.astype(np.float32), labels


def test_subsamples_lie_inside_each_other_outside_what_they_answer_and_know_every_label() -> None:
    x, labels = drawn(90)
    draw = subsampling._LabelDraw(x, labels, 0)
    assert sorted(draw.order.tolist()) == list(range(90)) and len(draw.judged) == 90
    for fold in range(FOLDS):
        held = set(np.flatnonzero(draw.fold_of == fold).tolist())
        before: set[int] = set()
        for size in (9, 20, 60):
            some = draw._subsample(size, fold)
            assert (
                len(some) == size and before < set(some.tolist()) and not held & set(some.tolist())
            )
            assert all((labels[some] == side).any(axis=0).all() for side in (0, 1))
            before = set(some.tolist())


def test_any_beginning_has_every_combination_in_its_share() -> None:
    _, labels = drawn(600, unknown=0.0)
    order = subsampling._evenly(labels, np.random.default_rng(0))
    has = labels.mean(axis=0)
    for count in (40, 150, 400):
        assert labels[order[:count]].mean(axis=0) == pytest.approx(has, abs=1.5 / count**0.75)


def test_what_is_measured_is_what_scikit_learn_measures() -> None:
    x, labels = drawn(150)
    draw = subsampling._LabelDraw(x, labels, 5)
    logits, best = draw.answers(90, [2])
    assert set(best.tolist()) == {2}
    strength = 10.0 ** (2 - 2)  # every second of those that are half a power of ten apart
    theirs = np.zeros(labels.shape)
    for fold in range(FOLDS):
        chosen, held = draw._subsample(90, fold), draw.fold_of == fold
        mean, std = moments([x[chosen]])
        for label in range(3):
            known = chosen[labels[chosen, label] >= 0]
            model = LogisticRegression(C=1 / (strength * len(known)), tol=1e-10, max_iter=5000)
            model.fit((x[known] - mean) / std, labels[known, label])
            theirs[held, label] = model.decision_function((x[held] - mean) / std)
    assert np.abs(logits - theirs).max() < 1e-2
    ones = np.ones((1, 150))
    for label in range(3):
        known = labels[:, label] >= 0
        area = average_precision_score(labels[known, label], logits[known, label])
        had = labels[known, label] == 1
        given = subsampling.weighted_ap(ones[:, known], logits[known, label].astype(float), had)
        assert given == pytest.approx(area)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_curve_is_as_high_as_a_head_that_is_solved_on_as_many_images(seed: int) -> None:
    """Of 200 images: what a head of all of them scores on thousands of others is in the band."""
    facts = of_features(*drawn(200, seed=seed), "abc", seed, drawn(4000, seed=90 + seed))
    check = facts["check"]
    assert check["inside"] and check["labels"] == 3
    assert check["expected"]["high"] - check["expected"]["low"] < 0.3
    assert facts["now"]["value"] == pytest.approx(check["map"], abs=0.12)
    measured = [point["map"] for point in facts["measured"]]
    assert measured[-1] > measured[0] and facts["more"]["gain"]["low"] >= 0


def test_unknown_labels_have_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that nobody has looked at may be anything: nothing is otherwise."""
    fewer(monkeypatch, sizes=3, repeats=2)
    x, labels = drawn(60)
    facts = of_features(x, labels, "abc", 0, drawn(60, seed=1))
    other = labels.copy()
    other[labels < 0] = -7
    assert of_features(x, other, "abc", 0, drawn(60, seed=1)) == facts


def fewer(patch: pytest.MonkeyPatch, sizes: int = 8, repeats: int = 8) -> None:
    """The curve has at most so many points, and each image is held out at most so often."""
    patch.setattr(sizing, "_SIZES", sizes)
    patch.setattr(sizing, "_REPEATS", (1, repeats))


def test_noise_is_ranked_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer(monkeypatch, sizes=3)
    x, labels = drawn(200, apart=0.0, unknown=0.0)
    found = subsampling.subsampled_labels(x, labels, seed=0)
    assert found.by_repeat[-1].mean(axis=0) == pytest.approx(labels.mean(axis=0), abs=0.1)


def test_a_label_of_five_images_that_are_all_found_is_not_known_to_be_found_always() -> None:
    labels = np.zeros((100, 3), np.int64)
    labels[:5, 0] = labels[5:55, 1] = labels[20:70, 2] = 1
    x = np.random.default_rng(0).normal(size=(100, 12)) + 9 * labels @ np.eye(3, 12)
    facts = of_features(x.astype(np.float32), labels, "abc", 0, (x, labels))
    now = facts["by_class"]["a"]["now"]
    assert now["value"] - now["low"] > 0.1 and now["high"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("side", "word"), [(1, "have"), (0, "lack")])
def test_a_label_of_four_images_is_refused(tmp_path: Path, side: int, word: str) -> None:
    rows = labelled.digits(tmp_path / "images", 60)
    named = [
        (f"images/{n}", ["even"] if (i < 4) == (side == 1) else []) for i, (n, _) in enumerate(rows)
    ]
    text = "path,label,split\n" + "".join(
        f"{name},{'|'.join(labels)},{'val' if 20 <= i < 30 else 'train'}\n"
        for i, (name, labels) in enumerate(named)
    )
    (tmp_path / "labels.csv").write_text(text)
    typed = [*NETWORK, f"data.file={tmp_path / 'labels.csv'}", "data.leakage=ignore"]
    with pytest.raises(DataError, match=rf"E364: .*4 training images are known to {word}"):
        worth.measure(make_plan(compose_specs([*typed, "stages=[worth]"])))


NETWORK = ["experiment=digits_freeze", "data=csv", "task=multilabel", "data.workers=0"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worth")
    rows = [(f"images/{n}", labels) for n, labels in labelled.digits(place / "images", 160)]
    labelled.write_columns(place / "labels.csv", rows, unknown=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        fewer(patch, repeats=4)
        typed = [*NETWORK, "data.file=labels.csv", "data.leakage=ignore", "loss=asymmetric"]
        run = xfer.run(None, [*typed, "optim=adamw", "stages=[worth]", "run.dir=run"])
        return (place / run.folder).resolve()


def facts_of(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_the_run_leaves_numbers_a_table_and_a_page(measured: Path) -> None:
    facts, result = facts_of(measured, "worth.json"), facts_of(measured, "result.json")
    assert result["worth"]["more"] == facts["more"] and "curve" not in result["worth"]
    plan = facts_of(measured, "plan.json")
    train = plan["splits"]["train"]
    assert facts["classes"] == train["per_class"] and facts["images"] == train["n"]
    more = facts["more"]["images"] - facts["images"]
    said = facts["sentences"]
    assert said[0].startswith(
        f"{more} more images, which have each label 100 times on average, are"
    )
    assert "a mean average precision (mAP) of" in said[1] and "the mAP of 4 labels is" in said[-1]
    assert set(facts["by_class"]) == set(facts["classes"]) == set(labelled.LABELS)
    assert all(
        row["more"]["ap"] and "accuracy" not in row["more"] for row in facts["by_class"].values()
    )
    with (measured / "worth.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["class"] for row in rows} == {"", *facts["classes"]}
    page = (measured / "worth.html").read_text().replace("&nbsp;", " ")
    assert said[0] in page and "all classes: mAP" in page and "even: average precision" in page
    assert any("loss and data.sampler play no part" in line for line in result["warnings"])


def test_so_many_more_that_each_label_is_there_a_hundred_times(measured: Path) -> None:
    facts, plan = facts_of(measured, "worth.json"), facts_of(measured, "plan.json")
    known = facts["images"] - plan["splits"]["train"]["unknown"] / 4
    labels_an_image = sum(facts["classes"].values()) / known
    more = facts["more"]["images"] - facts["images"]
    assert more * labels_an_image == pytest.approx(400, rel=0.05)


def test_axe_finds_nothing_serious_on_its_page(measured: Path) -> None:
    check_page(measured / "worth.html")


def test_of_many_images_some_are_judged_and_rare_labels_count_as_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xfer.training.subsampling._JUDGED", 100)
    monkeypatch.setattr(subsampling, "_RARE", 10)
    x, labels = drawn(3_000, unknown=0.0)
    labels[:, 2] = 0
    labels[::200, 2] = 1
    draw = subsampling._LabelDraw(x, labels, 0)
    some, counted = labels[draw.judged] == 1, draw.counted[draw.judged]
    assert 500 < len(draw.judged) < 800
    assert some[:, 2].sum() == 15, "all of a rare label"
    assert counted @ some == pytest.approx(labels.sum(axis=0), rel=0.15)
    assert counted.sum() == pytest.approx(3_000, rel=0.1)
