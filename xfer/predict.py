"""Prediction on files that nobody has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xfer.errors import DataError
from xfer.images import SUFFIXES, Files, scan
from xfer.types import Samples


def find(inputs: Sequence[str]) -> Samples:
    """Image files named by folders (walked), files or glob patterns, sorted, without labels (-1).

    Raises DataError when an input names nothing or a file is no image.
    """
    paths = list(dict.fromkeys(path for text in inputs for path in _expand(text)))
    scan(paths, Path.cwd())
    return Samples(
        names=tuple(str(path) for path in paths),
        labels=np.full(len(paths), -1, np.int64),
        images=Files(tuple(paths)),
        sha256="",
    )


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif path.is_file():
        found = [path]
    else:
        root = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor) if path.is_absolute() else path)
        matches = sorted(root.glob(pattern))
        found = [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(
            text, "names no image file", "give predict.input=FOLDER, FILE or 'GLOB'", 44
        )
    return found
