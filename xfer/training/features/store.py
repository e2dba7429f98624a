"""The output of a frozen prefix, computed once, stored as a memory map and verified at every use.

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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Len
from typing_extensions import TypedDict

from xfer.core.errors import ConfigError, DataError, OutputError, printable
from xfer.core.files import atomic_write, parsed, write_json
from xfer.core.locks import waits
from xfer.core.log import log
from xfer.core.read_back import checked
from xfer.core.types import Plain
from xfer.training.features.feature_dir import (
    EntryFiles,
    check_room,
    locked,
    make_room,
    open_plain,
    storage_errors,
    temporary_part,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Compute = Callable[[], Iterable[torch.Tensor]]

_FORMAT = 1
_MAX_MANIFEST = 1 << 20
_MAX_DIMENSIONS = 16
# numpy has no bfloat16: its bits are stored.
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "uint8": "|u1"}


@dataclass(frozen=True, eq=False)
class FeatureEntry:
    """A finished array of shape (n, *feature shape) in the file ``path``.

    ``array`` is a private map of the verified file and stays valid when the file is removed;
    ``dtype`` is torch's name: float32, float16, uint8 for bytes that are no features, or bfloat16,
    whose bits ``array`` has as uint16.
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
            what = f"{self.max_gb} is not above 0"
            raise ConfigError("features.max_gb", what, "type e.g. 20", 54)

    def entry(self, key: Plain, n: int, compute: Compute) -> FeatureEntry:
        """The entry of ``key`` with ``n`` rows; when there is none, one process computes it.

        ``compute`` yields tensors (rows, *feature shape) in order, on any device, all of one
        dtype: float32, float16 or bfloat16. For ``n=0`` it may yield none, which makes shape
        (0,) and float32. An entry is used only if manifest, key, size, header and sha256 agree;
        else it is removed with a warning and computed again. Raises OutputError for what cannot
        be written or is too large, DataError for tensors that do not fit.
        """
        files, key = EntryFiles(self.folder, digest(key)), json.loads(_text(key))
        # One for all waits, so that it is said once.
        waiting = waits(f"works on {files.array}")
        while True:
            with locked(files, fcntl.LOCK_SH, waiting):
                seen, stored = files.stamp(), _read(files, key, n)
            if isinstance(stored, FeatureEntry):
                make_room(self.folder, self.max_gb * 1e9, keep=files)
                return stored
            with locked(files, fcntl.LOCK_EX, waiting):
                # Else somebody was faster: what is there now has to be looked at first.
                if files.stamp() == seen:
                    return self._renewed(files, key, n, compute, stored)

    def content(self, key: Plain, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The bytes of ``key``, which ``make`` makes where there are none, and whether an earlier
        call had made them: an entry of one row. Raises as :meth:`entry`."""
        import torch

        def compute() -> Iterator[torch.Tensor]:
            yield torch.frombuffer(bytearray(make()), dtype=torch.uint8).unsqueeze(0)

        entry = self.entry(key, 1, compute)
        return entry.array.tobytes(), entry.hit

    def known(self, key: Plain) -> bytes | None:
        """The bytes of ``key``, verified as :meth:`entry` does; ``None`` where there are none, or
        they are unsound, which is said. Nothing is written or removed."""
        key = json.loads(_text(key))
        with locked(files := EntryFiles(self.folder, digest(key)), fcntl.LOCK_SH):
            stored = _read(files, key, 1)
        if isinstance(stored, FeatureEntry):
            return stored.array.tobytes()
        if stored:
            log.warning("%s: %s: it is not used", files.array, stored)
        return None

    def forget(self, key: Plain, reason: str) -> None:
        """Remove the entry of ``key``, which is unsound for ``reason``, with a warning; without a
        word where there is no reason."""
        with locked(files := EntryFiles(self.folder, digest(key)), fcntl.LOCK_EX):
            _clear(files, reason)

    def _renewed(
        self, files: EntryFiles, key: Plain, n: int, compute: Compute, reason: str
    ) -> FeatureEntry:
        """Compute the entry in place of what is unsound for ``reason``."""
        _clear(files, reason)
        try:
            self._build(files, key, n, compute)
            stored = _read(files, key, n)
            if isinstance(stored, FeatureEntry):
                return replace(stored, hit=False)
            what = f"is not what was written when it is read back ({stored or 'it is gone'})"
            advice = "check the disk, choose features.dir=DIR, or features=never"
            raise OutputError(files.array, what, advice, 13)
        except BaseException:
            with suppress(OSError):
                files.clear()
            raise

    def _build(self, files: EntryFiles, key: Plain, n: int, compute: Compute) -> None:
        # The file comes first: a folder that cannot be written must not cost a computation.
        with temporary_part(files) as (part, append):
            chunks = iter(compute())
            first = next(chunks, None)
            form = _Form((n,), "float32") if first is None else _form_of(first, n)
            check_room(files, form.size, self.max_gb)
            sha256 = hashlib.sha256()
            for piece in _pieces(form, chain([] if first is None else [first], chunks)):
                append(piece)
                sha256.update(piece)
            with storage_errors(files.array):
                atomic_write(files.array, part.replace)
                facts = {"shape": form.shape, "dtype": form.dtype, "sha256": sha256.hexdigest()}
                write_json(files.manifest, {"format": _FORMAT, "key": key, **facts})


def _clear(files: EntryFiles, reason: str) -> None:
    if reason:
        log.warning("%s: %s: computing it again", files.array, reason)
    with storage_errors(files.array):
        files.clear()


@dataclass(frozen=True)
class _Form:
    """An array's outside: its shape, rows first, and torch's name of its dtype."""

    shape: tuple[int, ...]
    dtype: str

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


def _form_of(rows: torch.Tensor, n: int) -> _Form:
    dtype, dimensions = str(rows.dtype).removeprefix("torch."), len(rows.shape)
    if dtype not in _STORED or not 0 < dimensions <= _MAX_DIMENSIONS:
        what = f"a {dtype} tensor of {dimensions} dimensions cannot be cached"
        raise DataError("features", what, "features=never", 62)
    return _Form((n, *rows.shape[1:]), dtype)


def digest(key: Plain) -> str:
    """The sha256, in hex, of ``key`` written as JSON with sorted names.

    Raises TypeError or ValueError for what is no JSON, NaN included.
    """
    return hashlib.sha256(_text(key).encode()).hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def rows(entry: FeatureEntry, indices: Sequence[int] | npt.NDArray[np.int64]) -> torch.Tensor:
    """A copy of those rows, on the CPU, in the entry's dtype: (len(indices), *feature shape).

    Raises IndexError for an index below 0 or not below n.
    """
    import torch

    return tensor_of(entry).index_select(0, torch.from_numpy(np.asarray(indices, np.int64)))


def tensor_of(entry: FeatureEntry) -> torch.Tensor:
    """The map itself as a tensor (n, *feature shape) in the entry's dtype, to read from."""
    import torch

    return torch.from_numpy(entry.array).view(getattr(torch, entry.dtype))


def _pieces(form: _Form, chunks: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    """The bytes of the file, in order. Raises DataError for chunks that do not make it up."""
    yield memoryview(form.header)
    done, n = 0, form.shape[0]
    for chunk in chunks:
        dtype = str(chunk.dtype).removeprefix("torch.")
        if (dtype, tuple(chunk.shape[1:])) != (form.dtype, form.shape[1:]):
            new, old = f"{dtype} {list(chunk.shape[1:])}", f"{form.dtype} {list(form.shape[1:])}"
            raise DataError("features", f"rows of {new} follow {old}", "features=never", 61)
        done += chunk.shape[0]
        if done > n:
            break
        chunk = chunk.detach().cpu().contiguous()
        if dtype == "bfloat16":
            import torch

            chunk = chunk.view(torch.uint16)
        yield chunk.numpy().reshape(-1).view(np.uint8).data
    if done != n:
        what = f"the network gives {'over ' * (done > n)}{min(done, n)} rows for {n} images"
        raise DataError("features", what, "features=never", 60)


class _Unsound(Exception):
    """What is wrong with a file that is there."""


class _Manifest(TypedDict):
    format: Literal[1]
    key: Plain
    shape: Annotated[list[Annotated[int, Ge(0)]], Len(1, _MAX_DIMENSIONS)]
    dtype: Literal["float32", "float16", "bfloat16", "uint8"]
    sha256: str


def _read(files: EntryFiles, key: Plain, n: int) -> FeatureEntry | str:
    """The verified entry; else what is wrong with it, or nothing when there is none at all."""
    if files.stamp() == (None, None):
        return ""
    try:
        manifest = _checked_manifest(files.manifest, key, n)
        form = _Form(tuple(manifest["shape"]), manifest["dtype"])
        array = _mapped(files.array, form, manifest["sha256"])
    except (_Unsound, OSError, ValueError) as error:
        return printable(error)[:300]
    with suppress(OSError):
        os.utime(files.manifest)
    return FeatureEntry(files.array, array, form.dtype, hit=True)


def _checked_manifest(path: Path, key: Plain, n: int) -> _Manifest:
    if not os.path.lexists(path):
        raise _Unsound("it has no manifest")
    with open_plain(path) as stream:
        text = stream.read(_MAX_MANIFEST)
    try:
        manifest: _Manifest = checked(_Manifest, parsed(text.decode()))
    except ValueError as error:
        raise _Unsound(f"its manifest is not what xfer writes ({error})") from error
    # As text, in which 1, 1.0 and true are three values.
    stored, wanted = ({k: _text(v) for k, v in facts.items()} for facts in (manifest["key"], key))
    if stored != wanted:
        names = sorted(stored.keys() ^ wanted.keys())
        names = names or [name for name in sorted(stored) if stored[name] != wanted[name]]
        raise _Unsound(f"its manifest is of another key ({', '.join(names)})")
    if manifest["shape"][0] != n:
        raise _Unsound(f"it has {manifest['shape'][0]} rows, not {n}")
    return manifest


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
