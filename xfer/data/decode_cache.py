"""Images decoded once, into memory that the data workers share.

Of training images the whole picture is stored, because every epoch crops it anew; of validation
images what is left of it after the resizing, which no epoch does otherwise.
"""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Literal

import numpy as np
from PIL import Image as PIL
from PIL.Image import Image

from xfer.core.control_groups import available
from xfer.core.types import Dataset, Images, InputSpec, Samples
from xfer.data.image import Files
from xfer.data.preprocess import fit_to_size
from xfer.data.shared_memory import has_locks


class Decoded:
    """``images`` as they are, but each is decoded only once while ``max_bytes`` last.

    The pixels lie in anonymous shared memory, which costs what is written to it, so what one
    worker process has decoded, all of them read. What does not fit is decoded every time.
    """

    def __init__(self, images: Images, max_bytes: int) -> None:
        self.images = images
        self._pixels = np.frombuffer(mmap.mmap(-1, max_bytes), np.uint8)
        # A row an image: where its pixels begin, height, width; height 0 is not there yet.
        rows = mmap.mmap(-1, max(1, len(images)) * 24)
        self._places = np.frombuffer(rows, np.int64).reshape(-1, 3)
        self._used = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        # Where there are no locks between processes, there are no worker processes either.
        self._lock = get_context().Lock() if has_locks() else threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image:
        start, height, width = (int(value) for value in self._places[index])
        if height:
            pixels = self._pixels[start : start + height * width * 3]
            return PIL.fromarray(pixels.reshape(height, width, 3))
        image = self.images[index]
        self._store(index, np.asarray(image))
        return image

    def _store(self, index: int, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
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


@dataclass(frozen=True)
class FittedImages:
    """``images`` resized and cropped to the network's input, as evaluation does it."""

    images: Images
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image:
        return fit_to_size(self.images[index], self.spec)


def decoded(dataset: Dataset, max_bytes: int, spec: InputSpec) -> Dataset:
    """``dataset`` whose training files are decoded once while their part of ``max_bytes`` lasts;
    as it is for 0 and for what is no file."""
    train, most = dataset.splits["train"], _parts(dataset, max_bytes, spec)[0]
    if not most or not isinstance(train.images, Files):
        return dataset
    train = replace(train, images=Decoded(train.images, most))
    return replace(dataset, splits={**dataset.splits, "train": train})


def fitted(dataset: Dataset, max_bytes: int, spec: InputSpec) -> Samples | None:
    """The images of ``val`` fitted to ``spec``, each only once while its part of ``max_bytes``
    lasts; ``None`` without a ``val``. :func:`xfer.data.preprocess.normalise` of one gives what
    ``prepare`` gives."""
    if "val" not in dataset.splits:
        return None
    val, most = dataset.splits["val"], _parts(dataset, max_bytes, spec)[1]
    images: Images = FittedImages(val.images, spec)
    return replace(val, images=Decoded(images, most) if most else images)


def _parts(dataset: Dataset, max_bytes: int, spec: InputSpec) -> tuple[int, int]:
    """What train and val may take: val what its fitted images need, but no more than its share of
    the images."""
    train, val = (len(dataset.splits.get(name, ())) for name in ("train", "val"))
    height, width = spec.size
    most = min(val * height * width * 3, max_bytes * val // max(1, train + val))
    return max_bytes - most, most


def decoded_limit(asked: float | Literal["auto"]) -> tuple[float, str]:
    """Gigabytes (1e9 bytes) that decoded images may take, and why: ``auto`` is a tenth of the
    memory that is available now, and a number is what it says."""
    if asked != "auto":
        return asked, "as typed"
    free = available()
    return round(free / 1e10, 2), f"a tenth of the {free / 1e9:.1f} GB of memory that are available"
