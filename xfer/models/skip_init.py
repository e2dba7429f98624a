"""Building a network without the random numbers that its weights will replace.

To draw them takes longer than to read a file of weights: of a ViT-L they are 300 million.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWING = frozenset(
    [
        *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.uniform_, nn.init.normal_),
        *(Tensor.uniform_, Tensor.normal_),
        # What timm makes a truncated normal distribution of a uniform one with.
        *(Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_),
    ]
)


class SkipInit(TorchFunctionMode):
    """While it is entered, parameters that are made keep what is in their memory, which may be
    anything. Buffers are made as ever: not all of them are in a file of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``func``, unless it would fill a parameter."""
        kwargs = kwargs or {}
        if func in _DRAWING:
            target = args[0] if args else kwargs["tensor"]
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs)
