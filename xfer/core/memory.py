"""Memory: freed memory is held for the next step, and where there is not enough, the error names
the batch size that fits."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from xfer.core.errors import OutOfMemory, plural

_MESSAGES = ("can't allocate memory", "not enough memory", "std::bad_alloc")
_ONEDNN = "could not create a primitive"
"""All that oneDNN says where it has no memory for the code it makes: of others it says more."""


def ran_out(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    known = said == _ONEDNN or any(words in said for words in _MESSAGES)
    return known or isinstance(error, MemoryError | torch.OutOfMemoryError)


def too_large(key: str, size: int, step: Callable[[int], object]) -> OutOfMemory:
    """The error about batches of ``size`` images: halved until ``step`` of that size fits.

    To be called when nothing holds the failed step's tensors any more.
    """
    what, fitting = (
        f"batches of {plural(size, 'image')} take more memory than there is",
        size // 2,
    )
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
    fix = "choose a smaller backbone or image size"
    return OutOfMemory(key, f"{what}, and so does one image", fix, 2)


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    give_back()


@contextmanager
def new_garbage_alone() -> Iterator[None]:
    """Within, a look for garbage passes over all that was there before: nearly all of that is
    libraries, and to go through them takes a third of a second, as long as to import a small one.

    What an earlier use in this process has left is collected first. Does nothing where somebody
    else has seen to it, with :func:`set_aside` or ``gc.freeze``.
    """
    global _used
    if _aside or gc.get_freeze_count():
        yield
        return
    if _used:
        gc.collect()
    _used = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def set_aside() -> None:
    """Have no later look for garbage go through what there is now, here and in forks. A fit need
    not count it then to know, which takes a twentieth of a second."""
    global _aside
    gc.freeze()
    _aside = True


_used = _aside = False


def give_back() -> None:
    """Give back what :func:`keep_freed` has held, without a look for garbage."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_LARGEST = (1 << 30, 1 << 25)
"""Bytes of one allocation: glibc before 2.35 takes no more than the second."""


def keep_freed() -> bool:
    """Have malloc keep up to 2 GB that a step frees for the next one; whether it does.

    glibc gives large tensors back to the system as soon as they are freed, and gets them again
    page by page, each cleared first: a fifth of a training step on the CPU went there. :func:`free`
    gives back what is kept. Does nothing where the user has set glibc's own variables or limits
    the address space, which counts what is kept, or where there is no glibc.
    """
    typed = [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if typed or limited or not hasattr(_LIBC, "mallopt"):
        return False
    large = any(_LIBC.mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
    return large and bool(_LIBC.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
