"""The convex problem: scikit-learn's optimum, its path, its folds, and what is odd about data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from xfer.training import feature_moments, logistic


def blobs(n: int, width: int, classes: int, seed: int = 0, apart: float = 1.5):
    drawn = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = drawn.normal(size=(classes, width)) * apart / np.sqrt(width) ** 0.5
    return (drawn.normal(size=(n, width)) + centres[labels]).astype(np.float32), labels


def rows(features, labels, **given) -> logistic.TrainingRows:
    n, classes = len(labels), int(labels.max()) + 1
    facts = {
        "weights": np.ones(n),
        "class_weights": np.ones(classes),
        "smoothing": 0.0,
        "folds": logistic.folds(labels, 5, 0),
    }
    return logistic.TrainingRows([features], features, labels, **{**facts, **given})


def standardised(features):
    mean, std = feature_moments.moments([features])
    return (features - mean) / std


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(120, 20, 3), (60, 200, 4), (90, 40, 2)])
@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_it_is_the_optimum_that_scikit_learn_finds(shape, l2: float) -> None:
    features, labels = blobs(*shape)
    (row,) = logistic.solve(rows(features, labels), (l2,)).path[:1]
    z = standardised(features)
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=20000).fit(z, labels)
    found = features @ row.weight.T + row.bias
    wanted = theirs.decision_function(z)
    if wanted.ndim == 1:  # two classes: they give the difference, and halve the penalty of ours
        theirs = LogisticRegression(C=2 / (l2 * len(labels)), tol=1e-10, max_iter=20000)
        wanted = theirs.fit(z, labels).decision_function(z)
        assert np.allclose(found[:, 1] - found[:, 0], wanted, atol=2e-4)
        return
    assert np.allclose(centred(found), centred(wanted), atol=2e-4)


def test_variances_are_those_of_ten_more_images_that_vary_as_the_features_do() -> None:
    drawn = np.random.default_rng(0)
    features = drawn.normal(size=(40, 5)) * [0.001, 1, 2, 3, 1000] + 7
    features = np.column_stack([features, np.full(40, 190.0)])
    mean, std = feature_moments.moments([features, features[::-1]])
    variance = features.var(0)
    usual = features.std(0)[:-1].mean() ** 2
    assert np.allclose(mean, features.mean(0)) and std[-1] == 1
    assert np.allclose(std[:-1] ** 2, (40 * variance[:-1] + 10 * usual) / 50)
    assert (feature_moments.moments([np.full((3, 2), 5.0)])[1] == 1).all()


def test_a_trace_in_one_of_few_images_does_not_outvote_all_other_features() -> None:
    features, labels = blobs(600, 30, 3)
    traces = np.maximum(np.random.default_rng(1).normal(size=(600, 300)) - 2.5, 0) * 3
    traces[:30] *= 1e-3  # what a network gives that has hardly seen such a thing yet
    whole = np.hstack([features, traces]).astype(np.float32)
    found = logistic.solve(rows(whole[:30], labels[:30]))
    best = found.path[found.best]
    logits = torch.from_numpy(whole[30:] @ best.weight.T + best.bias)
    loss = float(F.cross_entropy(logits, torch.from_numpy(labels[30:])))
    assert loss < best.cv_loss + 0.5


def test_features_multiplied_and_shifted_give_the_same_answers_and_loss() -> None:
    features, labels = blobs(80, 30, 4)
    plain = logistic.solve(rows(features, labels))
    other = logistic.solve(rows(features * 100 + 50, labels))
    assert plain.best == other.best
    for ours, theirs in zip(plain.path, other.path, strict=True):
        assert theirs.cv_loss == pytest.approx(ours.cv_loss, rel=1e-4)
        assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-4)
    a, b = plain.path[plain.best], other.path[other.best]
    found = (features * 100 + 50) @ b.weight.T + b.bias
    assert np.allclose(centred(features @ a.weight.T + a.bias), centred(found), atol=5e-3)


def test_the_loss_is_torchs_with_class_weights_smoothing_and_how_often_an_image_comes() -> None:
    features, labels = blobs(60, 10, 3)
    class_weights, weights = np.array([1.0, 2.0, 0.5]), np.where(labels == 1, 3.0, 1.0)
    given = rows(features, labels, class_weights=class_weights, smoothing=0.1, weights=weights)
    row = logistic.solve(given, (0.1,)).path[0]
    logits = torch.from_numpy(features @ row.weight.T + row.bias)
    repeats = torch.from_numpy(weights).long()
    loss = F.cross_entropy(
        logits.double().repeat_interleave(repeats, 0),
        torch.from_numpy(labels).repeat_interleave(repeats),
        torch.from_numpy(class_weights),
        label_smoothing=0.1,
    )
    assert row.train_loss == pytest.approx(float(loss), rel=1e-6)


def test_the_gradient_is_that_of_the_loss() -> None:
    features, labels = blobs(40, 6, 3)
    problem = logistic.Problem(rows(features, labels, smoothing=0.1))
    theta = np.random.default_rng(0).normal(size=(3, len(problem.spread) + 1))
    shares = np.full(40, 1 / 40)
    _, gradient = problem.loss(theta, shares, 0.3)
    for at in [(0, 0), (2, 3), (1, -1)]:
        step = np.zeros_like(theta)
        step[at] = 1e-6
        above, below = (problem.loss(theta + sign * step, shares, 0.3)[0] for sign in (1, -1))
        assert gradient[at] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-8)


def test_the_best_strength_is_the_one_of_least_loss_on_what_was_held_out() -> None:
    features, labels = blobs(100, 50, 4)
    given = rows(features, labels)
    found = logistic.solve(given)
    assert found.best == int(np.argmin([row.cv_loss for row in found.path]))
    logits = found.held_out.astype(float)
    losses = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.path[found.best].cv_loss == pytest.approx(float(losses), rel=1e-6)
    # Of each fold by a fit without it: scikit-learn's on the same standardised features.
    l2 = found.path[found.best].l2
    z = standardised(features)
    inside = given.folds != 2
    theirs = LogisticRegression(C=1 / (l2 * inside.sum()), tol=1e-10, max_iter=20000)
    wanted = theirs.fit(z[inside], labels[inside]).decision_function(z[~inside])
    assert np.allclose(centred(logits[~inside]), centred(wanted), atol=2e-3)


def test_the_path_ends_where_the_loss_has_risen_for_three_strengths() -> None:
    features, labels = blobs(60, 30, 3, apart=0.3)
    losses = [row.cv_loss for row in logistic.solve(rows(features, labels)).path]
    assert len(losses) < len(logistic.STRENGTHS)
    assert int(np.argmin(losses)) == len(losses) - 4


def test_the_path_goes_on_while_the_weakest_penalty_is_the_best() -> None:
    features, labels = blobs(60, 4, 2, apart=12.0)
    path = logistic.solve(rows(features, labels)).path
    assert path[-1].l2 < logistic.STRENGTHS[-1]


def test_a_path_takes_far_fewer_steps_than_from_each_solution_to_the_next() -> None:
    given = rows(*blobs(120, 60, 4, apart=4.0))
    path, problem = logistic.solve(given).path, logistic.Problem(given)
    theirs, starts = 0, dict.fromkeys([*range(5), None])
    for strength in path:
        for fold, start in starts.items():
            starts[fold], steps = problem.minimum(strength.l2, fold, start)
            theirs += steps
        assert np.allclose(problem.head(starts[None])[0], strength.weight, atol=1e-3)
    assert path[-1].l2 < 1e-6
    assert sum(strength.steps for strength in path) < 0.75 * theirs


@pytest.mark.parametrize("path", [logistic.STRENGTHS, (1e-6,)])
def test_few_images_that_are_told_apart_are_answered_by_fits_that_have_not_seen_them(path) -> None:
    features, labels = blobs(30, 60, 3, apart=8.0)
    given = rows(features, labels)
    solution = logistic.solve(given, path)
    l2 = solution.path[solution.best].l2
    assert l2 < 1e-5  # whose gradients are small wherever they are looked at
    logits, fold_of = logistic.held_out(given, solution, 0)
    inside, z = fold_of != 0, standardised(features)
    theirs = LogisticRegression(C=1 / (l2 * inside.sum()), tol=1e-13, max_iter=100_000)
    wanted = theirs.fit(z[inside], labels[inside]).decision_function(z[~inside])
    assert np.allclose(centred(logits[~inside]), centred(wanted), rtol=0.02, atol=0.05)


def test_blocks_from_disk_in_single_precision_come_to_the_same(tmp_path, monkeypatch) -> None:
    features, labels = blobs(300, 20, 3)
    whole = logistic.solve(rows(features, labels), (0.1, 0.01))
    np.save(tmp_path / "a.npy", features)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    monkeypatch.setattr("xfer.training.principal_axes._IN_MEMORY", 0)
    monkeypatch.setattr(feature_moments, "_BLOCK", 20 * 64)
    streamed = logistic.solve(rows(mapped, labels), (0.1, 0.01))
    assert logistic.Problem(rows(mapped, labels)).whole is None
    for ours, theirs in zip(whole.path, streamed.path, strict=True):
        assert theirs.cv_loss == pytest.approx(ours.cv_loss, rel=1e-3)


def test_folds_are_stratified_and_a_class_alone_is_never_held_out() -> None:
    labels = np.array([0] * 23 + [1] * 11 + [2] * 3 + [3])
    found = logistic.folds(labels, 5, 0)
    assert found[labels == 3].tolist() == [-1]
    for label, count in ((0, 23), (1, 11), (2, 3)):
        sizes = np.bincount(found[labels == label], minlength=5)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(found[found >= 0], minlength=5)) <= 1
    assert not (found == logistic.folds(labels, 5, 1)).all()


def test_constant_features_leave_the_shares_of_the_classes() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    row = logistic.solve(rows(np.ones((40, 5), np.float32), labels), (0.1,)).path[0]
    assert not row.weight.any()
    odds = np.exp(row.bias - row.bias.max())
    assert odds / odds.sum() == pytest.approx([0.75, 0.25], abs=1e-4)


def test_more_classes_than_images_of_most_of_them() -> None:
    features, _ = blobs(12, 30, 3)
    labels = np.arange(12) % 10
    found = logistic.solve(rows(features, labels))
    assert np.isfinite(found.path[found.best].weight).all()
    assert np.isnan(found.held_out).any(axis=1).sum() == 8


def test_views_share_the_weight_of_their_image_and_the_evaluation_view_judges() -> None:
    features, labels = blobs(60, 12, 3)
    same = rows(features, labels)
    twice = logistic.TrainingRows(
        [features, features], features, labels, same.weights, same.class_weights, 0.0, same.folds
    )
    one, two = logistic.solve(same, (0.1,)).path[0], logistic.solve(twice, (0.1,)).path[0]
    assert two.cv_loss == pytest.approx(one.cv_loss, rel=1e-5)
    assert np.allclose(one.weight, two.weight, atol=1e-5)


def test_it_is_the_same_every_time() -> None:
    features, labels = blobs(60, 100, 3)
    a, b = (logistic.solve(rows(features, labels)) for _ in range(2))
    assert a.best == b.best
    assert all((x.weight == y.weight).all() for x, y in zip(a.path, b.path, strict=True))


def test_a_small_problem_is_solved_on_one_thread_of_every_blas() -> None:
    """SciPy brings a BLAS of its own, which only a process shows that has not loaded it before."""
    code = """
import numpy as np, sys
from threadpoolctl import threadpool_info
from xfer.training import logistic
assert "scipy.optimize" not in sys.modules
threads, loss = set(), logistic.Problem.loss
def watched(*given):
    threads.update((i["filepath"], i["num_threads"]) for i in threadpool_info()
                   if i["user_api"] == "blas")
    return loss(*given)
logistic.Problem.loss = watched
labels = np.arange(40) % 2
x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
folds = logistic.folds(labels, 5, 0)
logistic.solve(logistic.TrainingRows([x], x, labels, np.ones(40), np.ones(2), 0.0, folds), (1.0,))
assert any("scipy" in path for path, _ in threads), threads
print(sorted(n for _, n in threads))
"""
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code], env=two, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout)) == {1}
