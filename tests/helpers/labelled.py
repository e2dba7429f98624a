"""Real images with several labels: scikit-learn's digits as PNG files, and photographs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

LABELS: dict[str, Callable[[int], bool]] = {
    "even": lambda digit: digit % 2 == 0,
    "prime": lambda digit: digit in (2, 3, 5, 7),
    "round": lambda digit: digit in (0, 6, 8, 9),
    "straight": lambda digit: digit in (1, 4, 7),
}
"""What a digit may be called; 1 is straight alone, and no digit here has all of them."""


def of_digit(digit: int) -> list[str]:
    """Its labels; 5 and 3 are prime alone."""
    return [name for name, has in LABELS.items() if has(digit)]


def digits(folder: Path, count: int, unlabelled: int = 0) -> list[tuple[str, list[str]]]:
    """The first ``count`` digits as PNG files in ``folder``, and the labels of each; the last
    ``unlabelled`` are empty pictures without a label."""
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    found = load_digits()
    rows = []
    for i in range(count):
        Image.fromarray((found.images[i] * 15.9).astype(np.uint8)).save(folder / f"{i:04}.png")
        rows.append((f"{i:04}.png", of_digit(int(found.target[i]))))
    noise = np.random.default_rng(0)
    for i in range(unlabelled):
        picture = noise.integers(0, 60, (8, 8), np.uint8)
        Image.fromarray(picture).save(folder / f"empty{i:02}.png")
        rows.append((f"empty{i:02}.png", []))
    return rows


def write_cells(path: Path, rows: list[tuple[str, list[str]]], sign: str = "|") -> Path:
    """A CSV file with the labels of an image in one cell."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        writer.writerows([name, sign.join(labels)] for name, labels in rows)
    return path


def write_columns(
    path: Path, rows: list[tuple[str, list[str]]], unknown: float = 0.0, seed: int = 0
) -> Path:
    """A CSV file with a column a label, the share ``unknown`` of all cells empty."""
    drawn = np.random.default_rng(seed)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *LABELS])
        for name, labels in rows:
            cells = [str(int(label in labels)) for label in LABELS]
            writer.writerow([name, *("" if drawn.random() < unknown else c for c in cells)])
    return path
