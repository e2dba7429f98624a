"""Exact heads of several labels, against scikit-learn's logistic regression of each class."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from xfer.data.multilabel_rows import label_odds
from xfer.training import logistic
from xfer.training.feature_moments import moments
from xfer.training.head_problem import out_of_fold, solution_of
from xfer.training.multilabel_logistic import LabelHeads, LabelProblem, label_folds


def drawn(n: int = 300, d: int = 40, unknown: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, d)) * random.uniform(0.1, 10, d) + 3 * random.normal(size=d)
    z = (x - x.mean(0)) / x.std(0)
    scores = z @ random.normal(size=(d, 4)) / np.sqrt(d) + 0.5 * random.normal(size=(n, 4))
    y = (scores > [0, 0.5, 1, -1]).astype(np.int64)
    y[random.random(y.shape) < unknown] = -1
    return x.astype(np.float32), y


def heads(x: np.ndarray, y: np.ndarray, strengths: tuple[float, ...], **more: object) -> LabelHeads:
    weights = more.pop("weights", [1.0] * y.shape[1])
    options = {"weigh": lambda _: weights, "smoothing": 0.0, "parts": 5, "seed": 0} | more
    return LabelHeads([x], x, y, strengths=strengths, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (3.0, 0.5, 2.0, 1.0)])
@pytest.mark.parametrize("shape", [(300, 40), (60, 90)])
def test_each_class_is_the_logistic_regression_of_its_known_images(
    weights: tuple[float, ...], shape: tuple[int, int]
) -> None:
    from sklearn.linear_model import LogisticRegression

    (x, y), l2 = drawn(*shape), 0.05
    found = heads(x, y, (l2,), weights=weights)
    (row,) = solution_of(found)[1].path
    mean, std = moments([x])
    z = (x - mean) / std
    for c in range(4):
        known = y[:, c] >= 0
        theirs = LogisticRegression(
            C=1 / (l2 * known.sum()), tol=1e-10, max_iter=9999, class_weight={1: weights[c], 0: 1}
        ).fit(z[known], y[known, c])
        ours = x @ row.weight[c] + row.bias[c]
        assert np.abs(ours - theirs.decision_function(z)).max() < 5e-5


def test_what_is_unknown_has_no_part_in_its_class() -> None:
    x, y = drawn()
    unknown = np.flatnonzero(y[:, 0] < 0)
    other = x.copy()
    # Moved among each other, so that the moments of the features stay as they are.
    other[unknown] = x[unknown[::-1]]
    both = [heads(each, y[:, :1], (0.05,)) for each in (x, other)]
    one, two = (solution_of(found)[1].path[0] for found in both)
    assert np.abs(one.weight - two.weight).max() < 1e-6


def test_smoothing_is_a_softer_target() -> None:
    x, y = drawn(unknown=0.0)
    plain, smooth = (heads(x, y, (1e-3,), smoothing=s) for s in (0.0, 0.2))
    first, second = (solution_of(found)[1].path[0] for found in (plain, smooth))
    assert np.abs(second.weight).max() < np.abs(first.weight).max()
    rows = smooth.rows()
    assert set(np.unique(rows.targets)) == {0.1, 0.9}
    assert np.allclose(rows.targets + rows.others, 1)


def test_the_gradient_is_that_of_the_loss() -> None:
    from scipy.optimize import check_grad

    x, y = drawn(80, 6)
    problem = LabelProblem(heads(x, y, (0.1,), weights=[2.0, 1.0, 1.0, 0.5], smoothing=0.1).rows())
    theta = np.random.default_rng(1).normal(size=(4, 7))
    shares = problem.shares(0)

    def value(flat: np.ndarray) -> float:
        return problem.loss(flat.reshape(theta.shape), shares, 0.1)[0]

    def slope(flat: np.ndarray) -> np.ndarray:
        return problem.loss(flat.reshape(theta.shape), shares, 0.1)[1].ravel()

    assert check_grad(value, slope, theta.ravel()) < 1e-5


def test_one_image_with_a_label_is_not_answered_by_the_others() -> None:
    x, y = drawn(unknown=0.0)
    y[:, 3] = 0
    y[7, 3] = 1
    y[8, :3] = -1  # as rare, so that neither is alone with its labels
    found = heads(x, y, (0.1, 0.01))
    rows = found.rows()
    solution = logistic.solve(rows, found.strengths)
    held, seen = rows.folds == rows.folds[7], rows.folds >= 0
    assert rows.folds[7] >= 0 and seen.sum() >= 299  # at most one is alone with its labels
    assert np.isnan(solution.held_out[held, 3]).all()
    assert np.isfinite(solution.held_out[seen, :3]).all()
    assert np.isfinite(solution.held_out[seen & ~held]).all() and np.isfinite(
        solution.path[0].cv_loss
    )


def test_the_path_is_followed_to_its_best_strength() -> None:
    x, y = drawn()
    found = heads(x, y, logistic.STRENGTHS)
    solution = solution_of(found)[1]
    losses = [row.cv_loss for row in solution.path]
    assert 0 < solution.best < len(losses) - 1 and losses[solution.best] == min(losses)


def test_folds_spread_every_combination() -> None:
    labels = np.repeat([[0, 0], [1, 0], [1, 1], [-1, 1]], [40, 20, 10, 2], axis=0)
    folds = label_folds(labels, 5, 1)
    for combination in ([0, 0], [1, 0], [1, 1]):
        members = (labels == combination).all(axis=1)
        assert np.ptp(np.bincount(folds[members], minlength=5)) == 0
    assert set(folds) == {0, 1, 2, 3, 4}


def test_a_fold_is_answered_by_the_solution_on_the_others() -> None:
    """By scikit-learn, with weights that are those of the other folds' labels."""
    x, y = drawn(120, 6, unknown=0.1)
    fold_of = np.arange(120) % 3

    def balanced(labels: np.ndarray) -> list[float]:
        return [float((c == 0).sum() / (c == 1).sum()) for c in labels.T]

    problem = heads(x, y, (0.1,), weigh=balanced)
    found = out_of_fold(problem, fold_of[None])[0]
    for k in range(3):
        inside = fold_of != k
        mean, std = moments([x[inside]])
        z = (x - mean) / std
        for c, weight in enumerate(balanced(y[inside])):
            some = inside & (y[:, c] >= 0)
            each = np.where(y[some, c] == 1, weight, 1.0)
            model = LogisticRegression(C=1 / (0.1 * some.sum()), tol=1e-10, max_iter=5000)
            model.fit(z[some], y[some, c], sample_weight=each)
            np.testing.assert_allclose(
                found[~inside, c], model.decision_function(z[~inside]), atol=5e-3
            )


