"""The part of an entry that each rank computes, as a file in the store until rank 0 has made the
entry of all of them.

The file is one of those of the entry, whose lock rank 0 holds meanwhile, so nobody clears it away;
what a killed run leaves is removed with the other leftovers of the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xfer.core.errors import OutputError
from xfer.core.files import open_to_read
from xfer.training.features.feature_dir import EntryFiles, storage_errors

if TYPE_CHECKING:
    import torch

_ROWS = 1024


class FeaturePart(NamedTuple):
    """What a rank has computed: ``rows`` of this shape and torch's dtype, and the sha256 of the
    file that has them; of no rows there is no file."""

    rank: int
    rows: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    sha256: str = ""


def share(count: int, rank: int, ranks: int) -> range:
    """Which of ``count`` batches are those of ``rank``: as many as any other's, but for one."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def write_part(files: EntryFiles, rank: int, chunks: Iterable[torch.Tensor]) -> FeaturePart:
    """Write what ``rank`` has computed, tensors (rows, *feature shape). Raises OutputError."""
    import torch

    path, sha256, rows = _file(files, rank), hashlib.sha256(), 0
    shape: tuple[int, ...] = ()
    dtype = ""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a run that was killed
        with path.open("xb") as stream:
            for chunk in chunks:
                data = chunk.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                stream.write(data)
                sha256.update(data)
                rows, shape = rows + len(chunk), tuple(chunk.shape[1:])
                dtype = str(chunk.dtype).removeprefix("torch.")
    if not rows:
        path.unlink()
        return FeaturePart(rank)
    return FeaturePart(rank, rows, shape, dtype, sha256.hexdigest())


def read_part(files: EntryFiles, part: FeaturePart) -> Iterator[torch.Tensor]:
    """The rows of ``part``, a block at a time, whose file goes afterwards.

    Raises OutputError where this rank does not see what that one wrote.
    """
    import torch

    if not part.rows:
        return
    path = _file(files, part.rank)
    try:
        with open_to_read(path) as stream:
            same = hashlib.file_digest(stream, "sha256").hexdigest() == part.sha256
    except OSError as error:
        raise _unseen(path, part.rank) from error
    if not same:
        raise _unseen(path, part.rank)
    kind = getattr(torch, part.dtype)
    raw = np.memmap(path, np.uint8, "c").reshape(part.rows, -1)
    for start in range(0, part.rows, _ROWS):
        block = torch.from_numpy(raw[start : start + _ROWS])
        yield block.view(kind).reshape(len(block), *part.shape)
    path.unlink()


def _unseen(path: Path, rank: int) -> OutputError:
    what = f"rank 0 does not see there what rank {rank} wrote ({path.name})"
    fix = "type features.dir=DIR, a folder that every node has at the same place"
    return OutputError(path.parent, what, fix, 7)


def _file(files: EntryFiles, rank: int) -> Path:
    return files.folder / f".{files.digest}.rank{rank}.part"
