"""Networks whose answers can differ."""

from __future__ import annotations

import torch
from torch import nn

from xfer.core.protocols import Backbone, Head
from xfer.models.head import Linear, swap


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with random numbers in the layers of a new head that start from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return net


def make(backbone: Backbone, head: Head | None = None) -> nn.Module:
    """A network of two classes as xfer makes it: random weights, statistics unlike the first."""
    torch.manual_seed(0)
    network = backbone.build()
    swap(network, head or Linear(), 2)
    awake(network.module)
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.2)
    for name, parameter in network.module.named_parameters():
        if name.endswith(".gamma"):  # of ConvNeXt: a scale of 1e-6 makes a block do nothing
            nn.init.uniform_(parameter, 0.3, 1)
    return network.module.eval()
