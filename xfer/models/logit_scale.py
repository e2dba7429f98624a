"""A scale and a shift of the logits as weights of the last layer.

A checkpoint and every exported file are calibrated by that, and have no operation more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xfer.models.head.layers import DropoutConv, DropoutLinear

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LAYERS = (nn.Linear, nn.Conv2d, DropoutLinear, DropoutConv)
_NEAR = 1e-4


def last_layer(net: nn.Module, head: str, classes: int) -> str | None:
    """The path of the layer that ends the classifier at ``head``: the last one there that has
    parameters, if it is linear or a convolution with a bias and one output a class.

    ``None`` where it is anything else: a class derived from these may compute otherwise. What
    comes after the layer is for :func:`follows` to tell.
    """
    layers = [
        (f"{head}.{name}" if name else head, module)
        for name, module in net.get_submodule(head).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    if not layers:
        return None
    path, layer = layers[-1]
    if type(layer) not in _LAYERS or not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    # Factors of an adapter would stand beside them.
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    return path if names == {"weight", "bias"} and len(layer.weight) == classes else None


def scale_logits(
    net: nn.Module,
    layers: Sequence[str],
    scale: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
) -> None:
    """Fold a ``scale`` and a ``shift``, float64 (classes,), into the weight and the bias of each of
    ``layers``, in place; computed in double precision."""
    for path in layers:
        layer = net.get_submodule(path)
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                factor = torch.from_numpy(scale).view(-1, *[1] * (parameter.ndim - 1))
                value = parameter.double().cpu() * factor
                if name == "bias":
                    value += torch.from_numpy(shift)
                parameter.copy_(value)


def follows(net: nn.Module, layers: Sequence[str], size: tuple[int, int]) -> tuple[bool, bool]:
    """Whether the answers of ``net`` follow a positive scale of what ``layers`` give, and whether
    they follow a shift as well: after a mean both, after a ReLU the scale alone.

    One forward pass of six images of ``size`` (height, width), in which random numbers stand in
    for what the layers give: the weights of ``net``, which is left in evaluation mode, are of no
    account.
    """
    drawn = torch.Generator().manual_seed(0)

    def stand_in(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        classes = output.shape[axis]
        shape = [1] * (output.ndim - 1)
        shape[axis - 1 if axis > 0 else axis] = classes
        first = torch.randn(output.shape[1:], generator=drawn)
        both = torch.stack([first, -first])  # numbers below 0 and above it for every class
        scaled = both * scale[:classes].view(shape)
        return torch.cat([both, scaled, scaled + shift[:classes].view(shape)])

    most = max(len(layer.weight) for layer in map(net.get_submodule, layers))  # type: ignore[arg-type]
    scale = 0.5 + torch.rand(most, generator=drawn)
    shift = torch.randn(most, generator=drawn)
    with ExitStack() as hooks, torch.no_grad():
        for path in layers:
            hook = net.get_submodule(path).register_forward_hook(stand_in)
            hooks.callback(hook.remove)
        plain, scaled, shifted = net.eval()(torch.zeros(6, 3, *size)).split(2)
    return _near(scaled, plain * scale), _near(shifted, plain * scale + shift)


def _near(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(torch.allclose(ours, theirs, _NEAR, _NEAR))
