"""A placeholder: the leaderboard itself comes from elsewhere."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path) -> Path:
    """The file that the leaderboard of a sweep will be."""
    return folder / "leaderboard.csv"
