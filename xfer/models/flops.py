"""What one image costs a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def operations(net: nn.Module, size: tuple[int, int]) -> float | None:
    """Floating-point operations of one image of ``size`` (height, width) through ``net``, which may
    be without values; ``None`` where it computes with those."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.empty(1, 3, *size, device=next(net.parameters()).device)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net.eval()(image)
    except (NotImplementedError, RuntimeError, IndexError, AttributeError):
        return None
    return float(counter.get_total_flops())
