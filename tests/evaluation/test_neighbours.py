"""Nearest neighbours, near-duplicates and outliers, against scikit-learn and by tiles."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from xfer.evaluation import neighbours
from xfer.evaluation.leave_one_out import coordinates
from xfer.evaluation.neighbours import (
    alike_from,
    directions,
    nearest,
    nearest_among,
    outliers,
    pairs,
)


def near(features, count: int = 8):
    return nearest(*directions(coordinates(features)), count)


def unlike(count: int, seed: int = 0):
    """Features of images that have nothing in common."""
    return np.random.default_rng(seed).normal(size=(count, 60)).astype(np.float32)


@pytest.mark.parametrize("tile", [16, 2048])
def test_the_neighbours_are_those_of_scikit_learn(monkeypatch, tile: int) -> None:
    monkeypatch.setattr(neighbours, "TILE", tile)
    at = coordinates(unlike(90))
    vectors, lengths = directions(at)
    found = nearest(vectors, lengths, 7)
    apart = NearestNeighbors(n_neighbors=6).fit(at.of(slice(None))).kneighbors(at.of(slice(None)))
    assert np.allclose(found.away, apart[0][:, 5], rtol=1e-4)
    theirs = NearestNeighbors(n_neighbors=8, metric="cosine").fit(vectors).kneighbors(vectors)
    assert (found.which == theirs[1][:, 1:]).all()
    assert np.allclose(1 - found.cosines, theirs[0][:, 1:], atol=1e-6)


def test_copies_are_pairs_and_strangers_are_not() -> None:
    features = unlike(200)
    noise = np.random.default_rng(1).normal(size=(20, 60)).astype(np.float32)
    features[100:120] = features[:20] + 0.2 * noise
    found = near(features)
    alike = [(i, j) for i, j, _ in pairs(found, alike_from(found))]
    assert sorted(alike) == [(i, i + 100) for i in range(20)]
    least = alike_from(near(unlike(200)))
    assert pairs(near(unlike(200)), least) == []


@pytest.mark.parametrize("tile", [16, 2048])
def test_images_of_a_group_are_neighbours_of_others_alone(monkeypatch, tile: int) -> None:
    """Copies within a group are no pair, a copy in another one is; and a group unlike all others
    hides none of its images."""
    monkeypatch.setattr(neighbours, "TILE", tile)
    features, groups = unlike(200), np.arange(200)
    noise = np.random.default_rng(1).normal(size=(24, 60)).astype(np.float32)
    features[100:120], groups[100:120] = features[:20] + 0.2 * noise[:20], groups[:20]
    features[150] = features[3] + 0.2 * noise[20]
    features[160:168], groups[160:168] = 8 * features[160] + 0.1 * noise[:8], 160
    vectors, lengths = directions(coordinates(features))
    found = nearest(vectors, lengths, 8, groups)
    assert (groups[found.which] != groups[:, None]).all()
    assert {(i, j) for i, j, _ in pairs(found, alike_from(found))} == {(3, 150), (103, 150)}
    assert {*range(160, 168)} <= {*outliers(found).tolist()}
    assert not {*range(160, 168)} <= {*outliers(nearest(vectors, lengths, 8)).tolist()}
    one = nearest(vectors, lengths, 8, np.zeros(200, np.int64))
    assert (one.which == nearest(vectors, lengths, 8).which).all()


def test_classes_that_are_tight_are_no_near_duplicates() -> None:
    """As of features that were trained on such images: all of a class are much alike."""
    draw = np.random.default_rng(0)
    centres = 4 * draw.normal(size=(5, 60))
    features = centres[np.arange(300) % 5] + 0.5 * draw.normal(size=(300, 60))
    found = near(features.astype(np.float32))
    assert np.median(found.cosines[:, 0]) > 0.9
    assert pairs(found, alike_from(found)) == []


def test_what_is_far_from_all_is_an_outlier_also_with_a_copy() -> None:
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(3, 60))
    features = 2 * shared[np.arange(300) % 3] + draw.normal(size=(300, 60))
    features[7] = 3 * draw.normal(size=60)
    features[8] = features[7]
    found = near(features.astype(np.float32))
    assert {7, 8} <= set(outliers(found)[:3].tolist())
    assert len(outliers(found)) <= 5


def test_the_nearest_of_some_are_not_the_image_itself() -> None:
    vectors, _ = directions(coordinates(unlike(30)))
    some = np.array([3, 4, 5, 9])
    found = nearest_among(vectors, 4, some, 2)
    cosines = {i: float(vectors[i] @ vectors[4]) for i in (3, 5, 9)}
    assert found == sorted(cosines, key=lambda i: -cosines[i])[:2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_have_few_neighbours(count: int) -> None:
    features = unlike(count)
    found = near(features)
    assert found.which.shape == (count, count - 1)
    assert outliers(found).tolist() == []
