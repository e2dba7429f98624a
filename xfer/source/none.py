"""No weights: train from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from xfer.types import Backbone
from xfer.weights import Weights


@dataclass(frozen=True)
class Scratch:
    """Random initialisation, seeded by ``seed``."""

    def load(self, backbone: Backbone) -> Weights:
        """No state dict."""
        return Weights(kind="none", state=None)
