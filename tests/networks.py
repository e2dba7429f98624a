"""Networks whose answers can differ."""

from __future__ import annotations

import torch
from torch import nn


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with random numbers in the layers of a new head that start from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return net
