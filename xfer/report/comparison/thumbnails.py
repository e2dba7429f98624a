"""Small pictures of validation images, where the files that a run was scored on are still there."""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from markupsafe import Markup

from xfer.core.errors import DataError
from xfer.core.types import Plain
from xfer.data.image import decode
from xfer.data.image_bytes import ImagePlace
from xfer.data.shards import members_of
from xfer.report.image_tiles import data_uri, jpeg

_SIDE = 96


def root_of(config: Plain) -> Path | None:
    """The folder that the paths of a run's predictions lie below; ``None`` for data that are no
    files."""
    data = config.get("data")
    known: Plain = data if isinstance(data, dict) else {}
    root: Any = known.get("root")
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


def thumbnail(root: Path | None, name: str) -> Markup:
    """The image ``name`` below ``root``, or in a shard there, as a data URI; nothing where it is no
    longer there.

    A run folder may be a stranger's, so nothing outside of the data's folder is opened.
    """
    for written in (name, name.removeprefix("'")) if root else ():
        path = PurePosixPath(written)
        if path.is_absolute() or ".." in path.parts:
            continue
        try:
            whole = Path(root or "", path).resolve()
            if whole.is_relative_to(Path(root or "").resolve()) and whole.is_file():
                return _small(whole)
            if (member := _members(Path(root or "").resolve()).get(written)) is not None:
                return _small(member)
        except (DataError, OSError, ValueError):
            continue  # a file that is broken by now has no picture, as one that is gone
    return Markup()


@cache
def _members(root: Path) -> dict[str, ImagePlace]:
    """As :func:`members_of`, which reads the names of a whole data set, once."""
    return members_of(root)


def _small(path: ImagePlace) -> Markup:
    image = decode(path)
    image.thumbnail((_SIDE, _SIDE))
    return data_uri(jpeg(image, 80))
