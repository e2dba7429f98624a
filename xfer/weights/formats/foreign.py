"""Files that are no weights which can be read here: what they are, and what to do instead."""

from __future__ import annotations

import re
from pathlib import Path

from xfer.core.errors import SafetyError, WeightsError, XferError
from xfer.weights.formats.detect import HEAD

_AGAIN = "fetch it again and compare its size"
_TORCH = "give the torch or safetensors file of the same weights"
_UNPACK = "unpack it and give the file of weights inside"
_MINDSPORE = "type source=mindspore source.path="

PLACES = {
    "missing": ("there is no such file", "give source.path=FILE", 1),
    "dangling link": ("is a link to a file that is not there", "fetch the file again", 80),
    "directory": ("is a folder, no file", "give the file of weights inside it", 80),
    "FIFO or device": ("is a pipe, socket or device, no file", "give a regular file", 80),
    "unreadable": ("may not be read (permission denied)", "change its permissions (chmod)", 80),
}
DOWNLOADS = {
    "empty": ("is empty (0 bytes)", _AGAIN, 81),
    "zeros": ("holds zero bytes where its start must be", _AGAIN, 81),
    "git-LFS pointer": ("is a git-LFS pointer, not the file itself", "run git lfs pull", 81),
    "HTML": (
        "is an HTML page: the address gives a web page, not the file",
        "use the file's own download address (Hugging Face: resolve in place of blob)",
        81,
    ),
    "XML": ("is XML, most often a server's error message", "check the address, fetch it again", 81),
    "JSON": ("is JSON text, no weights", "give the file of weights beside it", 81),
    "text": ("is a text file", "give the file of weights", 81),
}
FORMATS = {
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
    "unknown": ("is no file of weights that xfer knows", _TORCH, 82),
}
PACKED = {
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
MINDSPORE = {
    "MindSpore checkpoint": ("is a MindSpore checkpoint", _MINDSPORE, 84),
    "MindSpore safetensors": ("is a safetensors file of MindSpore", _MINDSPORE, 84),
    "MindSpore encrypted": (
        "is an encrypted MindSpore checkpoint",
        "save it without enc_key; " + _MINDSPORE,
        84,
    ),
    "mindir": ("is a MindIR network of MindSpore", _MINDSPORE, 84),
}
FOREIGN = {**PLACES, **DOWNLOADS, **FORMATS, **PACKED, **MINDSPORE}
"""A kind that cannot be read as weights: what it is, the remedy, the error's number."""


def refusal(path: Path, kind: str) -> XferError:
    """The error that says what ``path`` is and what to do. ``kind`` is not one that is read."""
    if kind == "sharded index":
        return _sharded(path)
    if kind == "TorchScript":
        return SafetyError(
            path,
            "is a TorchScript archive: a program, more than tensors",
            "save its state dict: torch.save(model.state_dict(), ...)",
            25,
        )
    what, fix, number = FOREIGN[kind]
    if fix.endswith("source.path="):
        fix += str(path)
    if kind in ("unknown", "text"):
        what += f" (begins with {_start(path)})"
    return WeightsError(path, what, fix, number)


def _start(path: Path) -> str:
    with path.open("rb") as stream:
        return repr(stream.read(24))[1:]


def _sharded(path: Path) -> WeightsError:
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    found = re.findall(rb'"([^"\\/]{1,200}\.(?:safetensors|bin|pt|pth))"', head)
    parts = list(dict.fromkeys(name.decode("utf-8", "replace") for name in found))
    named = f" ({', '.join(parts[:3])}{', ...' if len(parts) > 3 else ''})" if parts else ""
    return WeightsError(
        path,
        f"is the index of weights in several files{named}",
        "join the files into one: torch.save({**part_1, **part_2}, FILE)",
        93,
    )
