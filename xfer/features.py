"""Whether the output of a frozen prefix is computed once and kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Never:
    """Every epoch runs the whole network on every image."""
