"""Image files decoded once, into memory that the data workers share."""

from __future__ import annotations

import mmap
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PIL

from xfer.images import Files
from xfer.types import Dataset, Images

if TYPE_CHECKING:
    from PIL.Image import Image


class Decoded:
    """``images`` as they are, but each is decoded only once while ``max_bytes`` last.

    The pixels lie in anonymous shared memory, which costs what is written to it, so what one
    worker process has decoded, all of them read. What does not fit is decoded every time.
    """

    def __init__(self, images: Images, max_bytes: int) -> None:
        self.images = images
        self._pixels = np.frombuffer(mmap.mmap(-1, max_bytes), np.uint8)
        # A row an image: where its pixels begin, height, width; height 0 is not there yet.
        places = mmap.mmap(-1, max(1, len(images)) * 24)
        self._places = np.frombuffer(places, np.int64).reshape(-1, 3)
        self._used = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        self._lock = get_context().Lock()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image:
        start, height, width = (int(value) for value in self._places[index])
        if height:
            pixels = self._pixels[start : start + height * width * 3]
            return PIL.fromarray(pixels.reshape(height, width, 3))
        image = self.images[index]
        self._keep(index, np.asarray(image))
        return image

    def _keep(self, index: int, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        with self._lock:
            start = int(self._used[0])
            if start + pixels.size > len(self._pixels):
                return
            self._used[0] = start + pixels.size
        self._pixels[start : start + pixels.size] = pixels.reshape(-1)
        height, width, _ = pixels.shape
        self._places[index, [0, 2]] = start, width
        # Last, because it says that the rest is there.
        self._places[index, 1] = height


def decoded(dataset: Dataset, max_gb: float) -> Dataset:
    """``dataset`` with the files of every split decoded once, each within its share of ``max_gb``
    gigabytes (1e9 bytes) by its number of images; as it is for 0 and for what is no file."""
    files = {n: s for n, s in dataset.splits.items() if isinstance(s.images, Files) and len(s)}
    total = sum(map(len, files.values()))
    kept = {
        name: replace(split, images=Decoded(split.images, int(max_gb * 1e9 * len(split) / total)))
        for name, split in files.items()
        if max_gb
    }
    return replace(dataset, splits={**dataset.splits, **kept})
