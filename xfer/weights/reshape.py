"""Tensors that hold the same numbers in another shape."""

from __future__ import annotations

import math
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
