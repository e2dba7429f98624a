"""The layers that heads are made of. Imports torch: load it only when a head is built."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def is_conv(layer: nn.Module) -> bool:
    """Whether a classifier works on a feature map (n, c, h, w) rather than on vectors."""
    return isinstance(layer, nn.Conv2d)


def width(layer: nn.Module) -> int:
    """The number of features a classifier layer takes."""
    return int(layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features)  # type: ignore[arg-type]


def like(old: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A fresh layer of the kind of ``old``."""
    return nn.Conv2d(inputs, outputs, 1) if is_conv(old) else nn.Linear(inputs, outputs)


def zeroed(layer: nn.Module) -> nn.Module:
    """``layer`` with weights and biases of zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def with_dropout(old: nn.Module, outputs: int, p: float) -> nn.Module:
    """A fresh layer of the kind of ``old`` that drops inputs while training."""
    inputs = width(old)
    return DropoutConv(inputs, outputs, p) if is_conv(old) else DropoutLinear(inputs, outputs, p)


class DropoutLinear(nn.Linear):
    """Linear with dropout on its input; holds ``weight`` and ``bias`` like a plain one."""

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__(inputs, outputs)
        self.p = p

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return super().forward(F.dropout(input, self.p, self.training))


class DropoutConv(nn.Conv2d):
    """1x1 convolution with dropout on its input; holds ``weight`` and ``bias`` like a plain one."""

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__(inputs, outputs, 1)
        self.p = p

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(n, inputs, h, w) to (n, outputs, h, w)."""
        return super().forward(F.dropout(input, self.p, self.training))


class PooledLinear(nn.Module):
    """Mean over positions, flatten, dense. ``spatial`` keeps the (n, c, 1, 1) that follows."""

    def __init__(self, inputs: int, outputs: int, *, spatial: bool) -> None:
        super().__init__()
        self.dense = zeroed(nn.Linear(inputs, outputs))
        self.spatial = spatial

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c) or (n, c, h, w) to (n, outputs), or (n, outputs, 1, 1) when spatial."""
        if not self.spatial:
            out: torch.Tensor = self.dense(x)
            return out
        return torch.as_tensor(self.dense(x.mean((2, 3))))[:, :, None, None]
