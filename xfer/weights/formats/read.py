"""One reader for every file of weights that is not MindSpore's: by content, bounded, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xfer.core.errors import WeightsError
from xfer.weights.content import Content
from xfer.weights.formats.detect import LEGACY, NPZ, SAFETENSORS, TORCH, kind_of
from xfer.weights.formats.foreign import MINDSPORE, refusal
from xfer.weights.formats.npz import read_npz
from xfer.weights.formats.safetensors_file import read_safetensors
from xfer.weights.formats.torch_pickle import read_legacy, read_zip, refuse_pickle
from xfer.weights.formats.validate import check_tensors

FLAT: dict[str, Callable[[Path], Content]] = {SAFETENSORS: read_safetensors, NPZ: read_npz}
NESTED: dict[str, Callable[[Path, str | None], Content]] = {
    TORCH: read_zip,
    LEGACY: read_legacy,
    "pickle": refuse_pickle,
}


def read(path: Path, key: str | None = None) -> Content:
    """The tensors of ``path`` by the file's own names, on the CPU, checked.

    ``key`` (dotted) chooses among the entries of a torch file; without it the known names are
    tried, an average (EMA) first. Raises WeightsError or SafetyError in one line that says what
    the file is when it is no weights, and what to do.
    """
    kind = kind_of(path)
    if kind in NESTED:
        content = NESTED[kind](path, key)
    elif kind in FLAT:
        if key is not None:
            what = f"is {kind}, which has no entries to choose from"
            raise WeightsError(path, what, "leave source.key out", 87)
        content = FLAT[kind](path)
    else:
        raise refusal(path, kind)
    if content.format in MINDSPORE:
        raise refusal(path, content.format)
    check_tensors(path, content.state)
    return content
