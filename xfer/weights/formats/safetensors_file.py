"""safetensors files: a JSON header and the bytes of the tensors, nothing that could run."""

from __future__ import annotations

from pathlib import Path

from xfer.core.errors import SafetyError
from xfer.weights.content import Content
from xfer.weights.formats.detect import SAFETENSORS
from xfer.weights.formats.zip_check import damaged

HEADER = 16 * 1024 * 1024
"""The longest header that is read, in bytes; a thousand tensors take 150 000."""
METADATA = 64 * 1024
"""Metadata is kept up to so many characters."""


def read_safetensors(path: Path) -> Content:
    """Tensors by name, on the CPU, in the order of the header; the metadata in ``facts``.

    ``format`` is ``MindSpore safetensors`` where MindSpore wrote the file. Raises WeightsError
    when it is cut or damaged, SafetyError when its header is larger than any network needs.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        state = load_file(path)
    except (SafetensorError, KeyError, AttributeError, ValueError, RuntimeError, OSError) as error:
        raise damaged(path, str(error)) from error
    form = "MindSpore safetensors" if metadata.get("format") == "ms" else SAFETENSORS
    kept = sum(len(k) + len(v) for k, v in metadata.items()) <= METADATA
    return Content(form, state, facts={"metadata": metadata} if metadata and kept else {})


def check_header(path: Path) -> None:
    """Refuse, before anything is allocated, a header that ends behind the file (WeightsError) or
    is larger than any network needs (SafetyError)."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    size = path.stat().st_size
    if 8 + length > size:
        raise damaged(path, f"its header alone is {length} bytes long")
    if length > HEADER:
        raise SafetyError(
            path,
            f"has a header of {length} bytes, which describe more than any network",
            "do not use it; fetch it from its publisher",
            26,
        )
