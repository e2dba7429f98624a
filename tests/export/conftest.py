"""The network that ships with xfer, and images of noise for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shipped import SHIPPED

from xfer import api


@pytest.fixture(scope="module")
def digits() -> api.Model:
    return api.load(SHIPPED)


@pytest.fixture(scope="module")
def images(digits: api.Model) -> np.ndarray[Any, np.dtype[np.float32]]:
    size = digits.card.input.size
    return np.random.default_rng(0).normal(size=(6, 3, *size)).astype(np.float32)
