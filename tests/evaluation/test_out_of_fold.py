"""The score of a cross-validation: its table, its numbers, and an interval that covers."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, recall_score

from xfer.evaluation.out_of_fold import OutOfFold, in_words
from xfer.evaluation.statistics import resampled, wilson


def answered(repeats: int = 3, n: int = 60, folds: int = 5, seed: int = 0, **more) -> OutOfFold:
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, 3, n)
    logits = drawn.normal(size=(repeats, n, 3)).astype(np.float32)
    logits[:, np.arange(n), labels] += 2
    parts = np.array([drawn.permutation(np.arange(n) % folds) for _ in range(repeats)])
    names = tuple(f"c/{i:02d}.png" for i in range(n))
    return OutOfFold(names, logits, labels, parts, ("=a", "b", "c"), **more)


def test_the_table_has_a_row_an_image_and_repeat(tmp_path: Path) -> None:
    held_out = answered()
    held_out.write(tmp_path / "predictions_oof.csv")
    with (tmp_path / "predictions_oof.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:6] == "path repeat fold label prediction confidence".split()
    assert list(rows[0])[6:] == ["p_'=a", "p_b", "p_c"]
    assert len(rows) == 180
    for i in (0, 59, 60, 179):
        repeat, image = divmod(i, 60)
        assert rows[i]["path"] == held_out.names[image]
        assert int(rows[i]["repeat"]) == repeat
        assert int(rows[i]["fold"]) == held_out.folds[repeat, image]
        given = [float(rows[i][key]) for key in ("p_'=a", "p_b", "p_c")]
        odds = np.exp(held_out.logits[repeat, image].astype(float))
        assert given == pytest.approx((odds / odds.sum()).tolist(), abs=1e-6)


def test_every_number_is_that_of_scikit_learn_over_all_rows() -> None:
    held_out = answered()
    facts = held_out.facts()
    labels = np.tile(held_out.labels, 3)
    z = held_out.logits.reshape(-1, 3).astype(float)
    odds = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    chosen = z.argmax(axis=1)
    assert (facts["folds"], facts["repeats"], facts["n"]) == (5, 3, 60)
    assert facts["acc"] == pytest.approx(accuracy_score(labels, chosen))
    assert facts["loss"] == pytest.approx(log_loss(labels, odds))
    recalls = [facts["per_class"][name]["recall"] for name in ("=a", "b", "c")]
    assert recalls == pytest.approx(recall_score(labels, chosen, average=None).tolist())
    assert sum(row["n"] for row in facts["per_class"].values()) == 60
    assert len(facts["per_fold"]) == 15
    assert {(row["repeat"], row["fold"]) for row in facts["per_fold"]} == {
        (i, k) for i in range(3) for k in range(5)
    }
    mean = np.average(
        [r["acc"] for r in facts["per_fold"]], weights=[r["n"] for r in facts["per_fold"]]
    )
    assert mean == pytest.approx(facts["acc"])
    assert in_words(facts).startswith(f"{facts['acc']:.4f} (60 images in 5 folds, 3 times; 95 %")


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    low, high = resampled(0.8, 100, 5, 3)
    test, train = 20, 80
    half = 1.959963984540054 * math.sqrt((1 / 15 + test / train) * 0.8 * 0.2 / test)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half))
    once, often = resampled(0.8, 100, 5, 1), resampled(0.8, 100, 5, 50)
    assert once[0] < low < often[0] and once[1] > high > often[1], "repeats narrow it"
    bare = wilson(80, 100)
    assert often[0] <= bare[0] and often[1] > bare[1], "but never to that of more images"


@pytest.mark.parametrize("share", [0.0, 0.005, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("n", [4, 20, 5000])
def test_the_interval_never_leaves_0_to_1_and_is_never_empty(share: float, n: int) -> None:
    for by_group in ((), (0.0, 1.0)):
        low, high = resampled(share, n, 2, 1, by_group)
        assert 0 <= low <= share <= high <= 1 and high > low


def test_groups_that_differ_widen_it() -> None:
    from scipy.stats import t

    spread = [1.0, 1.0, 0.2, 1.0, 0.8]
    low, high = resampled(0.8, 1000, 5, 1, spread)
    assert low < resampled(0.8, 1000, 5, 1)[0] - 0.3 and high == 1.0
    variance = np.var(spread, ddof=1)
    half = t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1 / 4) * variance)
    assert low == pytest.approx(max(0.0, 0.8 - half))
    assert resampled(0.8, 1000, 5, 1, [0.8, 0.8, 0.81, 0.79, 0.8]) == resampled(0.8, 1000, 5, 1)


@pytest.mark.parametrize("repeats", [1, 3])
def test_it_covers_the_accuracy_of_a_classifier_whose_truth_is_known(repeats: int) -> None:
    """The mean of two normal classes estimated from 30 images: the truth is a formula."""
    from scipy.stats import norm

    covered = 0
    for seed in range(400):
        drawn = np.random.default_rng(seed)
        labels = np.arange(30) % 2
        x = drawn.normal(labels * 1.5, 1.0)

        def cut(train: np.ndarray, x=x, labels=labels) -> float:
            return float((x[train & (labels == 0)].mean() + x[train & (labels == 1)].mean()) / 2)

        right = []
        for _ in range(repeats):
            fold = np.empty(30, int)
            for label in (0, 1):
                fold[labels == label] = drawn.permutation(np.arange(15) % 5)
            for k in range(5):
                held = fold == k
                right += ((x[held] > cut(~held)) == labels[held]).tolist()
        whole = cut(np.ones(30, bool))
        truth = (norm.cdf(whole) + 1 - norm.cdf(whole - 1.5)) / 2
        low, high = resampled(float(np.mean(right)), 30, 5, repeats)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.995
