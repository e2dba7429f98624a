"""Temperature and vector scaling against other optimisers, and on images that defeat them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from xfer.evaluation import calibration, metrics
from xfer.evaluation.calibration import Scaling
from xfer.training.logistic import folds

NAMES = ("a", "b", "c", "d")


def made_up(n: int, seed: int = 0, heat: float = 3.0, classes: int = 4):
    """Logits that are ``heat`` times as large as they should be, and labels drawn from what they
    should be."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, classes))
    share = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in share])
    return (heat * true).astype(np.float32), labels


def targets(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Platt's, written down a second time."""
    n = len(labels)
    rest = 1 / (n + 2) / (classes - 1)
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).double() * (
        (n + 1) / (n + 2) - rest
    ) + rest  # fmt: skip


def test_the_temperature_is_that_of_another_optimiser() -> None:
    for seed, heat in ((0, 3.0), (1, 0.2), (2, 1.0)):
        logits, labels = made_up(300, seed, heat)
        z, wanted = torch.tensor(logits).double(), targets(labels, 4)

        def loss(log: float, z=z, wanted=wanted) -> float:
            return float(torch.nn.functional.cross_entropy(z / math.exp(log), wanted))

        theirs = math.exp(minimize_scalar(loss, bracket=(-1, 1), tol=1e-12).x)
        ours = 1 / calibration.fit_temperature(logits, labels).scale[0]
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert ours == pytest.approx(heat, rel=0.25)  # and so it is what was put in


