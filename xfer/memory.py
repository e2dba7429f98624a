"""Out of memory, told with the batch size that fits."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from xfer.errors import OutOfMemory

_TOLD = ("can't allocate memory", "not enough memory", "std::bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _TOLD)
    )


def too_large(key: str, size: int, step: Callable[[int], object]) -> OutOfMemory:
    """The error about batches of ``size`` images: halved until ``step`` of that size fits.

    To be called when nothing holds the failed step's tensors any more.
    """
    what, fitting = f"batches of {size} images take more memory than there is", size // 2
    while fitting:
        free()
        try:
            step(fitting)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            fitting //= 2
        else:
            return OutOfMemory(key, what, f"type {key}={fitting}, which was tried and fits", 1)
    free()
    return OutOfMemory(
        key, f"{what}, and so does one image", "choose a smaller backbone or image size", 2
    )


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
