"""Which of several labels are accused: against refits, and against what was really wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from xfer.evaluation.leave_one_out import coordinates
from xfer.evaluation.multilabel_leave_one_out import known_alike, labels_left_out
from xfer.evaluation.multilabel_wrong_labels import JudgedLabels, judge_labels

SHARES = np.array([0.5, 0.3, 0.08, 0.2])
"""How many images have each label."""


def drawn(count: int = 400, apart: float = 3.0, seed: int = 0):
    """Features in which each label has a direction, and what is true of every image."""
    draw = np.random.default_rng(seed)
    true = (draw.random((count, len(SHARES))) < SHARES).astype(np.int64)
    features = draw.normal(size=(count, 16)) + apart * true @ np.eye(len(SHARES), 16)
    return features.astype(np.float32), true


def spoiled(true, invented: float, forgotten: float, unknown: float, seed: int):
    """The labels with some that are wrong and some that are unknown, and which are wrong."""
    draw = np.random.default_rng(100 + seed)
    wrong = draw.random(true.shape) < np.where(true == 1, forgotten, invented)
    masked = draw.random(true.shape) < unknown
    labels = np.where(masked, -1, np.where(wrong, 1 - true, true))
    return labels, wrong & ~masked


def judged_of(features, labels) -> JudgedLabels:
    return judge_labels(labels_left_out(coordinates(features), labels).held_out, labels)


@pytest.mark.parametrize(("width", "shared"), [(8, 0), (90, 0), (8, 3)], ids=str)
def test_every_image_left_out_equals_a_fit_of_the_images_whose_label_is_known(
    width: int, shared: int
) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(40, width)).astype(np.float32)
    labels = draw.integers(0, 2, (40, 4))
    labels[::3, 1] = labels[::5, 3] = -1
    features[:, -1] *= 5
    found = labels_left_out(coordinates(features, shared), labels)
    cuts, moved = np.array([0.5, 0.4, 0.6, 0.5]), np.zeros((40, 40), bool)
    for label in range(4):
        known = np.flatnonzero(labels[:, label] >= 0)
        z = features[known].astype(np.float64)
        z, y, std = z - z.mean(axis=0), labels[known, label], z.std(axis=0)
        if shared:
            std[-shared:] = np.sqrt((std[-shared:] ** 2).mean() / 0.5)
        z /= std
        fit = Ridge(found.penalties[label], solver="cholesky")
        before = fit.fit(z, y).predict(z)
        for at, image in enumerate(known):
            left = np.arange(len(y)) != at
            after = fit.fit(z[left], y[left]).predict(z)
            assert found.held_out[image, label] == pytest.approx(after[at], abs=1e-9)
            effect = np.sqrt(((after - before) ** 2).mean())
            assert found.effects[image, label] == pytest.approx(effect, abs=1e-9)
            otherwise = (after >= cuts[label]) != (before >= cuts[label])
            moved[image, known[left]] |= otherwise[left]
    unknown = labels < 0
    assert not found.held_out[unknown].any() and not found.effects[unknown].any()
    assert found.effect == pytest.approx(np.sqrt((found.effects**2).sum(axis=1)))
    assert found.changed(range(40), cuts) == moved.sum(axis=1).tolist()
    assert moved.any(), "nothing moves, so that nothing was compared"


def test_labels_known_of_the_same_images_take_one_decomposition_and_what_moves_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(60, 8)).astype(np.float32)
    labels = draw.integers(0, 2, (60, 7))
    labels[::3, 1:3] = labels[::5, 3:5] = -1
    at, taken, decompose = coordinates(features), [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: taken.append(len(a)) or decompose(a))
    found = labels_left_out(at, labels)
    assert len(taken) == 2, "that of all images is in the coordinates"
    assert found.changed([3, 4, 7], np.full(7, 0.5)) and len(taken) == 2
    assert [columns.tolist() for columns, _ in known_alike(labels)] == [[0, 5, 6], [1, 2], [3, 4]]


def test_wrong_labels_of_both_kinds_come_first_and_unknown_ones_are_never_accused() -> None:
    features, true = drawn(apart=6.0)
    labels, wrong = spoiled(true, 0.02, 0.2, 0.2, 0)
    judged = judged_of(features, labels)
    ranked = np.argsort(-judged.wrong, axis=None)[: wrong.sum()]
    assert wrong.ravel()[ranked].mean() > 0.9
    assert not judged.wrong[labels < 0].any() and not judged.has[labels < 0].any()
    accused = np.array(judged.pairs)
    assert set(labels[tuple(accused.T)]) == {0, 1}, "both kinds"
    some = judged.suggested != labels
    assert sorted(map(tuple, np.argwhere(some))) == sorted(judged.pairs)
    assert (judged.suggested[wrong] == true[wrong]).mean() > 0.9


@pytest.mark.parametrize(("invented", "forgotten"), [(0.05, 0.05), (0.0, 0.2), (0.02, 0.1)])
def test_the_stated_rates_are_the_true_ones(invented: float, forgotten: float) -> None:
    stated, false = [], []
    for seed in range(2):
        features, true = drawn(1500, seed=seed)
        labels, wrong = spoiled(true, invented, forgotten, 0.1, seed)
        judged = judged_of(features, labels)
        stated.append(judged.rates[-1])
        false.append(1 - wrong[tuple(np.array(judged.pairs).T)].mean())
    assert np.mean(stated) == pytest.approx(np.mean(false), abs=0.08)


def test_a_label_that_is_forgotten_of_a_rare_class_is_noticed() -> None:
    """Half a rare label's images lack it: with one rate for both kinds of mistake none would be
    accused, for of all images hardly any is wrong."""
    features, true = drawn(800, apart=6.0)
    labels = true.copy()
    rare = np.flatnonzero(true[:, 2])[::3]
    labels[rare, 2] = 0
    judged = judged_of(features, labels)
    assert (judged.wrong[rare, 2] > 0.5).mean() > 0.8
    assert len(judged.pairs) < 1.5 * len(rare)


def test_labels_without_a_mistake_are_hardly_accused() -> None:
    pairs = [judged_of(*drawn(apart=4.0, seed=seed)).pairs for seed in range(3)]
    assert np.mean([len(some) for some in pairs]) < 4  # of 1,600


def test_a_label_that_the_features_do_not_tell_is_not_judged() -> None:
    features, true = drawn(apart=5.0)
    labels = np.column_stack([true, np.random.default_rng(5).permutation(true[:, 1])])
    judged = judged_of(features, labels)
    assert judged.blind == (4,) and not judged.wrong[:, 4].any()
    assert judged.wrong[:, :4].any() and np.isinf(judged.cuts[4])
    alone = np.zeros((400, 1), np.int64)
    alone[7] = 1
    assert judged_of(features, alone).blind == (0,), "one image says nothing of a label"


def test_the_list_goes_over_all_labels_together() -> None:
    features, true = drawn(apart=3.0)
    labels, _ = spoiled(true, 0.05, 0.05, 0.1, 0)
    judged = judged_of(features, labels)
    wrong = np.array([judged.wrong[pair] for pair in judged.pairs])
    assert (np.diff(wrong) <= 0).all() and len({label for _, label in judged.pairs}) > 2
    for length in (1, 5, len(wrong)):
        assert judged.rates[length - 1] == pytest.approx(1 - wrong[:length].mean())
    image = judged.accused[0]
    assert judged.p_wrong[image] == wrong[0] and judged.fdr[image] == judged.rates[0]
