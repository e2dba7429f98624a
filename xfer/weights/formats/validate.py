"""Whether tensors that were read are what weights are: plain finite numbers under plain names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import SafetyError, WeightsError
from xfer.weights.formats.zip_check import allowance

if TYPE_CHECKING:
    import torch

    from xfer.core.types import StateDict

NAME = 1024
"""The longest name of a tensor, in characters."""

# What bitsandbytes, GPTQ, AWQ and torch.ao call the parts of a quantised weight.
_QUANTISED = frozenset({"_packed_params", "absmax", "quant_map", "quant_state", "qweight", "SCB"})
_LORA = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_embedding_A", "lora_embedding_B")


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
    _check_kinds(path, state)
    _check_layouts(path, state)
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
    for what, found in hostile:
        if found:
            raise SafetyError(
                path,
                f"the name of its tensor '{name[:60]}' {what}",
                "do not use it; fetch it from its publisher",
                21,
            )


def _check_kinds(path: Path, state: StateDict) -> None:
    for name, tensor in state.items():
        if tensor.is_quantized or not _QUANTISED.isdisjoint(name.split(".")):
            raise WeightsError(
                path, f"holds quantised tensors ('{name}')", "give the unquantised weights", 90
            )
    low_rank = [n for n in state if any(part in n for part in _LORA)]
    if low_rank and all(n in low_rank or n.endswith(("alpha", "scale")) for n in state):
        raise WeightsError(
            path,
            f"holds differences to other weights only (LoRA: '{low_rank[0]}')",
            "merge them into the weights they were trained on (peft: merge_and_unload)",
            91,
        )


def _check_layouts(path: Path, state: StateDict) -> None:
    import torch

    for name, tensor in state.items():
        odd = {
            "sparse": tensor.layout != torch.strided or tensor.is_nested,
            "without data": tensor.is_meta,
            "complex": tensor.is_complex(),
        }
        for what, found in odd.items():
            if found:
                raise WeightsError(path, f"its tensor '{name}' is {what}", "save plain tensors", 92)


def _check_sizes(path: Path, state: StateDict) -> None:
    shown = {n: t.numel() * t.element_size() for n, t in state.items()}
    for name, tensor in state.items():
        if shown[name] > tensor.untyped_storage().nbytes():
            raise _stretched(path, f"its tensor '{name}' shows {shown[name]} bytes")
    if sum(shown.values()) > 2 * allowance(path):
        raise _stretched(path, f"its tensors show {sum(shown.values())} bytes")


def _stretched(path: Path, what: str) -> SafetyError:
    fix = "save the tensors with .contiguous()"
    return SafetyError(path, f"{what}, more than are stored", fix, 22)


def _check_numbers(path: Path, name: str, tensor: torch.Tensor) -> None:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return
    # Both ends are NaN where any number is; nothing of the tensor's size is allocated.
    ends = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    if not bool(torch.isfinite(ends.min) & torch.isfinite(ends.max)):
        raise WeightsError(
            path,
            f"its tensor '{name}' holds NaN or Inf",
            "take a checkpoint from before the training diverged",
            89,
        )
