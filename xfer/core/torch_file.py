"""Files that are either whole or absent, and tensors that are read without running code."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xfer.errors import OutputError, SafetyError, WeightsError
from xfer.files import open_to_read
from xfer.seal import seal, sealed
from xfer.types import Plain

# Holds for every torch.load in this process, also those inside libraries.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def cache_dir() -> Path:
    """Where xfer keeps what can be made again: ``$XFER_CACHE``, else ``~/.cache/xfer``."""
    return Path(os.environ.get("XFER_CACHE") or Path.home() / ".cache" / "xfer")


def path_problem(text: str) -> str:
    """Why no file can have this name, or nothing; that there is no such file is no reason."""
    try:
        os.lstat(Path(text).expanduser())
    except RuntimeError:
        return "names a home folder that is not there"
    except ValueError:
        return "holds a character that no file name can have"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "is longer than a path can be"
    return ""


def file_sha256(path: Path) -> str:
    """The sha256 of a regular file's bytes, in hex. Raises OSError for anything else."""
    with open_to_read(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the target folder, then rename it to ``path``.

    The bytes and the folder entry are synced before this returns, so a kill at any moment
    leaves the old file or the new one. Raises OutputError when the folder cannot be written.
    """
    part: Path | None = None
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{path.name}."
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=path.parent)
            os.close(handle)
            part = Path(name)
            write(part)
            part.chmod(0o666 & ~_umask())
            sync_folder(part)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(path: Path) -> None:
    """Have what a folder lists written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    # surrogateescape: a file name that is no UTF-8 must not stop the report about it.
    atomic_write(path, lambda part: part.write_bytes(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, facts: object) -> None:
    """Write ``facts`` as indented JSON, atomically. NaN is refused: it is no JSON."""
    write_text(path, json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def write_rows(path: Path, rows: Sequence[Plain]) -> None:
    """Write ``rows`` as CSV, atomically; the first has every column, and ``None`` is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def yaml_text(facts: Plain) -> str:
    """``facts`` as YAML, in their own order."""
    import yaml

    return str(yaml.safe_dump(facts, sort_keys=False))


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
            # What torch makes of a disk that is full.
            if not any(words in str(error) for words in _TORN):
                raise
            raise OSError(28, "No space left on device, or a failed write") from error
        seal(part)
        sync_folder(part)
        if not sealed(part):
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
        what = "is no regular file" if os.path.exists(path) else "there is no such file"  # noqa: PTH110
        raise WeightsError(path, what, "give the path of a checkpoint", 1)
    if sealed(path) is False:
        raise damaged(path)
    try:
        # An open file, because torch.load would trust a name that ends in .safetensors.
        with path.open("rb") as stream, warnings.catch_warnings():
            # A pickle of another protocol is read or refused; either says enough.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or ("Unsupported" in str(error) and _is_pickled(path)):
            raise SafetyError(
                path,
                "its pickle asks for more than tensors: " + _first_line(error),
                "save the bare state dict (torch.save(model.state_dict(), ...)) or use safetensors",
                20,
            ) from error
        raise _not_a_torch_file(path, error) from error
    except _DAMAGED as error:
        raise _not_a_torch_file(path, error) from error


_TORN = ("PytorchStreamWriter", "inline_container", "iostream error")


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
    return WeightsError(
        path,
        f"cannot be read as a torch file ({size} bytes; {_first_line(error)})",
        "check that the download is complete",
        2,
    )


def _first_line(error: Exception) -> str:
    # torch's advice to switch its check off is not passed on.
    text = str(error).partition(" Please use ")[0]
    lines = [s for line in text.splitlines() if (s := line.strip()) and "weights_only" not in s]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0][:160]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about an output into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            path,
            f"cannot be written ({error.strerror or error})",
            "free space or choose run.dir=DIR",
        ) from error
