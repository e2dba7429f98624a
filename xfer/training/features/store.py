"""The output of a frozen prefix, computed once, kept as a memory map and verified at every use.

Features are numbers beside a JSON manifest: nothing here unpickles. The manifest holds the whole
key and the sha256 of the file; what does not agree with both is removed and computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import ConfigError, DataError, OutputError, printable
from xfer.core.files import atomic_write, write_json
from xfer.core.locks import waits
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.training.features.feature_dir import (
    Slot,
    check_room,
    locked,
    make_room,
    open_plain,
    part_of,
    told,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Compute = Callable[[], Iterable[torch.Tensor]]

_FORMAT = 1
_MAX_MANIFEST = 1 << 20
_MAX_DIMENSIONS = 16
# numpy has no bfloat16: its bits are kept.
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True, eq=False)
class Entry:
    """A finished array of shape (n, *feature shape) in the file ``path``.

    ``array`` is a private map of the verified file and stays valid when the file is removed;
    ``dtype`` is torch's name: float32, float16, or bfloat16, whose bits ``array`` has as uint16.
    ``hit`` says that it was not computed by this call.
    """

    path: Path
    array: np.memmap[Any, Any]
    dtype: str
    hit: bool


@dataclass(frozen=True)
class Store:
    """Entries in ``folder``, which processes may share: at most ``max_gb`` gigabytes (1e9 bytes).

    The least recently used entries make room for a new one.
    """

    folder: Path
    max_gb: float

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise ConfigError("features.max_gb", f"{self.max_gb} is no size", "type e.g. 20", 54)

    def entry(self, key: Plain, n: int, compute: Compute) -> Entry:
        """The entry of ``key`` with ``n`` rows; when there is none, one process computes it.

        ``compute`` yields tensors (rows, *feature shape) in order, on any device, all of one
        dtype: float32, float16 or bfloat16. For ``n=0`` it may yield none, which makes shape
        (0,) and float32. An entry is used only if manifest, key, size, header and sha256 agree;
        else it is removed with a warning and computed again. Raises OutputError for what cannot
        be written or is too large, DataError for tensors that do not fit.
        """
        slot, key = Slot(self.folder, digest(key)), json.loads(_text(key))
        # One for all waits, so that it is said once.
        waiting = waits(f"works on {slot.array}")
        while True:
            with locked(slot, fcntl.LOCK_SH, waiting):
                seen, found = slot.stamp(), _read(slot, key, n)
            if isinstance(found, Entry):
                make_room(self.folder, self.max_gb * 1e9, keep=slot)
                return found
            with locked(slot, fcntl.LOCK_EX, waiting):
                # Else somebody was faster: what is there now has to be looked at first.
                if slot.stamp() == seen:
                    return self._renewed(slot, key, n, compute, found)

    def forget(self, key: Plain, reason: str) -> None:
        """Remove the entry of ``key``, which is unsound for ``reason``; it is said."""
        with locked(slot := Slot(self.folder, digest(key)), fcntl.LOCK_EX):
            _clear(slot, reason)

    def _renewed(self, slot: Slot, key: Plain, n: int, compute: Compute, reason: str) -> Entry:
        """Compute the entry in place of what is unsound for ``reason``."""
        _clear(slot, reason)
        try:
            self._build(slot, key, n, compute)
            found = _read(slot, key, n)
            if isinstance(found, Entry):
                return replace(found, hit=False)
            what = f"reads back otherwise than it was written ({found or 'it is gone'})"
            advice = "check the disk, choose features.dir=DIR, or features=never"
            raise OutputError(slot.array, what, advice, 13)
        except BaseException:
            with suppress(OSError):
                slot.clear()
            raise

    def _build(self, slot: Slot, key: Plain, n: int, compute: Compute) -> None:
        # The file comes first: a folder that cannot be written must not cost a computation.
        with part_of(slot) as (part, put):
            chunks = iter(compute())
            first = next(chunks, None)
            form = _Form.of(first, n)
            check_room(slot, form.size, self.max_gb)
            sha256 = hashlib.sha256()
            for piece in _pieces(form, chain([] if first is None else [first], chunks)):
                put(piece)
                sha256.update(piece)
            with told(slot.array):
                atomic_write(slot.array, part.replace)
                facts = {"shape": form.shape, "dtype": form.dtype, "sha256": sha256.hexdigest()}
                write_json(slot.manifest, {"format": _FORMAT, "key": key, **facts})


def _clear(slot: Slot, reason: str) -> None:
    if reason:
        log.warning("%s: %s: computing it again", slot.array, reason)
    with told(slot.array):
        slot.clear()


@dataclass(frozen=True)
class _Form:
    """An array's outside: its shape, rows first, and torch's name of its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, first: torch.Tensor | None, n: int) -> _Form:
        """That of ``n`` rows like those of the first chunk."""
        if first is None:
            return cls((n,), "float32")
        dtype, dimensions = _name(first), len(first.shape)
        if dtype not in _STORED or not 0 < dimensions <= _MAX_DIMENSIONS:
            what = f"a {dtype} tensor of {dimensions} dimensions is no features that can be kept"
            raise DataError("features", what, "features=never", 62)
        return cls((n, *first.shape[1:]), dtype)

    @property
    def header(self) -> bytes:
        """The first bytes of the ``.npy`` file."""
        stream = io.BytesIO()
        facts = {"descr": _STORED[self.dtype], "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, facts)
        return stream.getvalue()

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + math.prod(self.shape) * np.dtype(_STORED[self.dtype]).itemsize


def digest(key: Plain) -> str:
    """The sha256, in hex, of ``key`` written as JSON with sorted names.

    Raises TypeError or ValueError for what is no JSON, NaN included.
    """
    return hashlib.sha256(_text(key).encode()).hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def rows(entry: Entry, indices: Sequence[int] | npt.NDArray[np.int64]) -> torch.Tensor:
    """A copy of those rows, on the CPU, in the entry's dtype: (len(indices), *feature shape).

    Raises IndexError for an index below 0 or not below n.
    """
    import torch

    whole = torch.from_numpy(entry.array).view(getattr(torch, entry.dtype))
    return whole.index_select(0, torch.from_numpy(np.asarray(indices, np.int64)))


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _pieces(form: _Form, chunks: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    """The bytes of the file, in order. Raises DataError for chunks that do not make it up."""
    yield memoryview(form.header)
    done, n = 0, form.shape[0]
    for chunk in chunks:
        if (_name(chunk), tuple(chunk.shape[1:])) != (form.dtype, form.shape[1:]):
            new = f"{_name(chunk)} {list(chunk.shape[1:])}"
            old = f"{form.dtype} {list(form.shape[1:])}"
            raise DataError("features", f"rows of {new} follow {old}", "features=never", 61)
        done += chunk.shape[0]
        if done > n:
            break
        yield _bits(chunk)
    if done != n:
        what = f"the network gives {'over ' * (done > n)}{min(done, n)} rows for {n} images"
        raise DataError("features", what, "features=never", 60)


def _bits(chunk: torch.Tensor) -> memoryview:
    chunk = chunk.detach().cpu().contiguous()
    if _name(chunk) == "bfloat16":
        import torch

        chunk = chunk.view(torch.uint16)
    return chunk.numpy().reshape(-1).view(np.uint8).data


class _Unsound(Exception):
    """What is wrong with a file that is there."""


def _read(slot: Slot, key: Plain, n: int) -> Entry | str:
    """The verified entry; else what is wrong with it, or nothing when there is none at all."""
    if slot.stamp() == (None, None):
        return ""
    try:
        form, sha256 = _form(_parsed(slot.manifest), key, n)
        entry = Entry(slot.array, _mapped(slot.array, form, sha256), form.dtype, hit=True)
    except (_Unsound, OSError, ValueError) as error:
        return printable(error)[:300]
    with suppress(OSError):
        os.utime(slot.manifest)
    return entry


def _parsed(path: Path) -> Plain:
    if not os.path.lexists(path):
        raise _Unsound("it has no manifest")
    with open_plain(path) as stream:
        text = stream.read(_MAX_MANIFEST)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unsound("its manifest is no JSON") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise _Unsound("its manifest is of another kind")
    return found


def _form(found: Plain, key: Plain, n: int) -> tuple[_Form, str]:
    if other := _differing(found.get("key"), key):
        raise _Unsound(f"its manifest is of another key ({', '.join(other)})")
    shape, dtype, sha256 = (found.get(name) for name in ("shape", "dtype", "sha256"))
    if not (isinstance(dtype, str) and dtype in _STORED and isinstance(sha256, str)):
        raise _Unsound("its manifest names no dtype or no sha256")
    if not (isinstance(shape, list) and 0 < len(shape) <= _MAX_DIMENSIONS):
        raise _Unsound("its manifest names no shape")
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise _Unsound("its manifest names no shape")
    if shape[0] != n:
        raise _Unsound(f"it has {shape[0]} rows, not {n}")
    return _Form(tuple(shape), dtype), sha256


def _differing(found: object, key: Plain) -> list[str]:
    """The fields in which they differ; 1, 1.0 and true are three values."""
    if not isinstance(found, dict):
        return ["all of it"]
    names = sorted({*found, *key})
    missing = [name for name in names if name not in found or name not in key]
    return missing or [name for name in names if _text(found[name]) != _text(key[name])]


def _mapped(path: Path, form: _Form, sha256: str) -> np.memmap[Any, Any]:
    """A private map of the file, once all its bytes are what they must be."""
    with open_plain(path) as stream:
        size, header = os.fstat(stream.fileno()).st_size, form.header
        if size != form.size:
            raise _Unsound(f"it has {size} bytes, not {form.size}")
        # Compared and not parsed: there is one way to write it.
        if stream.read(len(header)) != header:
            raise _Unsound("its header is not of the manifest's shape and dtype")
        stream.seek(0)
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise _Unsound("its sha256 is not the manifest's")
        return np.memmap(stream, _STORED[form.dtype], "c", len(header), form.shape)