def test_images_that_are_balanced_count_by_the_rarest_of_their_labels() -> None:
    """By scikit-learn, with a weight an image that is counted here; so does a part of a fold."""
    x, y = drawn(120, 6, unknown=0.1)
    fold_of = np.arange(120) % 3
    found = out_of_fold(heads(x, y, (0.1,), balanced=True), fold_of[None])[0]
    for k in range(3):
        inside = np.flatnonzero(fold_of != k)
        has = [[c for c, value in enumerate(y[i]) if value == 1] or [-1] for i in inside]
        counts = Counter(c for some in has for c in some)
        often = np.array([max(1 / counts[c] for c in some) for some in has])
        mean, std = moments([x[inside]])
        z = (x - mean) / std
        for c in range(y.shape[1]):
            known = y[inside, c] >= 0
            weight = often[known] / often[known].mean()
            model = LogisticRegression(C=1 / (0.1 * known.sum()), tol=1e-10, max_iter=5000)
            model.fit(z[inside][known], y[inside, c][known], sample_weight=weight)
            given = found[fold_of == k, c]
            assert np.allclose(given, model.decision_function(z[fold_of == k]), atol=5e-3)


def test_one_label_an_image_counts_as_where_that_is_the_task() -> None:
    codes = np.repeat([0, 1, 2], [60, 25, 15])
    counts = np.bincount(codes)
    assert np.allclose(label_odds(np.eye(3, dtype=np.int64)[codes]), 100 / (3 * counts[codes]))
