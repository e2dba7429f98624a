"""Where the images of a listing are, without an object an image."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np
import numpy.typing as npt

from xfer.core.text_columns import Entries, Picked
from xfer.data.image_bytes import ImagePlace, TarMember


@dataclass(frozen=True, eq=False)
class FilesBelow(Entries[ImagePlace]):
    """The files ``root / name``, of each of ``names``."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def entry(self, index: int) -> ImagePlace:
        """See :meth:`xfer.core.text_columns.Entries.entry`."""
        return self.root / self.names[index]


@dataclass(frozen=True, eq=False)
class TarMembers(Entries[ImagePlace]):
    """Images in the tar files ``files``, one file after the other: ``ends`` says how many images
    there are up to the end of each, ``starts`` uint32 (n,), in blocks of a tar file, and ``sizes``
    int32 (n,) where the bytes of an image are.
    Each is called by ``names`` without the folder of its split, but for ``others``, by position.
    ``digests`` uint8 (n, 32) are the sha256 that a pack has written, zeros where nothing says;
    ``None`` where none does."""

    files: Sequence[Path]
    folders: Sequence[str]
    names: Sequence[str]
    ends: Sequence[int]
    starts: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int32]
    others: Mapping[int, str]
    digests: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def file_of(self, index: int) -> int:
        """Which of ``files`` the image at ``index`` is in."""
        return bisect_right(self.ends, index)

    def entry(self, index: int) -> ImagePlace:
        """See :meth:`xfer.core.text_columns.Entries.entry`."""
        at = self.file_of(index)
        name = self.others.get(index) or self.names[index].removeprefix(self.folders[at])
        packed = b"" if self.digests is None else self.digests[index].tobytes()
        digest = packed.hex() if any(packed) else ""
        return TarMember(
            self.files[at],
            name,
            int(self.starts[index]) * BLOCKSIZE,
            int(self.sizes[index]),
            digest,
        )


def lasting(places: Sequence[ImagePlace]) -> Sequence[ImagePlace]:
    """``places`` without what only a scan needs: the hashes that a pack has written."""
    if isinstance(places, Picked):
        return Picked(lasting(places.source), places.at)
    return replace(places, digests=None) if isinstance(places, TarMembers) else places
