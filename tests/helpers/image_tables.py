"""Folders of images as tables of Arrow and as arrays, as other tools write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def images_below(root: Path) -> list[Path]:
    """All image files, in the order of their paths."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".png"))


def rows_of(root: Path) -> list[dict[str, Any]]:
    """A row an image: ``image`` as Hugging Face has it, ``label`` and ``split`` from the path."""
    rows = []
    for path in images_below(root):
        name = path.relative_to(root)
        split = name.parts[0] if len(name.parts) > 2 else None
        image = {"bytes": path.read_bytes(), "path": name.as_posix()}
        rows.append({"image": image, "label": name.parts[-2], "split": split})
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    """A parquet file of the columns of the first row; ``how`` is pyarrow's. ``types`` are Arrow
    types by column."""
    import pyarrow as arrow
    from pyarrow import parquet

    types = how.pop("types", {})
    metadata = how.pop("metadata", None)
    columns = {name: arrow.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, **how)
    return path


PLAIN = {"compression": "none", "use_dictionary": False}
"""How the library ``datasets`` writes images."""


def as_pixels(root: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images as uint8 (n, height, width, 3), their classes and names."""
    paths = images_below(root)
    pixels = [np.asarray(Image.open(path).convert("RGB").resize(size)) for path in paths]
    names = [path.relative_to(root).as_posix() for path in paths]
    return np.stack(pixels), np.array([path.parent.name for path in paths]), names


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
