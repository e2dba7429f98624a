"""What a file is, told by its content and never by its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from xfer.weights.formats.zip_check import peek

TORCH, LEGACY, SAFETENSORS, NPZ = "torch zip", "torch legacy pickle", "safetensors", "npz"
HEAD = 64 * 1024

# How torch.save began every file before torch 1.6: a pickle of a long magic number.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (_LEGACY_MAGIC, LEGACY),
    (b"version https://git-lfs.github.com/spec/", "git-LFS pointer"),
    (b"\x93NUMPY", "npy"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"GGUF", "GGUF"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"II*\x00", "image"),
    (b"MM\x00*", "image"),
    (b"%PDF-", "PDF"),
    (b"\x12\x01\x00\x00\x00\x00\x00\x00", "MXNet"),
)
# The members of torch's very first format, in the order in which it wrote them.
_OF_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")
_TF_INDEX_END = bytes.fromhex("57fb808b247547db")


def kind_of(path: Path) -> str:
    """What ``path`` is: a kind that :mod:`xfer.weights.formats.read` reads, one of MindSpore's, or
    one of :data:`xfer.weights.formats.foreign.FOREIGN`.

    Only regular files are opened, so a FIFO never blocks. An xfer checkpoint is a ``torch zip``
    here. Never raises for what the file holds.
    """
    place = _place(path)
    if place is not None:
        return place
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return "unreadable"
    with os.fdopen(handle, "rb") as stream:
        head = stream.read(HEAD)
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - 8))
        tail = stream.read(8)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _of_zip(*peek(path))
    return next(kind for ask in _QUESTIONS if (kind := ask(head, size, tail)) is not None)


def _place(path: Path) -> str | None:
    """What ``path`` is when it is no regular file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            return "unreadable"
        return "dangling link" if _is_link(path) else "missing"
    if stat.S_ISDIR(mode):
        return "directory"
    return None if stat.S_ISREG(mode) else "FIFO or device"


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def _of_zip(names: list[str], whole: bool) -> str:
    below = {name.partition("/")[2] for name in names}
    if "constants.pkl" in below:
        return "TorchScript"
    if "archive_format" in below or any(n.startswith("models/") for n in below):
        return "torch.export"
    if "data.pkl" in below:
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if "model.weights.h5" in names:
        return "Keras"
    return "zip" if whole else "broken zip"


def _by_magic(head: bytes, size: int, tail: bytes) -> str | None:
    if not head.strip(b"\x00"):
        return "zeros" if head else "empty"
    if tail == _TF_INDEX_END or head[4:8] == b"TFL3":
        return "TensorFlow"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image"
    if head[257:262] == b"ustar":
        return "torch tar" if head[:100].rstrip(b"\x00").strip(b"./") in _OF_TAR else "tar"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _safetensors(head: bytes, size: int, tail: bytes) -> str | None:
    # Also where the header is cut: only safetensors has a small number and then a brace.
    length = int.from_bytes(head[:8], "little")
    return SAFETENSORS if head[8:9] == b"{" and 2 <= length < 1 << 32 else None


def _mindspore(head: bytes, size: int, tail: bytes) -> str | None:
    from xfer.weights.mindspore.ckpt import is_mindspore_ckpt
    from xfer.weights.mindspore.mindir_tensors import is_mindir
    from xfer.weights.mindspore.tensors import is_encrypted

    if is_encrypted(head):
        return "MindSpore encrypted"
    if is_mindir(head, size):
        return "mindir"
    return "MindSpore checkpoint" if is_mindspore_ckpt(head, size) else None


def _markup(head: bytes, size: int, tail: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith(b"<") and (b"<html" in start or b"<!doctype html" in start):
        return "HTML"
    if start.startswith((b"<head", b"<script", b"<body", b"<!--")):
        return "HTML"
    if start.startswith(b"<?xml") or start.startswith(b"<error"):
        return "XML"
    if start.startswith((b'{"', b"{\n", b"{\r", b"{ ", b"{}", b"[")) and _text(head):
        return "sharded index" if b'"weight_map"' in head else "JSON"
    return None


def _protobuf(head: bytes, size: int, tail: bytes) -> str | None:
    """ONNX starts with its version and a producer's name; TensorFlow's graphs with a node."""
    if b"\x12\x05Const" in head or b"\x12\x0bPlaceholder" in head:
        return "TensorFlow"
    if len(head) < 4 or head[0] != 0x08 or not 0 < head[1] < 64:
        return None
    if head[2] != 0x12:
        return "ONNX" if head[2] in (0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42) else None
    return "ONNX" if _text(head[4 : 4 + min(head[3], 32)]) else "TensorFlow"


def _pickle(head: bytes, size: int, tail: bytes) -> str | None:
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    # Protocol 0 is text: a name after c, or a mark and an opcode.
    looks = head[:1] in (b"c", b"(", b"]", b"}") and size < HEAD and tail.rstrip().endswith(b".")
    return "pickle" if looks and b"\n" in head else None


def _text(part: bytes) -> bool:
    text = part[:1000].decode("utf-8", "ignore")
    enough = len(text.encode()) + 3 >= len(part[:1000])
    return enough and all(c.isprintable() or c in "\r\n\t\f" for c in text)


def _rest(head: bytes, size: int, tail: bytes) -> str:
    return "text" if _text(head) else "unknown"


_Question = Callable[[bytes, int, bytes], str | None]
_QUESTIONS: tuple[_Question, ...] = (
    *(_by_magic, _safetensors, _markup, _mindspore),
    *(_protobuf, _pickle, _rest),
)
