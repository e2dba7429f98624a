"""What an image looks like in 256 bits, so that a copy saved anew is found (a difference hash).

After the dHash of N. Krawetz ("Kind of Like That", 2013), at 16 x 16 in place of 8 x 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

_SIDE = 16
APART = 10
"""Bits of 256 in which two looks may differ; strangers differ in about 128."""
_FLAT = 8.0  # standard deviation of grey values, of 255: below it, the bits are noise
_AT_ONCE = 1 << 20  # comparisons
MOST = 400_000_000
"""Comparisons that are made: some seconds."""


def look(image: Image) -> str:
    """256 bits in hex: where the picture gets brighter from left to right; empty for a flat one."""
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), 4)  # 4 is PIL's box filter
    small = np.asarray(grey).astype(np.int16)
    if small.std() < _FLAT:
        return ""
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def alike(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(i, j) where ``left[i]`` and ``right[j]`` show the same picture, or its mirror image."""
    rows = [i for i, text in enumerate(left) if text]
    columns = [j for j, text in enumerate(right) if text]
    if not rows or not columns:
        return
    ours, theirs = _bits([left[i] for i in rows]), _bits([right[j] for j in columns])
    both = [_words(theirs), _words(~theirs[:, :, ::-1])]
    step = max(1, _AT_ONCE // len(columns))
    for start in range(0, len(rows), step):
        some = _words(ours[start : start + step])
        near = np.zeros((len(some), len(columns)), bool)
        for others in both:
            apart = sum(
                np.bitwise_count(some[:, k, None] ^ others[None, :, k]).astype(np.int16)
                for k in range(4)
            )
            near |= np.asarray(apart <= APART)
        for i, j in np.argwhere(near):
            yield rows[start + i], columns[j]


def _bits(looks: list[str]) -> npt.NDArray[np.bool_]:
    data = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8)
    return np.unpackbits(data).astype(bool).reshape(-1, _SIDE, _SIDE)


def _words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    return np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)
