"""Tensors in files: written whole, and read without running code."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xfer.core.checksum import add_checksum, checksum_holds
from xfer.core.errors import SafetyError, WeightsError
from xfer.core.files import atomic_write, sync_folder
from xfer.core.types import Plain

_PLAIN_FILE = "save the bare state dict (torch.save(model.state_dict(), ...)) or use safetensors"
# Words of torch's errors about a disk that is full.
_TORN = ("PytorchStreamWriter", "inline_container", "iostream error")


def save_tensors(path: Path, facts: Plain, before: Callable[[], object] | None = None) -> None:
    """Save plain facts and tensors with ``torch.save``, atomically and with their sha256 inside.

    ``before`` is called when the new file is whole and read back, before it takes its name.
    """
    import torch

    def write(part: Path) -> None:
        try:
            # A stream: of a path, torch makes the temporary name a part of the file's content.
            with part.open("wb") as stream:
                torch.save(facts, stream)
        except RuntimeError as error:
            if not any(words in str(error) for words in _TORN):
                raise
            raise OSError(28, "No space left on device, or a failed write") from error
        add_checksum(part)
        sync_folder(part)
        if not checksum_holds(part):
            raise OSError(5, "reads back otherwise than it was written")
        if before is not None:
            before()

    atomic_write(path, write)


def load_tensors(path: Path) -> Any:
    """Read a torch file with ``weights_only=True`` onto the CPU.

    Raises WeightsError when it is missing, damaged or no torch file, SafetyError when it asks for
    code.
    """
    import pickle

    import torch

    if not os.path.isfile(path):  # unlike Path, also of a name that is too long  # noqa: PTH113
        what = "is not a regular file" if os.path.exists(path) else "there is no such file"  # noqa: PTH110
        raise WeightsError(path, what, "give the path of a checkpoint", 1)
    if checksum_holds(path) is False:
        raise damaged(path)
    try:
        # An open file, because torch.load would trust a name that ends in .safetensors.
        with path.open("rb") as stream, warnings.catch_warnings():
            # A pickle of another protocol is read or refused; either says enough.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or ("Unsupported" in str(error) and _is_pickled(path)):
            what = f"its pickle asks for more than tensors: {_first_line(error)}"
            raise SafetyError(path, what, _PLAIN_FILE, 20) from error
        raise _not_a_torch_file(path, error) from error
    except _DAMAGED as error:
        raise _not_a_torch_file(path, error) from error


def damaged(path: Path) -> WeightsError:
    """The error about a file whose bytes are not those that were written."""
    what = "is damaged: its bytes do not match the sha256 inside"
    return WeightsError(path, what, "use another copy of the file", 9)


# What torch's reader was seen to raise on damaged bytes.
_DAMAGED = (
    *(OSError, RuntimeError, EOFError, ValueError),
    *(LookupError, AssertionError, TypeError, AttributeError, struct.error),
    *(ArithmeticError, MemoryError),
)


def _is_pickled(path: Path) -> bool:
    """Whether the file starts as torch's files do; a web page or a pointer asks for nothing."""
    with path.open("rb") as stream:
        return stream.read(2).startswith((b"PK", b"\x80"))


def _not_a_torch_file(path: Path, error: Exception) -> WeightsError:
    size = path.stat().st_size
    what = f"cannot be read as a torch file ({size} bytes; {_first_line(error)})"
    return WeightsError(path, what, "check that the download is complete", 2)


def _first_line(error: Exception) -> str:
    # torch's advice to switch its check off is not passed on.
    text = str(error).partition(" Please use ")[0]
    lines = [s for line in text.splitlines() if (s := line.strip()) and "weights_only" not in s]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0][:160]
