"""Which labels are accused, and whether the stated false-discovery rate is the true one."""

from __future__ import annotations

import numpy as np
import pytest

from xfer.evaluation import leave_one_out as blocked
from xfer.evaluation.leave_one_out import coordinates, leave_one_out
from xfer.evaluation.wrong_labels import Judged, doubts, judge, margins


def flipped(
    apart: float, rate: float, seed: int, classes: int = 3, count: int = 600, misread: float = 0.0
):
    """Labels of classes ``apart`` from each other, a share of them wrong, and the judgement; a
    share of the images is ``misread``: its features are those of another class."""
    draw = np.random.default_rng(seed)
    true = draw.integers(0, classes, count)
    centres = np.eye(classes, 20) * apart
    looks = np.where(np.arange(count) < misread * count, (true + 1) % classes, true)
    features = (draw.normal(size=(count, 20)) + centres[looks]).astype(np.float32)
    wrong = draw.random(count) < rate
    labels = np.where(wrong, (true + draw.integers(1, classes, count)) % classes, true)
    left_out = leave_one_out(coordinates(features), labels, classes)
    return judge(np.eye(classes)[labels] - left_out.apart, labels), wrong, true


def test_flipped_labels_come_first_and_the_true_class_is_suggested() -> None:
    judged, wrong, true = flipped(5.0, 0.05, 0)
    first = judged.order[: wrong.sum()]
    assert wrong[first].mean() > 0.95
    assert (judged.suggested[wrong] == true[wrong]).mean() > 0.95


@pytest.mark.parametrize(("apart", "rate"), [(3.0, 0.05), (4.0, 0.05), (4.0, 0.15), (3.0, 0.15)])
def test_the_stated_rates_are_the_true_ones(apart: float, rate: float) -> None:
    stated, false, rates = [], [], []
    for seed in range(10):
        judged, wrong, _ = flipped(apart, rate, seed)
        accused = judged.accused
        stated.append(judged.fdr[accused[-1]])
        false.append(1 - wrong[accused].mean())
        rates.append(judged.rate)
    assert np.mean(stated) == pytest.approx(np.mean(false), abs=0.07)
    assert np.mean(rates) == pytest.approx(rate, abs=0.03)


def test_right_labels_of_images_that_are_misread_with_confidence_are_reckoned_with() -> None:
    """They look as wrong ones do, and are a good part of the list where few labels are wrong."""
    stated, false, listed = [], [], []
    for seed in range(8):
        judged, wrong, _ = flipped(1.8, 0.03, seed, misread=0.004)
        stated.append(judged.rates[-1])
        false.append(1 - wrong[judged.accused].mean())
        listed.append(len(flipped(1.8, 0.0, seed, misread=0.004)[0].accused))
    assert np.mean(false) > 0.3
    assert np.mean(stated) == pytest.approx(np.mean(false), abs=0.1)
    assert np.mean(listed) < 3, "where no label is wrong"


def test_labels_without_a_mistake_are_hardly_accused() -> None:
    counts = [len(flipped(4.0, 0.0, seed)[0].accused) for seed in range(5)]
    assert np.mean(counts) < 3  # of 600


def test_hard_images_among_few_are_no_evidence_and_flipped_labels_are() -> None:
    """On 70 images of classes that overlap, lists without a flipped label, or nearly."""
    doubted = 0
    for seed in range(12):
        judged, _, _ = flipped(2.0, 0.0, seed, count=70)
        said = doubts(judged, np.arange(70) % 3, ("a", "b", "c"))
        assert len(said) == (len(judged.accused) > 0 and not judged.shown)
        doubted += judged.shown
    assert doubted <= 2, "as chance has it once in twenty times"
    assert all(flipped(4.0, 0.1, seed)[0].shown for seed in range(4))


@pytest.mark.parametrize("rest", [30, 1])
def test_an_image_alone_in_its_class_is_not_judged(rest: int) -> None:
    draw = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [rest, rest, 1])
    answers = np.eye(3)[labels] + 0.1 * draw.normal(size=(len(labels), 3))
    answers[-1] = [1.0, 0.0, -1.0]  # nothing like its class
    judged = judge(answers, labels)
    assert judged.p_wrong[-1] == 0 and np.isfinite(judged.fdr).all() and not len(judged.accused)
    (said,) = doubts(judged, labels, ("a", "b", "c"))
    assert said.endswith("not judged: 'c'" if rest > 1 else "not judged: 'a', 'b', 'c'")


def test_the_rate_of_a_list_is_the_mean_over_it() -> None:
    judged, _, _ = flipped(3.0, 0.1, 0)
    for length in (1, 7, 600):
        some = judged.order[:length]
        assert judged.fdr[some[-1]] == pytest.approx(1 - judged.p_wrong[some].mean())
    assert (np.diff(judged.p_wrong[judged.order]) <= 0).all()
    assert ((judged.p_wrong >= 0) & (judged.p_wrong <= 1)).all()


def test_the_scale_of_the_answers_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    answers, labels = draw.normal(size=(90, 4)), draw.integers(0, 4, 90)
    one, other = judge(answers, labels), judge(1000 * answers + 5, labels)
    assert np.allclose(one.p_wrong, other.p_wrong, atol=1e-6)


def test_labels_at_random_and_answers_that_say_nothing_accuse_nobody() -> None:
    labels = np.arange(60) % 2
    for answers in (np.zeros((60, 2)), np.full((60, 2), 0.5)):
        judged: Judged = judge(answers, labels)
        assert len(judged.accused) == 0 and np.isfinite(judged.p_wrong).all()


def test_margins_are_over_the_best_other_class() -> None:
    found = margins(np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 1.0]]))
    assert found.tolist() == [[2.0, -2.0, -3.0], [0.0, 0.0, -1.0]]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    answers, labels = draw.normal(size=(90, 4)), draw.integers(0, 4, 90)
    whole = judge(answers, labels)
    monkeypatch.setattr(blocked, "BLOCK", 40)
    parts = judge(answers, labels)
    assert np.allclose(parts.p_wrong, whole.p_wrong, rtol=0, atol=1e-9)
    assert (parts.order == whole.order).all()
