"""Small pictures of validation images, where what a run was scored on is still there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from markupsafe import Markup

from xfer.core.errors import DataError, XferError
from xfer.core.types import Plain
from xfer.data.arrays import ArrayFiles
from xfer.data.hf import HuggingFace
from xfer.data.image import decode
from xfer.data.image_bytes import ImagePlace
from xfer.data.parquet import Parquet
from xfer.data.shards import members_of
from xfer.report.image_tiles import data_uri, jpeg

_SIDE = 96
_TABLES = {kind.__name__: kind for kind in (Parquet, HuggingFace, ArrayFiles)}


class InTable(NamedTuple):
    """Images in a table, a data set or arrays, in the folder ``root``, which may have ``several``
    labels."""

    root: Path
    data: Parquet | HuggingFace | ArrayFiles
    several: bool


def images_of(config: Plain, several: bool) -> Path | InTable | None:
    """The folder that the paths of a run's predictions lie below, or the table that has its images;
    ``None`` for data that are no longer there, and for those of a hub."""
    data = config.get("data")
    known: Plain = data if isinstance(data, dict) else {}
    root: Any = known.get("root")
    kind = _TABLES.get(str(known.get("_target_")).rpartition(".")[2])
    if kind and isinstance(root, str) and root:
        columns = known.get("columns")
        named = tuple(map(str, columns)) if isinstance(columns, list) else None
        folder = _there(root) or _there(str(Path(root).parent))
        return InTable(folder, kind(root=root, columns=named), several) if folder else None
    if isinstance(root, str) and root:
        return _there(root)
    file = known.get("file")
    return _there(str(Path(file).parent)) if isinstance(file, str) and file else None


def _there(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def thumbnail(images: Path | InTable, name: str) -> Markup:
    """The image ``name`` below a folder, in a shard there, or in a table, as a data URI; nothing
    where it is no longer there.

    A run folder may be a stranger's, so nothing outside of the data's folder is opened.
    """
    root = (images.root if isinstance(images, InTable) else images).resolve()
    for written in (name, name.removeprefix("'")):
        path = PurePosixPath(written)
        if path.is_absolute() or ".." in path.parts:
            continue
        try:
            alone = (root / path).resolve()
            own = isinstance(images, Path) and alone.is_file()
            place = alone if own else _members(images).get(written)
            if place is None:
                continue
            file = place if isinstance(place, Path) else place.file
            if file.resolve().is_relative_to(root):
                image = decode(place)
                image.thumbnail((_SIDE, _SIDE))
                return data_uri(jpeg(image, 80))
        except (DataError, OSError, ValueError):
            continue  # a file that is broken by now has no picture, as one that is gone
    return Markup()


@cache
def _members(images: Path | InTable) -> Mapping[str, ImagePlace]:
    """Where the images of a whole data set are, by name: they are listed once."""
    if isinstance(images, Path):
        return members_of(images.resolve())
    try:
        return images.data.listed(images.several).places
    except XferError:
        return {}  # it is another by now, or its library is not installed
