"""What worker processes of a loader share, where the system has little of it or none.

A container has 64 MB in ``/dev/shm`` unless it is given more, which is less than four batches of
photographs; torch's workers then hand over nothing and the loader waits for ever.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from xfer.core.log import log

SHARED = Path("/dev/shm")
"""Where Linux keeps shared memory. Other systems have no such folder, and no such bound."""
_LEAST = 1 << 20
"""Bytes for the locks of a few loaders, a page each."""


def has_locks() -> bool:
    """Whether processes can have locks together, without which there are no workers."""
    free = free_bytes()
    if free is not None and free < _LEAST:
        return False
    try:
        get_context().Lock()
    except OSError:
        return False
    return True


def free_bytes() -> int | None:
    """Bytes that are free in shared memory; ``None`` where nothing says so."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return None


def handed_over(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """The batch that ``collate`` makes of ``items``, in shared memory; where that is full, as
    arrays, which go through a pipe: see :func:`as_tensors`.

    It is shared here, since torch would do it in a thread of which nobody hears the error.
    """
    import torch

    batch = collate(items)
    try:
        return _mapped(batch, torch.Tensor, torch.Tensor.share_memory_)
    except RuntimeError:
        return _mapped(batch, torch.Tensor, torch.Tensor.numpy)


def as_tensors(batch: Any) -> Any:
    """A batch whose arrays are tensors again. That there are some is said once a process."""
    import numpy as np
    import torch

    def tensor(array: Any) -> Any:
        say_once(f"{SHARED} does not take batches: they come through pipes, which is slower")
        return torch.from_numpy(array)

    return _mapped(batch, np.ndarray, tensor)


@cache
def say_once(what: str) -> None:
    """Log what is so for every batch."""
    log.info(what)


def _mapped(batch: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, tuple | list):
        return type(batch)(_mapped(part, kind, change) for part in batch)
    return change(batch) if isinstance(batch, kind) else batch
