"""An exponential moving average of the weights that train (Polyak and Juditsky, 1992).

Only moving tensors are averaged: averaging frozen ones would shift them by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn


class Ema:
    """``shadow`` holds the average by tensor name. Integer buffers are copied, not averaged. Where
    the weights are ``good`` already they stay in the average for as long as ``decay`` says."""

    def __init__(
        self, net: nn.Module, names: Iterable[str], decay: float, good: bool = False
    ) -> None:
        state = net.state_dict()
        self.decay, self.good = decay, good
        self.shadow = {name: state[name].detach().clone() for name in names}
        self._step = 0

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the weights after optimizer step ``step``; once a step."""
        if step == self._step:
            return
        self._step = step
        state = net.state_dict()
        # A young average follows faster, as in timm and TensorFlow.
        decay = self.decay if self.good else min(self.decay, (1 + step) / (10 + step))
        for name, average in self.shadow.items():
            value = state[name]
            if average.device != value.device:
                average = self.shadow[name] = average.to(value.device)
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    @torch.no_grad()
    def swap(self, net: nn.Module) -> None:
        """Exchange the net's tensors with the average; a second call undoes it."""
        state = net.state_dict()
        for name, average in self.shadow.items():
            held = state[name].clone()
            state[name].copy_(average)
            average.copy_(held)

    def load(self, shadow: Mapping[str, torch.Tensor], step: int) -> None:
        """Go on with the average saved after optimizer step ``step``."""
        self._step = step
        self.shadow = {name: shadow[name].clone() for name in self.shadow}
