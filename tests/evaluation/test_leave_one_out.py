"""The regression without each image: equal to fits that never had it, wherever it is called for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from xfer.evaluation import leave_one_out as module
from xfer.evaluation.leave_one_out import coordinates, leave_one_out, without_some


def drawn(count: int, width: int, classes: int = 3, seed: int = 0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    features = draw.normal(size=(count, width)) + draw.normal(size=(classes, width))[labels]
    return features.astype(np.float32), labels


def refitted(features, labels, image: int, penalty: float, classes: int):
    """scikit-learn's ridge regression without an image, on features standardised with it."""
    z = features.astype(np.float64)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    left = np.arange(len(z)) != image
    fit = Ridge(alpha=penalty, solver="cholesky").fit(z[left], np.eye(classes)[labels[left]])
    return fit.predict(z)


@pytest.mark.parametrize("shape", [(60, 8), (40, 200)], ids=["tall", "wide"])
def test_every_image_left_out_equals_a_fit_without_it(shape) -> None:
    features, labels = drawn(*shape)
    found = leave_one_out(coordinates(features), labels, 3)
    for image in range(len(labels)):
        without = refitted(features, labels, image, found.penalty, 3)
        assert np.abs(found.without(image) - without).max() < 1e-10
        apart = np.eye(3)[labels[image]] - without[image]
        assert np.abs(found.apart[image] - apart).max() < 1e-10
        moved = np.sqrt(((without - found.answers) ** 2).sum() / len(labels))
        assert found.effect[image] == pytest.approx(moved, abs=1e-10)


@pytest.mark.parametrize("shared", [5, 7])
def test_columns_that_share_a_deviation_weigh_half_of_others(shared: int) -> None:
    features, labels = drawn(40, 12)
    features *= np.geomspace(1, 9, 12, dtype=np.float32)
    z = features - features.mean(axis=0, dtype=np.float64)
    z[:, :-shared] /= z[:, :-shared].std(axis=0)
    z[:, -shared:] *= np.sqrt(0.5 * 5 * 40 / (z[:, -shared:] ** 2).sum())
    found = leave_one_out(coordinates(features, shared), labels, 3)
    left = np.arange(40) != 3
    fit = Ridge(alpha=found.penalty).fit(z[left], np.eye(3)[labels[left]])
    assert np.abs(found.without(3) - fit.predict(z)).max() < 1e-6
    some = without_some(features, np.eye(3)[labels], found.penalty, [3], shared)
    assert np.abs(some.answers - found.answers).max() < 1e-6
    alone = coordinates(np.hstack([np.ones((40, 3), np.float32), features]), 12)
    assert len(alone.squares) == 0  # half of nothing


def test_how_many_others_change_their_class() -> None:
    features, _ = drawn(40, 6)
    labels = np.random.default_rng(1).integers(0, 3, 40)
    found = leave_one_out(coordinates(features), labels, 3, [1e-3])
    counts = []
    for image in range(len(labels)):
        moved = found.without(image).argmax(axis=1) != found.answers.argmax(axis=1)
        counts.append(int(moved.sum()) - int(moved[image]))
    assert found.changed(range(len(labels))) == counts
    assert max(counts) > 0


def test_the_penalty_is_that_of_least_error_on_images_left_out() -> None:
    features, labels = drawn(30, 20)
    found = leave_one_out(coordinates(features), labels, 3)
    errors = {}
    for strength in [30 * p for p in module.PENALTIES]:
        errors[strength] = sum(
            ((np.eye(3)[labels[i]] - refitted(features, labels, i, strength, 3)[i]) ** 2).sum()
            for i in range(30)
        )
    assert found.penalty == min(errors, key=lambda strength: errors[strength])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn(70, 9)
    whole = leave_one_out(coordinates(features), labels, 3)
    monkeypatch.setattr(module, "BLOCK", 40)
    parts = leave_one_out(coordinates(features), labels, 3)
    assert parts.penalty == whole.penalty
    assert np.allclose(parts.effect, whole.effect, rtol=0, atol=1e-12)
    assert np.allclose(parts.without(5), whole.without(5), rtol=0, atol=1e-12)


def test_features_that_are_constant_count_for_nothing() -> None:
    features, labels = drawn(30, 5)
    more = np.column_stack([features, np.full((30, 2), 7.25, np.float32)])
    plain, found = (leave_one_out(coordinates(x), labels, 3) for x in (features, more))
    assert np.allclose(plain.effect, found.effect, rtol=0, atol=1e-12)
    assert len(coordinates(np.ones((30, 4), np.float32)).squares) == 0


@pytest.mark.parametrize("shape", [(60, 8), (40, 200)], ids=["tall", "wide"])
def test_every_group_left_out_equals_a_fit_without_it(shape) -> None:
    """Groups of one image, of a few, and of more than there are directions."""
    features, labels = drawn(*shape)
    groups = np.random.default_rng(2).permutation([0] * 20 + [1] * 3 + [*range(2, shape[0] - 21)])
    found = leave_one_out(coordinates(features), labels, 3, groups=groups)
    alone = leave_one_out(coordinates(features), labels, 3, [found.penalty / len(labels)])
    z = features.astype(np.float64)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    errors = dict.fromkeys(module.PENALTIES, 0.0)
    for group in np.unique(groups):
        held, left = groups == group, groups != group
        for penalty in errors:
            fit = Ridge(alpha=len(z) * penalty, solver="cholesky")
            said = fit.fit(z[left], np.eye(3)[labels[left]]).predict(z[held])
            errors[penalty] += ((said - np.eye(3)[labels[held]]) ** 2).sum()
            if len(z) * penalty == found.penalty:
                assert np.abs(found.held_out(labels)[held] - said).max() < 1e-9
    assert found.penalty == len(z) * min(errors, key=lambda penalty: errors[penalty])
    assert (found.apart == alone.apart).all() and (found.effect == alone.effect).all()
    assert (alone.unseen == alone.apart).all()
