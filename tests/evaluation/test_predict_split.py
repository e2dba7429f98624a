"""Batches, whatever answers them, become the predictions of a split in its order."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from xfer.core.errors import DataError, DivergedError, XferError
from xfer.core.types import Samples
from xfer.data.image import Arrays
from xfer.evaluation.predict import predict_split

PACKAGE = Path(__file__).parents[2] / "xfer"
BROKEN = DataError("c", "is no image", "remove it", 1)
# What could be decoded of six images, in threes: the third could not.
BATCHES = [([0, 1], [None, None, BROKEN]), ([3, 4, 5], [None] * 3)]


def samples(labels: int = 0) -> Samples:
    pixels = np.zeros((6, 2, 2, 3), np.uint8)
    return Samples(tuple("abcdef"), np.arange(6) % 2 + labels, Arrays(pixels), "")


def run(batch: list[int]) -> np.ndarray:
    return np.array([[i, -i] for i in batch], np.float32)


def diverged(batch: list[int]) -> np.ndarray:
    return np.where(np.array(batch)[:, None] == 4, np.nan, run(batch))


def test_what_cannot_be_decoded_is_left_out_and_handed_back() -> None:
    broken: list[XferError] = []
    answered = predict_split(run, BATCHES, samples(), ("x", "y"), broken)
    assert broken == [BROKEN]
    assert answered.names == tuple("abdef") and answered.logits[:, 0].tolist() == [0, 1, 3, 4, 5]
    assert answered.labels is not None and answered.labels.tolist() == [0, 1, 1, 0, 1]


def test_the_first_error_is_raised_where_nobody_asks_for_them() -> None:
    with pytest.raises(DataError, match="is no image"):
        predict_split(run, BATCHES, samples(), ("x", "y"))


def test_a_batch_of_which_nothing_is_left_is_not_run() -> None:
    broken: list[XferError] = []
    answered = predict_split(run, [(None, [BROKEN] * 6)], samples(), ("x", "y"), broken)
    assert answered.logits.shape == (0, 2) and len(broken) == 6


def test_unknown_labels_stay_unknown_and_nan_names_its_image() -> None:
    assert predict_split(run, BATCHES[1:] * 2, samples(-9), ("x", "y")).labels is None
    with pytest.raises(DivergedError, match="e: the network answers NaN"):
        predict_split(diverged, BATCHES, samples(), ("x", "y"), [])


def test_images_become_a_dataset_in_one_module() -> None:
    makers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "ImageDataset"
    }
    assert makers == {"data/loader.py"}
