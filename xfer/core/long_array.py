"""Arrays with a row an image, of which there may be millions."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LONG = 1 << 21
"""Bytes from which on an array is in a file."""


def zeros(shape: tuple[int, ...], form: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros. A large one is mapped from a file without a name in the folder of
    temporary files, which the system can take the memory of; it goes with the last use of it. In
    plain memory where that folder has no room, and where none can be reserved (macOS)."""
    size = math.prod(shape) * np.dtype(form).itemsize
    if size >= LONG and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            # A map of what the disk has no room for would end the process when it is written to.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, form, "r+", 0, shape)
    return np.zeros(shape, form)


def concatenated(parts: Sequence[npt.NDArray[Any]], axis: int = 0) -> npt.NDArray[Any]:
    """``parts`` after each other along an axis, in an array as :func:`zeros` makes it."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    made = zeros(tuple(shape), np.result_type(*parts))
    np.concatenate(parts, axis, out=made)
    return made


def copied(values: npt.ArrayLike, form: npt.DTypeLike) -> npt.NDArray[Any]:
    """``values`` as numbers of ``form``, in an array as :func:`zeros` makes it."""
    given = np.asarray(values)
    made = zeros(given.shape, form)
    made[...] = given
    return made
