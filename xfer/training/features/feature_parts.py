"""The part of an entry that each rank computes, as a file in the store until rank 0 has made the
entry of all of them.

The file is one of those of the entry, whose lock rank 0 holds meanwhile, so nobody clears it away;
what a killed run leaves is removed with the other leftovers of the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xfer.core.errors import OutputError
from xfer.core.files import open_to_read
from xfer.training.features.feature_dir import EntryFiles, storage_errors

if TYPE_CHECKING:
    import torch

    from xfer.core.types import Plain
    from xfer.training.distributed.group import ProcessGroup
    from xfer.training.features.store import FeatureEntry, Store

_ROWS = 1024
_SHARED = "type features.dir=DIR, a folder that every node has at the same place"


class FeaturePart(NamedTuple):
    """What a rank has computed: ``rows`` of this shape and torch's dtype, and the sha256 of the
    file that has them; of no rows there is no file."""

    rank: int
    rows: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    sha256: str = ""


def put_together(
    files: EntryFiles, group: ProcessGroup, mine: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Every row of an entry in order, as rank 0: ``mine``, then those that the others compute
    meanwhile. Raises OutputError where one of these is not seen."""
    group.broadcast(files.digest)
    yield from mine
    for part in group.all_gather(FeaturePart(0))[1:]:
        yield from read_part(files, part)


def assisted(
    store: Store, group: ProcessGroup, count: int, mine: Callable[[], Iterable[torch.Tensor]]
) -> FeatureEntry:
    """The entry of ``count`` rows that rank 0 makes or has, as another rank, which computes its
    part whenever it is asked, and hears its key at last. Raises OutputError where it is not seen.
    """

    def unseen() -> Iterator[torch.Tensor]:
        what = f"rank {group.rank} does not see there the features that rank 0 wrote"
        raise OutputError(store.folder, what, _SHARED, 7)

    while isinstance(asked := group.broadcast(None), str):
        files = EntryFiles(store.folder, asked)
        group.all_gather(write_part(files, group.rank, mine()))
    # By the key of rank 0: the same numbers, whatever the processor of this node.
    key: Any = asked
    entry = store.entry(key, count, unseen)
    group.all_gather(None)
    return entry


def shared(group: ProcessGroup, key: Plain) -> None:
    """Have every other rank read the entry of ``key``, as rank 0, whose next one may need its
    room: :func:`assisted` ends with it."""
    group.broadcast(key)
    group.all_gather(None)


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
    return OutputError(path.parent, what, _SHARED, 7)


def _file(files: EntryFiles, rank: int) -> Path:
    return files.folder / f".{files.digest}.rank{rank}.part"
