"""Statistics of several labels an image, against scikit-learn, scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import average_precision_score

from xfer.core.probabilities import sigmoid
from xfer.evaluation.calibration import calibrate, fit_temperature, fit_vector
from xfer.evaluation.multilabel_bootstrap import map_gap, mean_ap
from xfer.evaluation.multilabel_metrics import (
    LabelAnswers,
    best_thresholds,
    class_gaps,
    label_score,
    values_of,
)
from xfer.evaluation.multilabel_predictions import mean_of_labels
from xfer.evaluation.out_of_fold import LabelOutOfFold
from xfer.evaluation.statistics import resampled_t

Drawn = tuple[np.ndarray, np.ndarray]


def drawn(n: int = 300, classes: int = 7, seed: int = 0, sharp: float = 3.0) -> Drawn:
    """Logits that are ``sharp`` times too far apart, and labels of which a tenth is unknown."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, 1.2, (n, classes))
    labels = (rng.random((n, classes)) < sigmoid(z)).astype(np.int64)
    labels[rng.random((n, classes)) < 0.1] = -1
    return sharp * z, labels


def test_hits_count_images_whose_most_probable_labels_hold_one_that_they_have() -> None:
    logits, labels = drawn()
    labels[:9] = np.where(labels[:9] < 0, -1, 0)
    found = values_of(LabelAnswers(logits, labels, logits >= 0))
    for k in (1, 5):
        hits = []
        for z, y in zip(logits, labels, strict=True):
            if (y == 1).any():
                ranked = sorted((c for c in range(7) if y[c] >= 0), key=lambda c: -z[c])
                hits.append(any(y[c] == 1 for c in ranked[:k]))
        assert found[f"hit{k}"] == pytest.approx(np.mean(hits), abs=1e-12) and len(hits) < 300
    assert found["hit1"] < found["hit5"]
    few = values_of(LabelAnswers(logits[:, :5], labels[:, :5], logits[:, :5] >= 0))
    assert "hit5" not in few and "hit1" in few


def test_the_calibration_error_of_a_class_is_that_of_its_known_labels_in_15_bins() -> None:
    logits, labels = drawn()
    gaps = class_gaps(logits, labels)
    for c in range(7):
        known = labels[:, c] >= 0
        p, yes = sigmoid(logits[known, c]), labels[known, c] == 1
        gap = 0.0
        for b in range(15):
            inside = (p >= b / 15) & ((p < (b + 1) / 15) | (b == 14))
            gap += abs(yes[inside].sum() - p[inside].sum())
        assert gaps[c] == pytest.approx(gap / known.sum(), abs=1e-12)
    cuts = np.full(7, 0.5)
    score = label_score(logits, labels, tuple("abcdefg"), cuts, "given", False)
    assert score.ece == pytest.approx(gaps.mean()) and score.per_class["b"]["ece"] == gaps[1]


