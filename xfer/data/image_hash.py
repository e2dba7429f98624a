"""What an image looks like in 256 bits, so that a copy saved anew is found (a difference hash).

After the dHash of N. Krawetz ("Kind of Like That", 2013), at 16 x 16 in place of 8 x 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

_SIDE = 16
APART = 10
"""Bits of 256 in which two looks may differ; strangers differ in about 128."""
_PLAIN = 32  # set bits; fewer are of strokes on plain ground, of which strangers differ in as few
_FLAT = 8.0  # standard deviation of grey values, of 255: below it, the bits are noise
_AT_ONCE = 1 << 10  # looks that are compared with as many
Asked = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32]], npt.NDArray[np.bool_]]
MOST = 400_000_000
"""Comparisons that are made: some seconds."""


def look(image: Image) -> str:
    """256 bits in hex: where the picture gets brighter from left to right; empty for a flat one."""
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), 4)  # 4 is PIL's box filter
    small = np.asarray(grey).astype(np.int16)
    if small.std() < _FLAT:
        return ""
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def alike(
    left: Sequence[str], right: Sequence[str], asked: Asked = lambda i, j: np.full(len(i), True)
) -> npt.NDArray[np.int32]:
    """Rows (i, j) in order, int32 (m, 2), where ``left[i]`` and ``right[j]`` show the same picture,
    or its mirror image, of those that are ``asked`` for."""
    found = [np.empty((0, 2), np.int32)]
    for columns, theirs in _in_parts(right):
        both = [_words(theirs), _words(~theirs[:, :, ::-1])]
        for rows, ours in _in_parts(left):
            some, near = _words(ours), np.zeros((len(ours), len(theirs)), bool)
            most = [APART * np.minimum(_PLAIN, b.sum((1, 2))) // _PLAIN for b in (ours, theirs)]
            for others in both:
                apart = sum(
                    np.bitwise_count(some[:, k, None] ^ others[None, :, k]).astype(np.int16)
                    for k in range(4)
                )
                near |= apart <= np.maximum(most[0][:, None], most[1])
            i, j = np.nonzero(near)
            pairs = np.column_stack([rows[i], columns[j]])
            found.append(pairs[asked(*pairs.T)])
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])]


def _in_parts(
    looks: Sequence[str],
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    """Where there are looks, and their bits (n, 16, 16), so many at a time."""
    for start in range(0, len(looks), _AT_ONCE):
        given = [(i, text) for i, text in enumerate(looks[start : start + _AT_ONCE], start) if text]
        if not given:
            continue
        data = np.frombuffer(bytes.fromhex("".join(text for _, text in given)), np.uint8)
        bits = np.unpackbits(data).astype(bool).reshape(-1, _SIDE, _SIDE)
        yield np.array([i for i, _ in given], np.int32), bits


def _words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    return np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)
