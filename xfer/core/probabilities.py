"""What logits say of the classes: shares of one, or a share for each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The shares of exp(logits) (n, classes) by image, without overflow."""
    z = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-logits)), without overflow."""
    below = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, below) / (1.0 + below))