def nll(z: np.ndarray, labels: np.ndarray) -> float:
    """The mean binary cross-entropy with Platt's targets, of the known labels."""
    x, y = z[labels >= 0], labels[labels >= 0]
    has, lacks = (y == 1).sum(), (y == 0).sum()
    target = np.where(y == 1, (has + 1) / (has + 2), 1 / (lacks + 2))
    p = 1 / (1 + np.exp(-x))
    return -float((target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def test_the_temperature_is_that_of_a_search_and_undoes_what_made_logits_too_sure() -> None:
    logits, labels = drawn(2000)
    found = fit_temperature(logits, labels)
    theirs = optimize.minimize_scalar(lambda t: nll(logits / t, labels), bounds=(0.1, 20))
    assert 1 / found.scale[0] == pytest.approx(theirs.x, rel=1e-4)
    assert 1 / found.scale[0] == pytest.approx(3, rel=0.1) and (found.shift == 0).all()
    moved = logits.copy()
    moved[labels < 0] = np.nan  # what is unknown has no part, nor has what no fold held out
    assert fit_temperature(moved, labels).scale[0] == pytest.approx(found.scale[0])


def test_the_vector_is_platts_scaling_of_each_class() -> None:
    logits, labels = drawn(400, 3)
    logits[:, 1] += 2
    found = fit_vector(logits, labels)
    for c in range(3):
        one, y = logits[:, [c]], labels[:, [c]]
        theirs = optimize.minimize(lambda v, one=one, y=y: nll(v[0] * one + v[1], y), [1.0, 0.0])
        assert found.scale[c] == pytest.approx(theirs.x[0], abs=1e-4)
        assert found.shift[c] == pytest.approx(theirs.x[1], abs=1e-4)
    assert found.shift[1] < found.shift[0]


def test_a_calibration_is_judged_on_images_that_it_is_not_fitted_on() -> None:
    logits, labels = drawn(500, 4)
    folds = np.arange(500) % 5
    made = calibrate(logits, labels, folds, "temperature", tuple("abcd"))
    scaled = np.empty_like(logits)
    for k in range(5):
        fitted = fit_temperature(logits[folds != k], labels[folds != k])
        scaled[folds == k] = fitted.of(logits[folds == k])
    facts = made.facts
    assert facts["after"]["ece"] == pytest.approx(class_gaps(scaled, labels).mean())
    assert facts["before"]["ece"] == pytest.approx(class_gaps(logits, labels).mean())
    assert facts["after"]["ece"] < facts["before"]["ece"] / 2
    assert facts["per_class"]["c"]["after"] == pytest.approx(class_gaps(scaled, labels)[2])
    assert facts["after"]["loss"] < facts["before"]["loss"] and facts["warnings"] == []


def test_auto_shifts_classes_where_that_is_better() -> None:
    logits, labels = drawn(600, 4, sharp=1.0)
    folds, names = np.arange(600) % 5, tuple("abcd")
    assert calibrate(logits, labels, folds, "auto", names).scaling.method == "temperature"
    logits[:, 0] += 2
    assert calibrate(logits, labels, folds, "auto", names).scaling.method == "vector"
    told = calibrate(logits, labels, folds, "auto", names, may_shift=False)
    assert told.scaling.method == "temperature"


def test_mean_ap_of_weighted_images_is_scikit_learns() -> None:
    logits, labels = drawn(80, 3)
    logits = np.round(logits)  # equal answers are one threshold
    weights = np.random.default_rng(1).multinomial(80, np.full(80, 1 / 80), size=6).astype(float)
    found = mean_ap(weights, logits, labels)
    for i, weight in enumerate(weights):
        each = []
        for c in range(3):
            known = labels[:, c] >= 0
            truth, z = labels[known, c] == 1, logits[known, c]
            each.append(average_precision_score(truth, z, sample_weight=weight[known]))
        assert found[i] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_paired_bootstrap_is_that_of_drawing_images() -> None:
    logits, labels = drawn(150, 2)
    worse = logits + np.random.default_rng(2).normal(0, 3, logits.shape)
    found = map_gap(labels, logits, worse)
    assert found is not None and found.drawn == 1000

    def of(answers: np.ndarray, at: np.ndarray) -> float:
        each = []
        for c in range(2):
            known = at[labels[at, c] >= 0]
            each.append(average_precision_score(labels[known, c] == 1, answers[known, c]))
        return float(np.mean(each))

    every, rng = np.arange(150), np.random.default_rng(3)
    assert found.gap == pytest.approx(of(logits, every) - of(worse, every), abs=1e-12)
    draws = [rng.integers(0, 150, 150) for _ in range(300)]
    low, high = np.percentile([of(logits, at) - of(worse, at) for at in draws], [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)
    assert 0 < found.low < found.gap < found.high
    assert map_gap(np.zeros((5, 1), np.int64), np.zeros((5, 1)), np.zeros((5, 1))) is None


def test_the_interval_of_folds_is_the_corrected_resampled_t() -> None:
    values = [0.81, 0.84, 0.79, 0.9, 0.83, 0.8]  # two cross-validations of three folds
    low, high = resampled_t(0.83, values, 3) or (0.0, 0.0)
    half = stats.t.ppf(0.975, 5) * np.sqrt((1 / 6 + 1 / 2) * np.var(values, ddof=1))
    assert (low, high) == (pytest.approx(0.83 - half), pytest.approx(min(1, 0.83 + half)))
    assert resampled_t(0.5, [0.5], 2) is None
    assert resampled_t(0.99, [0.99, 0.5, 0.9], 3) == (pytest.approx(0.0, abs=0.5), 1.0)


def pooled(given: float | None = None) -> tuple[LabelOutOfFold, Drawn, np.ndarray]:
    logits, labels = drawn(120, 3)
    folds = np.stack([np.arange(120) % 3, np.random.default_rng(0).permutation(120) % 3])
    both = np.stack([logits, logits + 0.3]).astype(np.float32)
    names = tuple(f"{i}.png" for i in range(120))
    made = LabelOutOfFold(names, both, labels, folds, ("a", "b", "c"), given=given)
    return made, (both, labels), folds


def test_the_thresholds_of_a_fold_are_chosen_on_the_others() -> None:
    made, (logits, labels), folds = pooled()
    for repeat in range(2):
        for k in range(3):
            inside = folds[repeat] == k
            cuts = best_thresholds(logits[repeat, ~inside], labels[~inside])
            shares = sigmoid(logits[repeat, inside].astype(np.float64))
            assert (made.said[repeat, inside] == (shares >= cuts)).all()
    assert (pooled(0.4)[0].said == (sigmoid(logits.astype(np.float64)) >= 0.4)).all()


def test_map_is_the_mean_over_folds_and_f1_that_of_all_labels_together() -> None:
    made, (logits, labels), folds = pooled()
    facts, each = made.facts({}), []
    f1s: list[list[float]] = [[], [], []]
    for repeat in range(2):
        for k in range(3):
            inside, areas = folds[repeat] == k, []
            for c in range(3):
                known = inside & (labels[:, c] >= 0)
                truth, said = labels[known, c] == 1, made.said[repeat, known, c]
                areas.append(average_precision_score(truth, logits[repeat, known, c]))
                f1s[c].append(2 * (truth & said).sum() / (truth.sum() + said.sum()))
            each.append(np.mean(areas))
    assert facts["map"] == pytest.approx(np.mean(each), abs=1e-9)
    half = stats.t.ppf(0.975, 5) * np.sqrt((1 / 6 + 1 / 2) * np.var(each, ddof=1))
    ends = (max(0.0, facts["map"] - half), min(1.0, facts["map"] + half))
    assert facts["map_ci95"] == pytest.approx(ends)
    said, truth = made.said.reshape(240, 3), np.tile(labels, (2, 1))
    for c, name in enumerate("abc"):
        known, row = truth[:, c] >= 0, facts["per_class"][name]
        hits = (said[known, c] & (truth[known, c] == 1)).sum()
        f1 = 2 * hits / (said[known, c].sum() + (truth[known, c] == 1).sum())
        assert row["f1"] == pytest.approx(f1)
        reach = stats.t.ppf(0.975, 5) * np.sqrt((1 / 6 + 1 / 2) * np.var(f1s[c], ddof=1))
        assert row["f1_ci95"][0] == pytest.approx(max(0, f1 - reach))
    assert (facts["folds"], facts["repeats"], facts["n"]) == (3, 2, 120)
    assert [row["map"] for row in facts["per_fold"]] == pytest.approx(each)


def test_the_mean_over_views_is_that_of_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 6, (7, 5, 4)).astype(np.float32)
    found = sigmoid(mean_of_labels(logits).astype(np.float64))
    np.testing.assert_allclose(found, sigmoid(logits.astype(np.float64)).mean(1), atol=1e-6)
    assert np.abs(found - sigmoid(logits.astype(np.float64).mean(1))).max() > 0.05
    far = np.array([[[-900.0, 900.0], [-1000.0, 990.0]]], np.float32)
    np.testing.assert_allclose(
        mean_of_labels(far), [[-900 - np.log(2), 900 + np.log(2)]], rtol=1e-6
    )
    far[0, 0, 0] = np.nan
    assert np.isnan(mean_of_labels(far)).all()
