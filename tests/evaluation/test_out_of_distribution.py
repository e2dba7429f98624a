"""How unlike training a picture is, on numbers: distance, p-value, rank and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from xfer.core.certificate import MOST_BYTES, Certificate, certificate_of
from xfer.evaluation import out_of_distribution as module
from xfer.evaluation.out_of_distribution import fit_unlike


def clouds(n: int, width: int, classes: int = 3, seed: int = 0):
    """Features around a centre a class, of very different variance in different directions."""
    random = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    centres, scale = fixed.normal(0, 3, (classes, width)), fixed.uniform(0.2, 2, width)
    labels = random.integers(0, classes, n)
    return centres[labels] + random.normal(size=(n, width)) * scale, labels


def test_the_distance_is_that_of_scipy_over_the_radius_of_the_training_image() -> None:
    x, y = clouds(400, 10)
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None and fitted.basis.shape == (10, 10)
    deviation = x.std(0) + 0.1 * np.sqrt(x.var(0).mean())
    x, fresh = x / deviation, clouds(20, 10, seed=5)[0]
    centres = np.stack([x[y == k].mean(0) for k in range(3)])
    within = (x - centres[y]).T @ (x - centres[y]) / (400 - 3)
    ridge = 3 * np.mean((x - x.mean(0)) ** 2)
    how = {"metric": "mahalanobis", "VI": np.linalg.inv(within + ridge * np.eye(10))}
    own = np.sort(cdist(x, x, **how) ** 2, axis=1)[:, 1:4].mean(axis=1)
    expected = (cdist(fresh / deviation, x, **how) ** 2 / (own + 2 * own.mean())).min(axis=1)
    np.testing.assert_allclose(fitted.distance(fresh), expected, rtol=1e-3)


def test_a_picture_beside_a_dense_class_is_farther_than_one_in_a_wide_class() -> None:
    random = np.random.default_rng(3)
    x = np.concatenate([random.normal(0, 0.1, (100, 5)), random.normal(9, 2, (100, 5))])
    fitted = fit_unlike({"fc": x}, np.arange(200) // 100)
    assert fitted is not None
    shown = np.stack([np.full(5, 0.8), np.full(5, 10.5)])
    nearest = cdist(shown, x).min(axis=1)
    beside, within = fitted.distance(shown)
    assert nearest[0] < nearest[1] and beside > within


def test_layers_have_their_share_whatever_their_scale_and_width() -> None:
    x, y = clouds(300, 30)
    parts = {"early": x[:, :20], "dead": np.full((300, 4), 2.0), "mid": x[:, 20:26]}
    given = fit_unlike(parts | {"fc": x[:, 26:]}, y)
    blown = fit_unlike(parts | {"early": 1000 * x[:, :20], "fc": x[:, 26:] / 50}, y)
    assert given is not None and blown is not None
    assert given.layers == blown.layers == ("early", "dead", "mid", "fc")
    np.testing.assert_allclose(given.reference, blown.reference, rtol=1e-3)
    seen = np.concatenate([*parts.values(), x[:, 26:]], axis=1)
    variances = (((seen - seen.mean(0)) * given.scale) ** 2).mean(0)
    sums = [part.sum() for part in np.split(variances, [20, 24, 30])]
    np.testing.assert_allclose(sums, [1 / 6, 0, 1 / 6, 1 / 2], rtol=1e-4)


def test_of_many_images_some_of_each_class_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(module, "_POINTS", 30)
    x, y = clouds(400, 8)
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None and len(fitted.centres) == 30 and len(fitted.reference) == 400
    seen = ((x - fitted.mean) * fitted.scale) @ fitted.basis.T @ fitted.whiten.T
    nearest = [int(((seen - centre) ** 2).sum(1).argmin()) for centre in fitted.centres]
    np.testing.assert_allclose(seen[nearest], fitted.centres, atol=1e-4)
    assert (np.bincount(y[nearest], minlength=3) >= 8).all()


def test_a_low_rank_has_one_variance_outside_of_its_directions(monkeypatch) -> None:
    monkeypatch.setattr(module, "_RANK", 4)
    x, y = clouds(500, 12)
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None and fitted.basis.shape == (4, 12)
    np.testing.assert_allclose(fitted.basis @ fitted.basis.T, np.eye(4), atol=1e-5)
    away = (x - x.mean(0)) * fitted.scale
    beside = away - away @ fitted.basis.T @ fitted.basis
    ridge = 3 * np.mean(away**2)
    assert fitted.noise[0] == pytest.approx(0.5 / ((beside**2).sum(1).mean() / 8 + ridge), rel=1e-4)


@pytest.mark.parametrize("shape", [(150, 20), (80, 300)], ids=["more rows", "more features"])
def test_p_values_are_uniform_on_images_of_the_same_kind(shape: tuple[int, int]) -> None:
    n, width = shape
    alarms = []
    for seed in range(12):
        x, y = clouds(n, width, seed=seed)
        fitted = fit_unlike({"fc": x}, y)
        assert fitted is not None
        fresh, _ = clouds(200, width, seed=500 + seed)
        alarms.append(np.mean(fitted.p_value(fitted.distance(fresh)) <= 0.1))
    assert 0.05 < np.mean(alarms) < 0.13


def test_with_several_labels_a_combination_counts_as_a_class() -> None:
    x, y = clouds(90, 8)
    rows = np.array([[1, 0], [1, 1], [0, -1]])[y]
    one, matrix = fit_unlike({"fc": x}, y), fit_unlike({"fc": x}, rows)
    assert one is not None and matrix is not None
    far = x + 3
    # In another order, so that the folds hold out other images.
    np.testing.assert_allclose(matrix.distance(far), one.distance(far), rtol=1e-4)
    np.testing.assert_allclose(
        matrix.p_value(matrix.distance(x)), one.p_value(one.distance(x)), atol=0.1
    )
    alone = fit_unlike({"fc": x}, np.zeros((90, 2), np.int64))
    assert alone is not None
    assert not np.allclose(alone.distance(far), one.distance(far), rtol=0.05)


def test_what_lies_elsewhere_is_unlike_and_no_p_value_is_zero() -> None:
    x, y = clouds(200, 20)
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None and len(fitted.reference) == 200
    p = fitted.p_value(fitted.distance(x + 20))
    assert (p == 1 / 201).all()
    assert fitted.p_value(np.array([-1.0]))[0] == 1.0


def test_held_out_images_are_the_reference_where_there_are_any() -> None:
    x, y = clouds(200, 20)
    held, _ = clouds(50, 20, seed=7)
    fitted = fit_unlike({"fc": x}, y, {"fc": held})
    assert fitted is not None
    np.testing.assert_allclose(fitted.reference, np.sort(fitted.distance(held)), rtol=1e-5)


NEARLY = 1e6 + np.random.default_rng(0).random((40, 6)) / 1e3


@pytest.mark.parametrize("x", [np.full((40, 6), 3.7), np.zeros((40, 6)), NEARLY])
def test_features_that_do_not_vary_have_no_distance(x) -> None:
    assert fit_unlike({"fc": x}, np.arange(40) % 2) is None


def test_one_class_and_a_class_of_one_image_have_one() -> None:
    x, _ = clouds(60, 8)
    assert fit_unlike({"fc": x}, np.zeros(60, np.int64)) is not None
    fitted = fit_unlike({"fc": x}, np.append(np.zeros(59, np.int64), 1))
    assert fitted is not None and len(fitted.centres) == len(fitted.reference) == 60


@pytest.mark.parametrize("width", [25_088, 2_048])
def test_it_takes_less_than_a_megabyte_whatever_the_width(width: int) -> None:
    x, y = clouds(90, width, classes=20)
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None
    least = np.zeros(20, np.float32)
    made = Certificate(0.9, False, "cv", 90, 1.0, "", least, fitted)
    assert sum(array.nbytes for array in made.arrays().values()) < MOST_BYTES
    assert len(fitted.basis) >= 5


def test_a_certificate_is_the_same_from_both_of_its_halves_and_nothing_else_is_one() -> None:
    x, y = clouds(60, 8)
    least = np.zeros(3, np.float32)
    made = Certificate(0.9, True, "val", 60, 1.2, "a", least, fit_unlike({"f": x}, y))
    again = certificate_of(made.to_plain(), made.arrays(), 3)
    fresh, _ = clouds(10, 8, seed=4)
    assert again.unlike is not None and made.unlike is not None
    np.testing.assert_array_equal(again.unlike.distance(fresh), made.unlike.distance(fresh))
    assert again.unlike.layers == ("f",)
    bare = Certificate(0.9, True, "val", 60, 1.2, "a", least)
    assert certificate_of(bare.to_plain(), bare.arrays(), 3).unlike is None
    arrays = made.arrays()
    for wrong in (
        {"least": np.zeros(2, np.float32)},
        {"least": np.full(3, np.nan, np.float32)},
        {"mean": arrays["mean"].astype(np.float64)},
        {"scale": arrays["scale"][1:]},
        {"whiten": arrays["whiten"][:, :2]},
        {"reference": arrays["reference"][::-1].copy()},
        {"reference": arrays["reference"][:0]},
        {"radius": arrays["radius"][1:]},
        {"radius": np.zeros_like(arrays["radius"])},
        {"basis": np.zeros((300_000, 8), np.float32)},
    ):
        with pytest.raises(ValueError, match="certificate"):
            certificate_of(made.to_plain(), {**arrays, **wrong}, 3)
    for facts in ({"coverage": 1.0}, {"n": 0}, {"fitted_on": "train"}, {"more": 1}):
        with pytest.raises(ValueError):
            certificate_of({**made.to_plain(), **facts}, arrays, 3)


def test_a_certificate_of_one_layer_as_it_was_first_written_is_read() -> None:
    """Then there was no scale, the centres were means of classes, and the layer had no list."""
    x, y = clouds(90, 8)
    made = Certificate(0.9, False, "cv", 90, 1.0, "a", np.zeros(3, np.float32))
    fitted = fit_unlike({"fc": x}, y)
    assert fitted is not None
    facts = {k: v for k, v in made.to_plain().items() if k != "layers"} | {"layer": "fc"}
    arrays = made.arrays() | {
        name: getattr(fitted, name) for name in ("mean", "basis", "whiten", "noise", "reference")
    }
    arrays["centres"] = fitted.centres[:3]
    old = certificate_of(facts, arrays, 3).unlike
    assert old is not None and old.layers == ("fc",) and (old.scale == 1).all()
    away = (x - fitted.mean) @ fitted.basis.T.astype(float) @ fitted.whiten.T
    far = [min(((row - c) ** 2).sum() for c in fitted.centres[:3]) for row in away]
    np.testing.assert_allclose(old.distance(x), far, rtol=1e-6)
    assert certificate_of(facts | {"layer": None}, made.arrays(), 3).unlike is None
