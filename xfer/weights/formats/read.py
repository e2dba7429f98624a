"""One reader for every file of weights that is not MindSpore's: by content, bounded, checked.

What is read must be what weights are: plain finite numbers under plain names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import SafetyError, WeightsError
from xfer.core.types import StateDict
from xfer.weights.content import Content
from xfer.weights.formats.detect import (
    LEGACY,
    NPZ,
    OF_MINDSPORE,
    SAFETENSORS,
    TORCH,
    kind_of,
    refusal,
)
from xfer.weights.formats.npz import read_npz
from xfer.weights.formats.safetensors_file import read_safetensors
from xfer.weights.formats.torch_pickle import read_legacy, read_zip, refuse_pickle
from xfer.weights.formats.zip_check import allowance

if TYPE_CHECKING:
    import torch

NAME = 1024
"""The longest name of a tensor, in characters."""

# What bitsandbytes, GPTQ, AWQ and torch.ao call the parts of a quantised weight.
_QUANTISED = frozenset({"_packed_params", "absmax", "quant_map", "quant_state", "qweight", "SCB"})
_LORA = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_embedding_A", "lora_embedding_B")
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
    if content.format in OF_MINDSPORE:
        raise refusal(path, content.format)
    check_tensors(path, content.state)
    return content


def check_tensors(path: Path, state: StateDict) -> None:
    """Refuse what cannot be weights of ``path``, whatever the format.

    SafetyError: a hostile name, or more numbers than the file can hold. WeightsError: no tensors;
    NaN or Inf; quantised, sparse or complex tensors, or such without data; differences (LoRA) in
    place of weights.
    """
    if not state:
        raise WeightsError(path, "holds no tensors by name", "save model.state_dict()", 4)
    for name in state:
        _check_name(path, name)
    for name, tensor in state.items():
        _check_kind(path, name, tensor)
    low_rank = [n for n in state if any(part in n for part in _LORA)]
    if low_rank and all(n in low_rank or n.endswith(("alpha", "scale")) for n in state):
        what = f"holds only differences from other weights (LoRA: '{low_rank[0]}')"
        fix = "merge them into the weights they were trained on (peft: merge_and_unload)"
        raise WeightsError(path, what, fix, 91)
    _check_sizes(path, state)
    for name, tensor in state.items():
        _check_numbers(path, name, tensor)


def _check_name(path: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    hostile = (
        ("is empty", not name),
        (f"has {len(name)} characters", len(name) > NAME),
        ("has control characters", not name.isprintable()),
        ("leads out of a folder", ".." in parts),
        ("is an absolute path", len(parts) > 1 and (parts[0] == "" or parts[0].endswith(":"))),
    )
    for fault, is_so in hostile:
        if is_so:
            what = f"the name of its tensor '{name[:60]}' {fault}"
            raise SafetyError(path, what, "do not use it; fetch it from its publisher", 21)


def _check_kind(path: Path, name: str, tensor: torch.Tensor) -> None:
    import torch

    if tensor.is_quantized or not _QUANTISED.isdisjoint(name.split(".")):
        what = f"holds quantised tensors ('{name}')"
        raise WeightsError(path, what, "give the unquantised weights", 90)
    odd = {
        "sparse": tensor.layout != torch.strided or tensor.is_nested,
        "without data": tensor.is_meta,
        "complex": tensor.is_complex(),
    }
    for what, is_so in odd.items():
        if is_so:
            raise WeightsError(path, f"its tensor '{name}' is {what}", "save plain tensors", 92)


def _check_sizes(path: Path, state: StateDict) -> None:
    sizes = {n: t.numel() * t.element_size() for n, t in state.items()}
    stretched = [n for n, t in state.items() if sizes[n] > t.untyped_storage().nbytes()]
    if stretched:
        what = f"its tensor '{stretched[0]}' shows {sizes[stretched[0]]} bytes"
    elif sum(sizes.values()) > 2 * allowance(path):
        what = f"its tensors show {sum(sizes.values())} bytes"
    else:
        what = ""
    if what:
        fix = "save the tensors with .contiguous()"
        raise SafetyError(path, f"{what}, more than are stored", fix, 22)


def _check_numbers(path: Path, name: str, tensor: torch.Tensor) -> None:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return
    # Both ends are NaN where any number is; nothing of the tensor's size is allocated.
    ends = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    if not bool(torch.isfinite(ends.min) & torch.isfinite(ends.max)):
        what = f"its tensor '{name}' holds NaN or Inf"
        raise WeightsError(path, what, "take a checkpoint from before the training diverged", 89)
