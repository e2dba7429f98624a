"""The statistics of prediction sets, on numbers: ranks, thresholds, coverage, and words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xfer.core.certificate import Certificate
from xfer.evaluation.conformal import (
    covered,
    having_labels,
    largest_coverage,
    least_probabilities,
    rank,
    set_words,
    smallest_n,
)


def draw(n: int, seed: int, classes: int = 4, skill: float = 1.5):
    """Probabilities and labels of images of which a part is hard."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    z = random.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    p = np.exp(z)
    return p / p.sum(1, keepdims=True), labels


def certificate(p, labels, coverage: float, by_class: bool = False) -> Certificate:
    least = least_probabilities(p, labels, coverage, by_class)
    return Certificate(coverage, by_class, "val", len(labels), 1.0, "", least)


def test_the_rank_is_that_of_the_formula_in_exact_numbers() -> None:
    for n in range(1, 400):
        for hundredths in range(1, 100):
            exact = -(-(n + 1) * hundredths // 100)
            assert rank(n, hundredths / 100) == exact
    assert math.ceil((99 + 1) * 0.07) == 8 and rank(99, 0.07) == 7  # what binary makes of it


def test_how_many_images_a_coverage_takes() -> None:
    assert [smallest_n(share) for share in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    assert [largest_coverage(n) for n in (0, 1, 5, 9, 19)] == [0, 0.5, 0.83, 0.9, 0.95]
    for n in range(1, 60):
        assert rank(n, largest_coverage(n)) <= n < rank(n, largest_coverage(n) + 0.01)
    p, labels = draw(8, 0)
    with pytest.raises(ValueError, match="8 images are too few"):
        least_probabilities(p, labels, 0.9, by_class=False)


def test_the_threshold_is_the_quantile_that_numpy_computes_of_scores() -> None:
    p, labels = draw(137, 1)
    scores = 1 - p[np.arange(137), labels]
    level = math.ceil(138 * 0.9) / 137
    expected = 1 - np.quantile(scores, level, method="inverted_cdf")
    fitted = least_probabilities(p, labels, 0.9, by_class=False)
    np.testing.assert_allclose(fitted, expected, rtol=1e-6)
    assert fitted.dtype == np.float32 and (fitted.astype(np.float64) <= expected + 1e-15).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_cover_what_was_asked_over_many_draws(coverage: float) -> None:
    shares = []
    for seed in range(300):
        p, labels = draw(60, seed)
        fresh, theirs = draw(200, 10_000 + seed)
        shares.append(covered(certificate(p, labels, coverage).sets(fresh), theirs))
    # The mean over draws lies between the coverage and that plus 1 / (n + 1) (Vovk et al., 2005).
    assert coverage - 0.006 < np.mean(shares) < coverage + 1 / 61 + 0.006


def test_by_class_each_class_is_covered_where_otherwise_the_hard_one_is_not() -> None:
    def lopsided(n: int, seed: int):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, n)
        skill = np.array([3.0, 3.0, 0.3])[labels]
        z = random.normal(size=(n, 3)) + skill[:, None] * np.eye(3)[labels]
        p = np.exp(z)
        return p / p.sum(1, keepdims=True), labels

    hard: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(100):
        p, labels = lopsided(300, seed)
        fresh, theirs = lopsided(600, 5_000 + seed)
        for by_class, shares in hard.items():
            sets = certificate(p, labels, 0.9, by_class).sets(fresh)
            shares.append(float(sets[theirs == 2, 2].mean()))
    assert np.mean(hard[False]) < 0.8
    assert 0.89 < np.mean(hard[True]) < 0.93


def test_no_set_is_empty_and_the_most_probable_class_is_in_each() -> None:
    p, labels = draw(400, 3, skill=6.0)
    sure = certificate(p, labels, 0.5)
    flat = np.array([[0.26, 0.25, 0.25, 0.24], [0.25, 0.25, 0.25, 0.25]])
    assert (sure.least > 0.3).all()
    assert sure.sets(flat).tolist() == [[True, False, False, False], [True] * 4]
    fresh, _ = draw(400, 4, skill=6.0)
    assert sure.sets(fresh)[np.arange(400), fresh.argmax(1)].all()


def test_words_of_a_set_can_be_taken_apart_again() -> None:
    row = np.array([True, False, True, True])
    assert set_words(row, ["dogs", "cats", "a|b", "c\\"]) == "dogs|a\\|b|c\\\\"


def drawn_labels(n: int, seed: int, unknown: float = 0.1):
    """Probabilities (n, 4) of labels that images have with unequal shares, labels of 1, 0 and -1;
    about a quarter of the images have none."""
    random = np.random.default_rng(seed)
    has = random.random((n, 4)) < np.array([0.5, 0.3, 0.2, 0.1])
    z = random.normal(size=(n, 4)) + np.where(has, [2.5, 2.0, 1.0, 0.5], -1.0)
    labels = np.where(random.random((n, 4)) < unknown, -1, has.astype(np.int64))
    return 1 / (1 + np.exp(-z)), labels


def several(p, labels, coverage: float, by_class: bool = False) -> Certificate:
    least = least_probabilities(p, labels, coverage, by_class)
    return Certificate(coverage, by_class, "val", len(labels), 1.0, "", least, several=True)


def lost(p, labels, cut: float) -> list[float]:
    """Of each image that has a label the share of its labels below ``cut``, image by image."""
    shares = []
    for row, of_image in zip(p, labels, strict=True):
        own = row[of_image == 1]
        if len(own):
            shares.append(float((own < cut).sum()) / len(own))
    return shares


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_with_several_labels_the_threshold_is_the_largest_that_bounds_the_risk(
    coverage: float,
) -> None:
    """By the definition of Angelopoulos et al. (2022), every threshold tried."""
    for seed in range(5):
        p, labels = drawn_labels(60 + 9 * seed, seed)
        sound = []
        for cut in np.unique(p):
            risks = lost(p, labels, cut)
            n = len(risks)
            if n / (n + 1) * np.mean(risks) + 1 / (n + 1) <= 1 - coverage + 1e-12:
                sound.append(cut)
        fitted = least_probabilities(p, labels, coverage, by_class=False)
        np.testing.assert_allclose(fitted, max(sound), rtol=1e-6)
        assert (fitted.astype(np.float64) <= max(sound)).all() and len(set(fitted.tolist())) == 1


def test_one_label_is_the_case_of_several_where_each_image_has_one() -> None:
    p, labels = draw(137, 1)
    for by_class in (False, True):
        one = least_probabilities(p, labels, 0.9, by_class)
        matrix = least_probabilities(p, np.eye(4, dtype=np.int64)[labels], 0.9, by_class)
        np.testing.assert_array_equal(one, matrix)
    equal = np.full((137, 4), 0.25)
    assert (least_probabilities(equal, labels, 0.9, by_class=False) == 0.25).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_of_several_labels_have_the_share_that_was_asked_for_over_many_draws(
    coverage: float,
) -> None:
    shares = []
    for seed in range(300):
        p, labels = drawn_labels(80, seed)
        fresh, theirs = drawn_labels(200, 10_000 + seed)
        shares.append(covered(several(p, labels, coverage).sets(fresh), theirs))
    # Between the coverage and that plus 2 / (n + 1) (Angelopoulos et al., 2022); n is about 60.
    assert coverage - 0.006 < np.mean(shares) < coverage + 2 / 61 + 0.006


def test_by_class_each_label_is_in_the_sets_of_the_images_that_have_it() -> None:
    hard: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(100):
        p, labels = drawn_labels(400, seed)
        fresh, theirs = drawn_labels(600, 5_000 + seed)
        for by_class, shares in hard.items():
            sets = several(p, labels, 0.9, by_class).sets(fresh)
            shares.append(float(sets[theirs[:, 3] == 1, 3].mean()))
    assert np.mean(hard[False]) < 0.7
    assert 0.89 < np.mean(hard[True]) < 0.93


def test_images_without_a_label_promise_nothing_and_their_sets_may_be_empty() -> None:
    p, labels = drawn_labels(200, 3)
    made = several(p, labels, 0.9)
    bare = np.where(labels[:50] == 1, 0, labels[:50])
    more = several(np.vstack([p, p[:50]]), np.vstack([labels, bare]), 0.9)
    np.testing.assert_array_equal(made.least, more.least)
    has = (labels == 1).any(axis=1)
    assert having_labels(labels).tolist() == has.tolist() and not has.all()
    assert having_labels(np.array([0, -1])).tolist() == [True, False]
    sets = made.sets(p)
    shares = [float(sets[i, labels[i] == 1].mean()) for i in np.flatnonzero(has)]
    assert covered(sets, labels) == pytest.approx(np.mean(shares))
    assert not sets.any(axis=1).all() and made.sets(np.zeros((1, 4))).tolist() == [[False] * 4]
    few, theirs = drawn_labels(20, 0)
    enough = int((theirs == 1).any(axis=1).sum())
    assert smallest_n(0.9) <= enough < smallest_n(0.95)
    several(few, theirs, 0.9)
    with pytest.raises(ValueError, match=f"{enough} images are too few"):
        several(few, theirs, 0.95)