def test_vector_scaling_is_that_of_torch_and_takes_a_shift_back() -> None:
    logits, labels = made_up(400)
    logits[:, 2] += 2.0
    found = calibration.fit_vector(logits, labels)
    z, wanted = torch.tensor(logits).double(), targets(labels, 4)
    scale = torch.ones(4, dtype=torch.double, requires_grad=True)
    shift = torch.zeros(4, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [scale, shift], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(z * scale + shift, wanted)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert found.scale == pytest.approx(scale.detach().numpy(), rel=1e-3)
    centred = (shift - shift.mean()).detach().numpy()
    assert found.shift == pytest.approx(centred, abs=2e-3)
    assert found.shift[2] < found.shift.min() + 1e-9 and abs(found.shift.sum()) < 1e-9


def test_auto_takes_the_vector_where_it_wins_and_may() -> None:
    logits, labels = made_up(400)
    fold_of = folds(labels, 5, 0)
    assert calibration.calibrate(logits, labels, fold_of, "auto", NAMES).scaling.method == (
        "temperature"
    )
    logits[:, 2] += 2.0
    given = (logits, labels, fold_of, "auto", NAMES)
    assert calibration.calibrate(*given).scaling.method == "vector"
    assert calibration.calibrate(*given, may_shift=False).scaling.method == "temperature"
    few = np.flatnonzero(labels == 3)[9:]  # nine images of a class are left
    left = np.setdiff1d(np.arange(400), few)
    found = calibration.calibrate(logits[left], labels[left], fold_of[left], "auto", NAMES)
    assert found.scaling.method == "temperature"


def test_no_image_is_scaled_by_what_was_fitted_on_it() -> None:
    logits, labels = made_up(100)
    fold_of = folds(labels, 5, 0)
    fits = calibration.fit_temperature, calibration.fit_vector
    for fit in fits:
        found = calibration.cross_fitted(logits, labels, fold_of, fit)
        for fold in range(5):
            others = fold_of != fold
            scaling = fit(logits[others], labels[others])
            np.testing.assert_array_equal(found[~others], scaling.of(logits[~others]))
        # Its own label is of no account to it.
        swapped = labels.copy()
        swapped[7] = (labels[7] + 1) % 4
        again = calibration.cross_fitted(logits, swapped, fold_of, fit)
        np.testing.assert_array_equal(again[7], found[7])
    facts = calibration.calibrate(logits, labels, fold_of, "temperature", NAMES).facts
    cross = calibration.cross_fitted(logits, labels, fold_of, calibration.fit_temperature)
    expected = metrics.values(cross, labels)
    assert facts["after"] == pytest.approx({k: expected[k] for k in ("ece", "loss")})
    before = metrics.values(logits, labels)
    assert facts["before"] == pytest.approx({k: before[k] for k in ("ece", "loss")})


def test_it_calibrates_images_that_it_has_not_seen() -> None:
    logits, labels = made_up(20_000, heat=3.0)
    scaling = calibration.fit_temperature(logits[:400], labels[:400])
    unseen = logits[400:], labels[400:]
    assert calibration.ece(*unseen) > 0.2
    assert calibration.ece(scaling.of(unseen[0]), unseen[1]) < 0.03


@pytest.mark.parametrize("n", [1, 3, 10, 40])
def test_images_that_are_all_right_ask_for_no_certainty(n: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    logits = np.where(np.eye(2)[labels] > 0, 1.0, -1.0) * rng.uniform(0.5, 1, (n, 1))
    scaling = calibration.fit_temperature(logits, labels)
    sure = np.exp(scaling.of(logits)).max(axis=1) / np.exp(scaling.of(logits)).sum(axis=1)
    assert sure.mean() == pytest.approx((n + 1) / (n + 2), abs=0.06)
    if n >= 10:
        made = calibration.calibrate(logits, labels, folds(labels, 5, 0), "temperature", ("a", "b"))
        (line,) = made.facts["warnings"]
        assert f"all {n} answers" in line and f"one mistake in {n + 2} is assumed" in line


def test_logits_that_know_nothing_end_at_the_limit_with_a_warning() -> None:
    labels = made_up(200)[1]
    wrong = (labels + 1) % 4
    made = calibration.calibrate(
        10 * np.eye(4)[labels], wrong, folds(labels, 5, 0), "temperature", NAMES
    )
    assert made.facts["temperature"] == pytest.approx(calibration.HIGHEST)
    assert any("ended at the limit" in line for line in made.facts["warnings"])
    same = calibration.fit_temperature(np.zeros((20, 4)), labels[:20])
    assert same.scale[0] == 1 and not same.ended


def test_a_class_without_an_image_is_named() -> None:
    logits, labels = made_up(200)
    labels = np.where(labels == 3, 0, labels)
    for method in ("temperature", "vector"):
        made = calibration.calibrate(logits, labels, folds(labels, 5, 0), method, NAMES)
        assert any("without an image of d" in line for line in made.facts["warnings"])
        assert np.isfinite(made.scaling.of(logits)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    logits, labels = made_up(20)
    logits[3, 1] = bad
    for fit in (calibration.fit_temperature, calibration.fit_vector):
        with pytest.raises(ValueError, match="finite"):
            fit(logits, labels)
    with pytest.raises(ValueError, match="must be there"):
        calibration.fit_temperature(np.empty((0, 4)), np.empty(0, int))


def test_huge_logits_are_no_trouble() -> None:
    logits, labels = made_up(200)
    found = calibration.fit_temperature(1e4 * logits, labels)
    assert found.ended and np.isfinite(calibration.log_losses(found.of(logits), labels)).all()
    tiny = calibration.fit_vector(1e-6 * logits.astype(np.float64), labels)
    assert np.isfinite(tiny.of(logits)).all()


def test_the_error_by_chance_is_that_of_perfect_answers() -> None:
    """What is drawn from its probabilities has just this error, and the fewer the more."""
    errors = []
    for seed in range(60):
        logits, labels = made_up(150, seed, heat=1.0)
        errors.append(calibration.ece(logits, labels))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = calibration.ece_by_chance(shares.max(axis=1).astype(np.float64))
    assert expected == pytest.approx(np.mean(errors), rel=0.15)
    assert expected == calibration.ece_by_chance(shares.max(axis=1).astype(np.float64))
    many = np.repeat(shares.max(axis=1), 30).astype(np.float64)
    assert calibration.ece_by_chance(many) < expected / 4
    assert calibration.ece_by_chance(np.ones(50)) == 0


def test_scaling_is_undone_and_read_back() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (7, 4))
    for scaling in (
        Scaling("temperature", np.full(4, 1 / 1.7), np.zeros(4)),
        Scaling("vector", rng.uniform(0.5, 2, 4), rng.normal(0, 1, 4)),
    ):
        np.testing.assert_allclose(scaling.undone(scaling.of(logits)), logits)
        again = calibration.scaling_of(scaling.to_plain(), 4)
        np.testing.assert_allclose(again.of(logits), scaling.of(logits))
