"""Real image files for tests."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    """A coarse random pattern, (width, height) pixels, no two seeds alike."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(form: str, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    """The same as the bytes of a file."""
    stream = io.BytesIO()
    picture(seed, (96, 64), mode).save(stream, form, **options)
    return stream.getvalue()


def folders(root: Path, counts: dict[str, int]) -> Path:
    """JPEG files ``root/<folder>/00.jpg`` and so on, each with the picture of its name."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            name = f"{folder}/{i:02d}.jpg"
            picture(seed(name)).save(root / name)
    return root


def seed(name: str) -> int:
    """The seed of the picture that :func:`folders` draws under a name."""
    return zlib.crc32(os.fsencode(name))
