"""MNIST, from the public IDX files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import MinLen

from xfer.core.download import fetch
from xfer.core.errors import DataError
from xfer.core.files import file_sha256
from xfer.core.types import Dataset
from xfer.data.dataset import of_arrays
from xfer.data.options import ImageRow, Loading, place
from xfer.data.split import divide

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# What torchvision and gzip raise for damaged files.
_BROKEN = (OSError, EOFError, zlib.error, RuntimeError, ValueError, TypeError, LookupError)


@dataclass(frozen=True)
class Mnist(Loading):
    """60,000 handwritten digits for ``train`` and ``val``, 10,000 for ``test``; 28 x 28 pixels.

    The files of Y. LeCun, C. Cortes and C. Burges, downloaded into ``root/raw`` when missing and
    read by ``torchvision.datasets.MNIST``. ``mirror`` is another address that serves them; what
    it gives is not compared with the published checksums, but reported with its own. Without
    training only the test files are used.
    """

    root: Annotated[str, MinLen(1)]
    """the folder; ``canidae`` and ``mnist`` have ``$XFER_DATA/Canidae`` and
    ``$XFER_DATA/MNIST``, with ``data`` where ``XFER_DATA`` is not set"""
    mirror: str | None = None
    """where to download from when ``root`` is missing; ``null`` is the public mirror"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        root = place(self.root)
        rows: list[ImageRow] = []
        pixels: dict[str, npt.NDArray[np.uint8]] = {}
        for split in ("train", "test") if training else ("test",):
            pictures, digits = _read(root, split, self.mirror)
            names = [f"{split}/{i:05d}" for i in range(len(digits))]
            pairs = zip(names, digits, strict=True)
            rows += [ImageRow(name, str(digit), split) for name, digit in pairs]
            pixels |= dict(zip(names, pictures, strict=True))
        files = sorted((root / "raw").glob("*.gz")) if self.mirror else []
        origin = [f"{f.name} from {self.mirror}: sha256 {file_sha256(f)}" for f in files]
        return of_arrays(divide(rows, self, root, training), pixels, self, origin)


def _read(root: Path, split: str, mirror: str | None) -> tuple[Any, list[int]]:
    """Pictures uint8 (n, 28, 28) and digits of ``train`` or ``test``."""
    from torchvision.datasets import MNIST

    raw, prefix = root / "raw", "train" if split == "train" else "t10k"
    # torchvision would fall back to plain http where https fails.
    address = mirror or next(url for url in MNIST.mirrors if url.startswith("https:"))
    files = {name: None if mirror else md5 for name, md5 in MNIST.resources if prefix in name}
    missing = [name for name in files if not (raw / Path(name).stem).is_file()]
    _download([name for name in missing if not (raw / name).is_file()], raw, address)
    here = {"raw_folder": str(raw), "mirrors": [address], "resources": list(files.items())}
    try:
        mnist = type("Mnist", (MNIST,), here)(root, split == "train", download=bool(missing))
        digits = mnist.targets.tolist()
        if len(digits) != len(mnist.data) or not set(digits) <= set(range(10)):
            raise ValueError("images and labels do not fit")
    except (*_BROKEN, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"holds MNIST files that cannot be read ({reason})"
        raise DataError(raw, what, "remove the folder", 31) from error
    return mnist.data.numpy(), digits


def _download(files: list[str], raw: Path, address: str) -> None:
    try:
        for name in files:
            fetch(f"{address.rstrip('/')}/{name}", raw / name)
    except DataError as error:
        what = f"lacks MNIST files, and {error.where} {error.what}"
        fix = f"put {' and '.join(files)} there, or give data.mirror=ADDRESS"
        raise DataError(raw, what, fix, 30) from error
