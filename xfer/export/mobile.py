"""What the formats of phones have in common: files of one image at a time, by compilers that print
their progress past Python, on the process's own descriptors."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np

from xfer.core.protocols import Runner
from xfer.core.types import Array


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed inside, not by libraries in C++ either; exceptions come out as ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        # Python's own two as well: they need not write to the process's.
        with (
            os.fdopen(os.dup(nowhere), "w") as lost,
            redirect_stdout(lost),
            redirect_stderr(lost),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, handle in enumerate(before, 1):
            os.dup2(handle, descriptor)
            os.close(handle)
        os.close(nowhere)


def one_at_a_time(run: Runner) -> Runner:
    """A function of (n, 3, h, w) that asks ``run`` for one image after the other."""

    def answers(images: Array) -> Array:
        each = (np.ascontiguousarray(images[i : i + 1]) for i in range(len(images)))
        return np.concatenate([run(image) for image in each])

    return answers
