"""What a file is, by its content and never by its name; and where it is no weights, what to do."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from xfer.core.errors import SafetyError, WeightsError, XferError, first_few
from xfer.weights.formats.zip_check import peek

TORCH, LEGACY, SAFETENSORS, NPZ = "torch checkpoint", "torch legacy pickle", "safetensors", "npz"
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

_AGAIN = "fetch it again and compare its size"
_TORCH = "give the torch or safetensors file of the same weights"
_UNPACK = "unpack it and give the file of weights inside"
_MINDSPORE = "type source=mindspore source.path="

FOREIGN = {
    # A kind that cannot be read as weights: what it is, the remedy, the error's number.
    "missing": ("there is no such file", "give source.path=FILE", 1),
    "dangling link": ("is a link to a file that is not there", "fetch the file again", 80),
    "directory": ("is a folder, not a file", "give the file of weights inside it", 80),
    "FIFO or device": ("is a pipe, socket or device, not a file", "give a regular file", 80),
    "unreadable": ("may not be read (permission denied)", "change its permissions (chmod)", 80),
    "empty": ("is empty (0 bytes)", _AGAIN, 81),
    "zeros": ("holds zero bytes where its start must be", _AGAIN, 81),
    "git-LFS pointer": ("is a git-LFS pointer, not the file itself", "run git lfs pull", 81),
    "HTML": (
        "is an HTML page: the address gives a web page, not the file",
        "use the file's own download address (Hugging Face: resolve in place of blob)",
        81,
    ),
    "OpenVINO": ("is an OpenVINO network", _TORCH, 82),
    "XML": ("is XML, most often a server's error message", "check the address, fetch it again", 81),
    "JSON": ("is JSON text, not weights", "give the file of weights beside it", 81),
    "text": ("is a text file", "give the file of weights", 81),
    "ONNX": ("is an ONNX network", _TORCH, 82),
    "HDF5": ("is an HDF5 file, as Keras writes them", _TORCH, 82),
    "Keras": ("is a Keras network", _TORCH, 82),
    "TensorFlow": ("is a TensorFlow file", _TORCH, 82),
    "GGUF": ("is a GGUF file of a language model", _TORCH, 82),
    "MXNet": ("is an MXNet file", _TORCH, 82),
    "image": ("is an image", "give the file of weights", 82),
    "PDF": ("is a PDF document", "give the file of weights", 82),
    "npy": ("is a single numpy array (.npy)", "save the arrays by name: numpy.savez(...)", 82),
    "torch.export": ("is a program of torch.export (.pt2)", "save its state_dict", 82),
    "torch tar": ("is a .tar of torch 0.1, which is read by running it", _TORCH, 82),
    "unknown": ("is not a file of weights that xfer knows", _TORCH, 82),
    "gzip": ("is packed with gzip", "unpack it first: gunzip FILE", 83),
    "bzip2": ("is packed with bzip2", "unpack it first: bunzip2 FILE", 83),
    "xz": ("is packed with xz", "unpack it first: unxz FILE", 83),
    "zstd": ("is packed with zstd", "unpack it first: unzstd FILE", 83),
    "broken zip": ("is a zip archive that is cut or damaged", _AGAIN, 2),
    "7z": ("is a 7z archive", _UNPACK, 83),
    "rar": ("is a rar archive", _UNPACK, 83),
    "tar": ("is a tar archive", _UNPACK, 83),
    "zip": ("is a zip archive that holds no weights of torch or numpy", _UNPACK, 83),
}
OF_MINDSPORE = {
    "MindSpore checkpoint": ("is a MindSpore checkpoint", _MINDSPORE, 84),
    "MindSpore safetensors": ("is a safetensors file of MindSpore", _MINDSPORE, 84),
    "MindSpore encrypted": (
        "is an encrypted MindSpore checkpoint",
        "save it without enc_key; " + _MINDSPORE,
        84,
    ),
    "mindir": ("is a MindIR network of MindSpore", _MINDSPORE, 84),
}


def kind_of(path: Path) -> str:
    """What ``path`` is: a kind that :mod:`xfer.weights.formats.read` reads, one of MindSpore's, or
    one of :data:`FOREIGN`.

    Only regular files are opened, so a FIFO never blocks. An xfer checkpoint is a
    ``torch checkpoint`` here. Never raises for what the file holds.
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
    return (
        _by_magic(head, tail)
        or _markup(head)
        or _mindspore(head, size)
        or _protobuf(head)
        or _pickle(head, size, tail)
        or ("text" if _is_text(head) else "unknown")
    )


