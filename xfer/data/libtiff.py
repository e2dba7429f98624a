"""What libtiff finds wrong in a file. It would print that itself, without the file's name."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress

from PIL import _imaging


class _Found(threading.local):
    errors = 0


found = _Found()
"""How many errors libtiff has found in this thread."""


def _count(*_: object) -> None:
    found.errors += 1


_handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(_count)
# Not where Pillow holds its libtiff inside itself: there it goes on printing.
with suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(_handler)
