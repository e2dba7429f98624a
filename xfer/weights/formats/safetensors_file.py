"""safetensors files: a JSON header and the bytes of the tensors, nothing that could run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xfer.core.card_schema import recipe_of
from xfer.core.errors import SafetyError
from xfer.core.types import Plain, StateDict
from xfer.weights.content import Content
from xfer.weights.formats.detect import SAFETENSORS
from xfer.weights.formats.zip_check import damaged

HEADER = 16 * 1024 * 1024
"""The longest header that is read, in bytes; a thousand tensors take 150 000."""
METADATA = 64 * 1024
"""Metadata goes into the facts up to so many characters."""


def read_safetensors(path: Path) -> Content:
    """Tensors by name, on the CPU, in the order of the header; the metadata in ``facts``.

    ``format`` is ``MindSpore safetensors`` where MindSpore wrote the file. A file that xfer has
    exported brings the recipe of its input. Raises WeightsError when it is cut or damaged,
    SafetyError when its header is larger than any network needs.
    """
    state, metadata = load(path)
    form = "MindSpore safetensors" if metadata.get("format") == "ms" else SAFETENSORS
    short = sum(len(k) + len(v) for k, v in metadata.items()) <= METADATA
    facts: Plain = {"metadata": metadata} if metadata and short else {}
    if not {"xfer", "preprocess"} <= metadata.keys():
        return Content(form, state, facts=facts)
    try:
        recipe = recipe_of(metadata["preprocess"])
    except ValueError as error:
        raise damaged(path, f"its metadata 'preprocess': {error}") from error
    return Content(form, state, facts={**facts, "recipe": recipe.to_plain()}, input=recipe)


def load(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors on the CPU, and the metadata. Raises as :func:`read_safetensors`."""
    from safetensors.torch import load_file

    metadata = metadata_of(path)
    with _damage_named(path):
        return load_file(path), metadata


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata alone. Raises as :func:`read_safetensors`, before anything is allocated."""
    from safetensors import safe_open

    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    size = path.stat().st_size
    if 8 + length > size:
        raise damaged(path, f"its header alone is {length} bytes long")
    if length > HEADER:
        what = f"has a header of {length} bytes, which describe more than any network"
        raise SafetyError(path, what, "do not use it; fetch it from its publisher", 26)
    with _damage_named(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, AttributeError, ValueError, RuntimeError, OSError) as error:
        raise damaged(path, str(error)) from error
