"""Every image file read once before any cost is paid: its hash, its size, what is wrong with it.

Results are cached by path, size, mtime and ctime; user files are never modified.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageOps

from xfer.core.errors import DataError, OutputError, printable
from xfer.core.files import cache_dir, handle_of, read_json, write_text
from xfer.core.live_line import working
from xfer.core.locks import Lock, waits
from xfer.data.array_file import Shape, shape_of
from xfer.data.bit_depth import Extent, extent, is_deep, numbers
from xfer.data.image import (
    Size,
    broken_image,
    open_image,
    reason_of,
    refuse_huge,
    rgb_of,
)
from xfer.data.image_bytes import ImagePlace, TarMember, read_file, stamp_now
from xfer.data.image_hash import look

_CACHE_VERSION = 5
_LARGEST_CACHE = 1 << 32  # bytes: some 20 million images
_BATCH = 32  # files a thread takes at once
_Cache = dict[str, list[Any]]
_TWO_NUMBERS = [[a, b] for a in (int, float) for b in (int, float)]


class Facts(NamedTuple):
    """A file as it was read: its sha256, what is wrong with it (``None`` for a sound image), its
    :func:`xfer.data.image_hash.look`, what its pixels reach where they have more than 8 bits, what
    an edit of it would change, and its size."""

    path: ImagePlace
    sha256: str = ""
    problem: str | None = None
    look: str = ""
    reach: Extent | None = None
    stamp: str = ""
    size: Size = (0, 0)


def broken_files(broken: Sequence[Facts]) -> DataError:
    """The error about files that are no sound images."""
    return broken_image(broken[0].path, str(broken[0].problem), more=len(broken) - 1)


def examine(paths: Sequence[ImagePlace], root: Path) -> list[Facts]:
    """Every file as it was read, in order. ``root`` names the cache; while one process scans it,
    others that ask for it wait and find the result."""
    with _alone(root):
        known = _read_cache(root)
        stamps = [_stamp(path) for path in paths]
        new = [i for i, path in enumerate(paths) if known.get(str(path), [""])[0] != stamps[i]]
        broken: dict[int, Facts] = {}
        for i, facts in zip(new, _inspect_all([paths[i] for i in new]), strict=True):
            if facts.problem is None:
                row = [stamps[i], facts.sha256, facts.look, facts.reach, list(facts.size)]
                known[str(paths[i])] = row
            else:
                broken[i] = facts
        if new:
            _write_cache(root, known, paths)
    return [broken.get(i) or _facts(path, known[str(path)]) for i, path in enumerate(paths)]


def _facts(path: ImagePlace, row: list[Any]) -> Facts:
    stamp, digest, looks, reach, (width, height) = row
    deep = Extent(*reach) if reach else None
    packed = path.sha256 if isinstance(path, TarMember) else ""
    problem = None if packed in ("", digest) else "its bytes are not those that were packed"
    return Facts(path, digest, problem, looks, deep, stamp, (width, height))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    path = cache_dir() / "locks" / _cache_file(root).stem
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = handle_of(path, os.O_RDWR | os.O_CREAT, follow=False)
    except OSError:
        yield  # a read-only home has no result to wait for
        return
    with Lock(handle, waiting=waits(f"reads the images of {printable(root)}")):
        yield


def _inspect_all(paths: list[ImagePlace]) -> Iterator[Facts]:
    # Threads: reading, hashing and decoding release the lock, and processes cost more to start.
    batches = [paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH)]
    with (
        ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool,
        working("reading images", len(paths)) as advance,
    ):
        for batch in pool.map(lambda batch: [inspect(path) for path in batch], batches):
            advance(len(batch))
            yield from batch


def inspect(path: ImagePlace) -> Facts:
    """Read one file, without its stamp.

    A JPEG whose end marker is in place and a PNG whose checksums hold count as whole; anything
    else is decoded.
    """
    try:
        data, _ = read_file(path)
        shape = shape_of(path)
        reach, size = _check(data, shape)
    except OSError as error:
        return Facts(path, problem=error.strerror or reason_of(error))
    except Exception as error:  # as in decode
        return Facts(path, problem=reason_of(error))
    digest = hashlib.sha256(data).hexdigest()
    return Facts(path, digest, look=_look(data, reach, shape), reach=reach, size=size)


def _check(data: bytes, shape: Shape | None) -> tuple[Extent | None, Size]:
    """What the pixels of a sound image reach, where they have more than 8 bits, and its size;
    raises else."""
    if not data:
        raise ValueError("the file is empty")
    with open_image(data, shape) as image:
        refuse_huge(image)
        size = image.size
        if is_deep(image):
            return extent(numbers(image, lambda: open_image(data))), size
        has_end = data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
        if image.format == "PNG":
            image.verify()
        elif image.format not in ("JPEG", "MPO") or not has_end:
            rgb_of(image, data)
    return None, size


def _look(data: bytes, reach: Extent | None, shape: Shape | None) -> str:
    try:
        with open_image(data, shape) as image:
            if reach:
                # From its darkest to its brightest: no two dark pictures are alike for being dark.
                over = (reach.low, max(reach.high, reach.low + 1))
                return look(rgb_of(image, data, over))
            image.draft("L", (34, 32))  # a JPEG is decoded at an eighth of its size
            return look(ImageOps.exif_transpose(image))
    except Exception:  # as in decode; what only a whole decoding finds, training will name
        return ""


def _stamp(path: ImagePlace) -> str:
    """Changes with every edit of the file; never what the cache holds when it cannot be read."""
    try:
        return stamp_now(path)
    except OSError:
        return "missing"


def _is_there(name: str) -> bool:
    """Whether there is still the file that a row is about, or that its part is of."""
    shard, dot_tar, _ = name.partition(".tar/")
    file = f"{shard}.tar" if dot_tar else name.partition("#")[0]
    return Path(name).exists() or (file != name and Path(file).is_file())


def _cache_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_dir() / "scan" / f"{name}.json"


def _read_cache(root: Path) -> _Cache:
    try:
        facts = read_json(_cache_file(root), _LARGEST_CACHE)
        rows = dict(facts["files"]) if facts["version"] == _CACHE_VERSION else {}
        return {name: row for name, row in rows.items() if _is_row(row)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a cache that cannot be read is made again


def _is_row(row: object) -> bool:
    """Whether a row of the cache is a stamp, a hash, looks, the range of a deep file, a size."""
    if not isinstance(row, list) or len(row) != 5 or not all(isinstance(c, str) for c in row[:3]):
        return False
    reach, size = row[3:]
    if not isinstance(size, list) or [type(n) for n in size] != [int, int]:
        return False
    kinds = [type(cell) for cell in reach] if isinstance(reach, list) else []
    return reach is None or (kinds[:1] == [str] and kinds[1:] in _TWO_NUMBERS)


def _write_cache(root: Path, known: _Cache, paths: Sequence[ImagePlace]) -> None:
    # Other splits of the same root were scanned at other times; files that are gone are dropped.
    listed = {str(path) for path in paths}
    files = {name: row for name, row in known.items() if name in listed or _is_there(name)}
    try:
        write_text(_cache_file(root), json.dumps({"version": _CACHE_VERSION, "files": files}))
    except OutputError:
        return  # a read-only home costs the next run its scan, nothing else
