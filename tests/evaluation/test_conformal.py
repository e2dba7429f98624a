"""The statistics of prediction sets, on numbers: ranks, thresholds, coverage, and words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xfer.core.certificate import Certificate
from xfer.evaluation.conformal import (
    covered,
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
