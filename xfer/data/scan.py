"""Every image file read once before any cost is paid: its hash, its size, what is wrong with it.

Results are cached by path, size, mtime and ctime; user files are never modified.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import ImageOps

from xfer.core.errors import DataError, printable
from xfer.core.files import cache_dir, handle_of
from xfer.core.live_line import working
from xfer.core.locks import Lock, waits
from xfer.core.log import log
from xfer.core.text_columns import Entries, Made, Picked
from xfer.data import libtiff
from xfer.data.array_file import Shape, shape_of
from xfer.data.bit_depth import Extent, extent, is_deep, numbers
from xfer.data.image import (
    Files,
    Size,
    broken_image,
    open_image,
    reason_of,
    refuse_huge,
    rgb_of,
    turned_unknown,
)
from xfer.data.image_bytes import ImagePlace, TarMember, read_file, stamp_key, stamp_now
from xfer.data.image_hash import look
from xfer.data.scan_cache import Known, ScanColumns, keys_of, positions_but

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.core.types import PixelRange

    Places = Sequence[ImagePlace]

_BATCH = 32  # files a thread takes at once
_AHEAD = 4  # batches a thread


class Facts(NamedTuple):
    """A file as it was read: its sha256, what is wrong with it (``None`` for a sound image), its
    :func:`xfer.data.image_hash.look`, what its pixels reach where they have more than 8 bits, and
    its size."""

    path: ImagePlace
    sha256: str = ""
    problem: str | None = None
    look: str = ""
    reach: Extent | None = None
    size: Size = (0, 0)


@dataclass(frozen=True, eq=False)
class Examined(Entries[Facts]):
    """Image files as they were read, in the order of ``places``: ``columns`` of what they are, and
    what is wrong with those that have ``problems``, by position."""

    places: Sequence[ImagePlace]
    columns: ScanColumns
    problems: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.places)

    def entry(self, index: int) -> Facts:
        """See :meth:`xfer.core.text_columns.Entries.entry`."""
        columns = self.columns
        problem, reach = self.problems.get(index), columns.deep.get(index)
        known = problem, columns.look(index), reach, columns.size(index)
        return Facts(self.places[index], columns.digest(index), *known)

    @property
    def broken(self) -> list[Facts]:
        """Those that are no sound images."""
        return [self[at] for at in sorted(self.problems)]

    @property
    def deep(self) -> list[tuple[ImagePlace, Extent]]:
        """Those of more than 8 bits, and what their pixels reach."""
        sound = sorted(self.columns.deep.keys() - self.problems.keys())
        return [(self.places[at], self.columns.deep[at]) for at in sound]

    def files(
        self, positions: npt.NDArray[np.integer], over: PixelRange | None, places: Places
    ) -> Files:
        """The images at ``positions``, which lie at ``places``."""
        count, columns = len(self), self.columns
        return Files(
            Picked(places, positions),
            over,
            Picked(Made(count, columns.scanned), positions),
            Picked(Made(count, columns.size), positions),
        )


def broken_files(broken: Sequence[Facts]) -> DataError:
    """The error about files that are no sound images."""
    error = broken_image(broken[0].path, str(broken[0].problem), more=len(broken) - 1)
    if "data.on_bad" not in error.fix:
        error.fix += ", or type data.on_bad=skip"
    return error


def examine(paths: Sequence[ImagePlace], root: Path) -> Examined:
    """Every file as it was read, in order. ``root`` names the cache; while one process scans it,
    others that ask for it wait and find the result."""
    with alone(root, "reads the images of"):
        known = Known(_cache_file(root))
        columns, new = known.of(keys_of(map(_key, paths), len(paths)))
        problems: dict[int, str] = {}
        for i, facts in zip(map(int, new), _inspect_all(Picked(paths, new)), strict=True):
            if facts.problem is None:
                columns.put(i, facts.sha256, facts.look, facts.reach, facts.size)
            else:
                problems[i] = facts.problem
        if len(new):
            good = positions_but(len(paths), problems)
            known.write(columns, good, map(str, Picked(paths, good)), _is_there)
    for i, path in enumerate(paths):
        packed = path.sha256 if isinstance(path, TarMember) and i not in problems else ""
        if packed and packed != columns.digest(i):
            problems[i] = "its bytes are not those that were packed"
    return Examined(paths, columns, problems)


@contextmanager
def alone(root: Path, what: str) -> Iterator[None]:
    """One process of this user at a time does ``what`` a folder; others wait, and say for whom."""
    path = cache_dir() / "locks" / _cache_file(root).stem
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = handle_of(path, os.O_RDWR | os.O_CREAT, follow=False)
    except OSError:
        yield  # a read-only home has no result to wait for
        return
    with Lock(handle, waiting=waits(f"{what} {printable(root)}")):
        yield


def _inspect_all(paths: Sequence[ImagePlace]) -> Iterator[Facts]:
    # Threads: reading, hashing and decoding release the lock, and processes cost more to start.
    batches = (paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH))
    threads = min(8, 2 * (os.cpu_count() or 1))
    with (
        ThreadPoolExecutor(threads) as pool,
        working("reading images", len(paths)) as advance,
    ):
        ahead = deque(pool.submit(_batch, some) for some in islice(batches, _AHEAD * threads))
        while ahead:
            facts = ahead.popleft().result()
            # No more than are wanted soon: the facts of all of them would not be flat in memory.
            ahead.extend(pool.submit(_batch, some) for some in islice(batches, 1))
            advance(len(facts))
            yield from facts


def _batch(paths: Sequence[ImagePlace]) -> list[Facts]:
    return [inspect(path) for path in paths]


def inspect(path: ImagePlace) -> Facts:
    """Read one file, without its stamp.

    A JPEG whose end marker is in place and a PNG whose checksums hold count as whole; anything
    else is decoded.
    """
    try:
        data, _ = read_file(path)
        shape = shape_of(path)
        reach, size = _check(path, data, shape)
    except Exception as error:  # as in decode
        return Facts(path, problem=reason_of(error))
    digest = hashlib.sha256(data).hexdigest()
    return Facts(path, digest, look=_look(data, reach, shape), reach=reach, size=size)


def _check(path: ImagePlace, data: bytes, shape: Shape | None) -> tuple[Extent | None, Size]:
    """What the pixels of a sound image reach, where they have more than 8 bits, and its size;
    raises else."""
    if not data:
        raise ValueError("the file is empty")
    with open_image(data, shape) as image:
        refuse_huge(image)
        size = image.size
        if turned_unknown(image):
            lost = "its EXIF block is damaged before it says how the picture is turned"
            log.warning(f"{printable(path)}: {lost}: it is taken as it lies")
        if is_deep(image):
            return extent(numbers(image, lambda: open_image(data))), size
        has_end = data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
        if image.format == "PNG":
            image.verify()
        elif image.format not in ("JPEG", "MPO") or not has_end:
            before = libtiff.found.errors
            rgb_of(image, data)
            if libtiff.found.errors > before:
                log.warning(f"{printable(path)} is damaged, and taken as far as it can be decoded")
    return None, size


def _look(data: bytes, reach: Extent | None, shape: Shape | None) -> str:
    try:
        with open_image(data, shape) as image:
            if reach:
                # From its darkest to its brightest: no two dark pictures are alike for being dark.
                over = (reach.low, max(reach.high, reach.low + 1))
                return look(rgb_of(image, data, over))
            if image.has_transparency_data:  # what lies behind it is not seen
                return look(rgb_of(image, data))
            image.draft("L", (34, 32))  # a JPEG is decoded at an eighth of its size
            return look(ImageOps.exif_transpose(image))
    except Exception:  # as in decode; what only a whole decoding finds, training will name
        return ""


def _key(path: ImagePlace) -> int:
    """Changes with every edit of the file; never what the cache holds when it cannot be read."""
    try:
        stamp = stamp_now(path)
    except OSError:
        stamp = "missing"
    return stamp_key(path, stamp)


def _is_there(name: str) -> bool:
    """Whether there is still the file that a row is about, or that its part is of."""
    shard, dot_tar, _ = name.partition(".tar/")
    file = f"{shard}.tar" if dot_tar else name.partition("#")[0]
    return Path(name).exists() or (file != name and Path(file).is_file())


def _cache_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_dir() / "scan" / f"{name}.zip"
