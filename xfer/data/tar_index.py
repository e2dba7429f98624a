"""What is in a plain tar file of images, and at which bytes: its headers are read once.

Images and labels are called as WebDataset (Aizman et al. 2019, https://arxiv.org/abs/2001.01858)
calls them: ``KEY.jpg`` and ``KEY.cls``, or ``KEY.json`` with a ``label``, or with ``labels`` where
an image may have several; the key ends at the first dot. An uncompressed tar file needs no
unpacking: an image is read by one call at its offset. A tar file may be a stranger's, so what is
no plain file with a plain name is refused. Results are cached by path, size, mtime and ctime.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from xfer.config.verbs import quoted
from xfer.core.errors import DataError, OutputError, XferError, printable
from xfer.core.files import cache_dir, handle_of, parsed, read_json, write_text
from xfer.core.read_back import checked
from xfer.data.image import SUFFIXES
from xfer.data.image_bytes import MAX_BYTES, stamp_of

COMPRESSED = {
    **dict.fromkeys((".tar.gz", ".tgz", ".tar.z"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
"""How a compressed tar file is called, and what makes a plain one of it."""
_MAGIC = {
    b"\x1f\x8b": (".gz", "gunzip"),
    b"BZh": (".bz2", "bunzip2"),
    b"\xfd7zXZ\0": (".xz", "unxz"),
    b"\x28\xb5\x2f\xfd": (".zst", "unzstd"),
}
_CACHE_VERSION = 2
_LARGEST_CACHE = 1 << 30
_LONGEST_HEADER = 1 << 20  # bytes; a name in a header of its own has some hundred
_LONGEST_LABEL = 1 << 16
_LABELS = ("cls", "json")
_BLOCK = tarfile.BLOCKSIZE
_ANEW = "write it again, with plain files of images and labels alone"


class TarSample(NamedTuple):
    """One image of a tar file: its key, its suffix without the dot, where its bytes start and how
    many they are, and what its label says: one, or several as JSON, of which either may be
    empty."""

    key: str
    suffix: str
    start: int
    size: int
    label: str
    several: str = ""

    @property
    def name(self) -> str:
        """What it is called in the tar file."""
        return f"{self.key}.{self.suffix}"


class TarIndex(NamedTuple):
    """The images of a tar file in their order; of what was left out, by reason, the count and the
    first name."""

    samples: tuple[TarSample, ...]
    left_out: dict[str, tuple[int, str]]


class _Member(NamedTuple):
    """A member while its tar file is read."""

    name: str
    start: int
    size: int


class _Cached(NamedTuple):
    version: int
    stamp: str
    samples: list[tuple[str, str, int, int, str, str]]
    left_out: dict[str, tuple[int, str]]


def index_of(path: Path, labelled: bool = True) -> TarIndex:
    """The images in the tar file ``path``, with their labels, or as if they had none.

    Raises DataError, naming the file, for what is no whole plain tar file, for members that are no
    plain files below it, and for images and labels that do not go together.
    """
    try:
        handle = handle_of(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    with os.fdopen(handle, "rb") as stream:
        stamp = stamp_of(os.fstat(handle))
        for with_labels in {True, labelled}:  # what is known with labels serves without
            if known := _cached(path, stamp, with_labels):
                return known
        _refuse_compressed(path, stream)
        index = _together(path, list(_members(path, stream)), handle, labelled)
        if stamp == stamp_of(os.fstat(handle)):
            _cache(path, stamp, labelled, index)
    return index


def _unreadable(path: Path, reason: str) -> DataError:
    what = f"cannot be read as a tar file ({reason})"
    return DataError(path, what, "copy or write it again", 79)


def _refuse_compressed(path: Path, stream: IO[bytes]) -> None:
    head = stream.read(8)
    stream.seek(0)
    for magic, (ending, command) in _MAGIC.items():
        if head.startswith(magic):
            what = "is compressed, and an image in the middle of it cannot be read alone"
            whole = quoted(f"{path}{ending}")
            fix = f"type mv {quoted(str(path))} {whole} && {command} {whole}"
            raise DataError(path, what, fix, 78)


class _Bounded(io.RawIOBase):
    """A file of which no header takes more memory than a header needs."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header of more than {_LONGEST_HEADER} bytes")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _members(path: Path, stream: IO[bytes]) -> Iterator[_Member]:
    """The plain files in a tar file, in order."""
    names: set[str] = set()
    end = 0
    try:
        bounded = cast("IO[bytes]", _Bounded(stream))
        with tarfile.open(fileobj=bounded, mode="r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if info.offset < end or info.size < 0:
                    raise ValueError("its headers lead backwards")
                end = info.offset_data + info.size
                name = info.name.removeprefix("./")
                if info.isdir():
                    continue
                _refuse_member(path, name, info)
                if name in names:
                    raise DataError(path, f"has two members '{name}'", _ANEW, 80)
                names.add(name)
                yield _Member(name, info.offset_data, info.size)
            _check_end(stream, -(-end // _BLOCK) * _BLOCK)
    except XferError:
        raise
    except Exception as error:  # tarfile raises more than errors of its kind
        raise _unreadable(path, printable(error) or type(error).__name__) from error


def _refuse_member(path: Path, name: str, info: tarfile.TarInfo) -> None:
    reason = ""
    if not info.isreg() or info.issparse():
        kinds = {"a link": info.issym() or info.islnk(), "a sparse file": info.issparse()}
        reason = next((kind for kind, it_is in kinds.items() if it_is), "a device or a pipe")
    elif not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        reason = "a name that leads out of its folder"
    elif info.size > MAX_BYTES:
        reason = f"{info.size} bytes; more than {MAX_BYTES}"
    if reason:
        raise DataError(path, f"its member '{name}' is refused: {reason}", _ANEW, 80)


def _check_end(stream: IO[bytes], end: int) -> None:
    """Raise ValueError unless there are zeros from the byte ``end`` on, a block of them or more:
    tarfile ends in silence at a header that is damaged."""
    stream.seek(end)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise ValueError(f"it is cut off at byte {end}")
    while block:
        if block.count(0) != len(block):
            raise ValueError(f"it is damaged, or a second tar file begins, after byte {end}")
        block = stream.read(1 << 20)


def _together(path: Path, members: list[_Member], handle: int, labelled: bool) -> TarIndex:
    """Images with their labels, where they are ``labelled``. Raises DataError for one without the
    other."""
    images: dict[str, _Member] = {}
    labels: dict[str, dict[str, _Member]] = {}
    left_out: dict[str, tuple[int, str]] = {}
    for found in members:
        folder, slash, base = found.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = f"{folder}{slash}{stem}", suffix.lower()
        if stem and f".{suffix}" in SUFFIXES:
            if key in images:
                what = f"the key '{key}' has two images, '{images[key].name}' and '{found.name}'"
                raise DataError(path, what, "write it again, with one image a key", 81)
            images[key] = found
        elif stem and suffix in _LABELS:
            if labelled:
                labels.setdefault(key, {})[suffix] = found
        else:
            why = "neither an image nor a label" if stem else "hidden"
            count, first = left_out.get(why, (0, found.name))
            left_out[why] = count + 1, first
    for key in labels.keys() - images.keys():
        if "cls" in labels[key]:
            what = f"the label '{key}.cls' has no image beside it"
            raise DataError(path, what, "write it again, with an image for every label", 81)
    samples = [
        TarSample(key, one.name[len(key) + 1 :], one.start, one.size, *said)
        for key, one in images.items()
        for said in [_label(path, one, labels.get(key, {}), handle) if labelled else ("", "")]
    ]
    return TarIndex(tuple(samples), left_out)


def _label(path: Path, image: _Member, files: dict[str, _Member], handle: int) -> tuple[str, str]:
    """What ``KEY.cls`` says, or the ``label`` and the ``labels`` in ``KEY.json``."""
    fix = "write a KEY.cls, or a KEY.json with a label or labels, beside every KEY.jpg"
    found = files.get("cls") or files.get("json")
    if found is None:
        raise DataError(path, f"the image '{image.name}' has no label", fix, 81)
    reason = "it is longer than a label"
    try:
        if found.size <= _LONGEST_LABEL:
            text = os.pread(handle, found.size, found.start).decode("utf-8", "surrogateescape")
            label, several = (text.strip(), "") if "cls" in files else _in_json(text)
            if (label or several) and label.isprintable():
                return label, several
            reason = "it holds no label of one line"
    except ValueError as error:
        reason = str(error)
    raise DataError(path, f"'{found.name}' is no label: {reason}", fix, 81)


def _in_json(text: str) -> tuple[str, str]:
    facts = parsed(text)
    facts = facts if isinstance(facts, dict) else {}
    label, several = facts.get("label"), ""
    if "labels" in facts:
        several = json.dumps([_texts(facts, key) for key in ("labels", "unknown")])
    if label is None and several:
        return "", several
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ValueError("'label' is neither text nor a whole number")
    return str(label).strip(), several


def _texts(facts: dict[str, object], key: str) -> list[str]:
    """A list of labels as texts. Raises ValueError for what is none."""
    given = facts.get(key, [])
    if not isinstance(given, list):
        raise ValueError(f"'{key}' is no list")
    texts = [str(one).strip() for one in given if isinstance(one, int | str)]
    if len(texts) < len(given) or not all(text and text.isprintable() for text in texts):
        raise ValueError(f"'{key}' has an entry that is neither text nor a whole number")
    return texts


def _cache_file(path: Path, labelled: bool) -> Path:
    place = os.fsencode(path.resolve()) + b"\0" * (not labelled)
    name = hashlib.sha256(place).hexdigest()[:24]
    return cache_dir() / "shards" / f"{name}.json"


def _cached(path: Path, stamp: str, labelled: bool) -> TarIndex | None:
    try:
        facts = checked(_Cached, read_json(_cache_file(path, labelled), _LARGEST_CACHE))
    except (OSError, ValueError):
        return None  # a cache that cannot be read is made again
    if (facts.version, facts.stamp) != (_CACHE_VERSION, stamp):
        return None
    return TarIndex(tuple(TarSample(*row) for row in facts.samples), facts.left_out)


def _cache(path: Path, stamp: str, labelled: bool, index: TarIndex) -> None:
    try:
        write_text(_cache_file(path, labelled), json.dumps([_CACHE_VERSION, stamp, *index]))
    except OutputError:
        return  # a read-only home costs the next run its look, nothing else
