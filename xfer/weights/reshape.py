"""Tensors that hold the same numbers in another shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Shape, Weights


def adapted(
    name: str, tensor: torch.Tensor, shape: Shape, weights: Weights
) -> tuple[torch.Tensor, str] | None:
    """``tensor`` in ``shape`` and how it was done, or ``None`` where there is no such way.

    Trailing ones come and go (a 1x1 convolution is a dense layer); MindSpore up to 1.0 wrote
    depthwise kernels as (1, c, h, w); position embeddings are resampled where the user asked.
    """
    given = tuple(tensor.shape)
    if _bare(given) == _bare(shape):
        return tensor.reshape(shape), f"{list(given)} as {list(shape)}"
    depthwise = len(given) == len(shape) == 4 and given[0] == shape[1] == 1
    swapped = depthwise and (given[1], *given[2:]) == (shape[0], *shape[2:])
    if weights.kind == "mindspore" and swapped:
        return tensor.transpose(0, 1), "depthwise kernel with its first two axes swapped"
    if weights.resize_positions and (grid := grid_of(name, given, shape)):
        return _resampled(tensor, *grid)
    return None


def with_registers(wanted: Mapping[str, torch.Tensor], weights: Weights) -> Weights:
    """``weights`` of a transformer with registers, in the file of its authors (DINOv2; T. Darcet et
    al., 2024), as timm's network has them, which adds positions to the patches alone: that of the
    class token is in the token itself. Others as they are."""
    state = dict(weights.state or {})
    if "reg_token" not in wanted or not {"register_tokens", "cls_token", "pos_embed"} <= {*state}:
        return weights
    positions = state["pos_embed"]
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + positions[:, :1]
    state["pos_embed"] = positions[:, 1:]
    names = ("register_tokens", "cls_token + pos_embed[:, :1]", "pos_embed[:, 1:]")
    renamed = dict(zip(("reg_token", "cls_token", "pos_embed"), names, strict=True))
    asides = dict(weights.asides)
    if state.pop("mask_token", None) is not None:
        asides["mask_token"] = "of the training that hides patches"
    renamed = {**weights.renamed, **renamed}
    return replace(weights, state=state, renamed=renamed, asides=asides)


def grid_of(name: str, given: Shape, shape: Shape) -> tuple[int, int, int] | None:
    """Prefix tokens and the sides of the square grids of a position embedding of shape ``given``
    and of the wanted one, (1, prefix + side * side, c); ``None`` where they are not that."""
    if name.rsplit(".", 1)[-1] not in ("pos_embed", "pos_embedding"):
        return None
    if given == shape or len(given) != 3 or len(shape) != 3 or given[2] != shape[2]:
        return None
    for prefix in range(min(3, given[1], shape[1])):
        old, new = (math.isqrt(n - prefix) for n in (given[1], shape[1]))
        if (old * old + prefix, new * new + prefix) == (given[1], shape[1]):
            return prefix, old, new
    return None


def _bare(shape: Shape) -> Shape:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _resampled(tensor: torch.Tensor, prefix: int, old: int, new: int) -> tuple[torch.Tensor, str]:
    """Resampled bicubically, as timm does it."""
    from timm.layers import resample_abs_pos_embed

    resampled = resample_abs_pos_embed(
        tensor, [new, new], old_size=[old, old], num_prefix_tokens=prefix
    )
    return resampled, f"positions resampled from {old}x{old} to {new}x{new}"