def _place(path: Path) -> str | None:
    """What ``path`` is when it is no regular file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            return "unreadable"
        try:
            return "dangling link" if path.is_symlink() else "missing"
        except (OSError, ValueError):
            return "missing"
    if stat.S_ISDIR(mode):
        return "directory"
    return None if stat.S_ISREG(mode) else "FIFO or device"


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


def _by_magic(head: bytes, tail: bytes) -> str | None:
    if not head.strip(b"\x00"):
        return "zeros" if head else "empty"
    if tail == _TF_INDEX_END or head[4:8] == b"TFL3":
        return "TensorFlow"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image"
    if head[257:262] == b"ustar":
        return "torch tar" if head[:100].rstrip(b"\x00").strip(b"./") in _OF_TAR else "tar"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    # Also where the header is cut: only safetensors has a small number and then a brace.
    length = int.from_bytes(head[:8], "little")
    return SAFETENSORS if head[8:9] == b"{" and 2 <= length < 1 << 32 else None


def _mindspore(head: bytes, size: int) -> str | None:
    from xfer.weights.mindspore.ckpt import is_mindspore_ckpt
    from xfer.weights.mindspore.mindir_tensors import is_mindir
    from xfer.weights.mindspore.tensors import is_encrypted

    if is_encrypted(head):
        return "MindSpore encrypted"
    if is_mindir(head, size):
        return "mindir"
    return "MindSpore checkpoint" if is_mindspore_ckpt(head, size) else None


def _markup(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith(b"<") and (b"<html" in start or b"<!doctype html" in start):
        return "HTML"
    if start.startswith((b"<head", b"<script", b"<body", b"<!--")):
        return "HTML"
    if start.startswith(b"<?xml") or start.startswith(b"<error"):
        return "OpenVINO" if b"<net " in head else "XML"
    if start.startswith((b'{"', b"{\n", b"{\r", b"{ ", b"{}", b"[")) and _is_text(head):
        return "sharded index" if b'"weight_map"' in head else "JSON"
    return None


def _protobuf(head: bytes) -> str | None:
    """ONNX starts with its version and a producer's name; TensorFlow's graphs with a node."""
    if b"\x12\x05Const" in head or b"\x12\x0bPlaceholder" in head:
        return "TensorFlow"
    if len(head) < 4 or head[0] != 0x08 or not 0 < head[1] < 64:
        return None
    if head[2] != 0x12:
        return "ONNX" if head[2] in (0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42) else None
    return "ONNX" if _is_text(head[4 : 4 + min(head[3], 32)]) else "TensorFlow"


def _pickle(head: bytes, size: int, tail: bytes) -> str | None:
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    # Protocol 0 is text: a name after c, or a mark and an opcode.
    looks = head[:1] in (b"c", b"(", b"]", b"}") and size < HEAD and tail.rstrip().endswith(b".")
    return "pickle" if looks and b"\n" in head else None


def _is_text(part: bytes) -> bool:
    text = part[:1000].decode("utf-8", "ignore")
    enough = len(text.encode()) + 3 >= len(part[:1000])
    return enough and all(c.isprintable() or c in "\r\n\t\f" for c in text)


def refusal(path: Path, kind: str) -> XferError:
    """The error that says what ``path`` is and what to do. ``kind`` is not one that is read."""
    if kind == "sharded index":
        return _sharded(path)
    if kind == "TorchScript":
        fix = "save its state dict: torch.save(model.state_dict(), ...)"
        return SafetyError(path, "is a TorchScript archive: a program, more than tensors", fix, 25)
    what, fix, number = {**FOREIGN, **OF_MINDSPORE}[kind]
    if fix.endswith("source.path="):
        fix += str(path)
    if kind in ("unknown", "text"):
        with path.open("rb") as stream:
            what += f" (begins with {repr(stream.read(24))[1:]})"
    return WeightsError(path, what, fix, number)


def _sharded(path: Path) -> WeightsError:
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    names = re.findall(rb'"([^"\\/]{1,200}\.(?:safetensors|bin|pt|pth))"', head)
    parts = list(dict.fromkeys(name.decode("utf-8", "replace") for name in names))
    named = f" ({first_few(parts, 3)})" if parts else ""
    fix = "join the files into one: torch.save({**part_1, **part_2}, FILE)"
    return WeightsError(path, f"is the index of weights in several files{named}", fix, 93)
