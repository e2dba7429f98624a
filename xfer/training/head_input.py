"""What enters the head's first layer: its mean and deviation, and the layer on standardised input.

Training then takes steps of one size on every network, whatever the scale of its features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from xfer.core.standardize import Moments, Standard, folded, unfolded
from xfer.core.types import StateDict
from xfer.models.head.layers import DropoutConv, DropoutLinear
from xfer.training.feature_moments import deviations
from xfer.training.features.cut import inference

_PLAIN = (nn.Linear, nn.Conv2d, DropoutLinear, DropoutConv)


def first_layer(net: nn.Module, head: str) -> str | None:
    """The path of the head's first layer that has a weight: linear, or a convolution of 1 x 1.

    ``None`` where there is none, or one that computes otherwise or has no bias: another class
    derived from these, as in a head of one's own, into which no mean and deviation can be folded.
    """
    for name, module in net.get_submodule(head).named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            plain = type(module) in _PLAIN and module.bias is not None
            return (f"{head}.{name}" if name else head) if plain else None
    return None


def watch(net: nn.Module, path: str, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Within it, ``see`` is given what enters the layer at ``path``."""
    return net.get_submodule(path).register_forward_pre_hook(lambda _, args: see(args[0]))


def rows_of(layer: nn.Module, entering: Tensor) -> Tensor:
    """What enters a layer as (rows, d): every position of a feature map is a row."""
    if isinstance(layer, nn.Conv2d):
        entering = entering.movedim(1, -1)
    return entering.reshape(-1, entering.shape[-1])


def moments(
    net: nn.Module,
    paths: Iterable[str],
    batches: Iterable[tuple[Tensor, int]],
    run: Callable[[Tensor], object],
) -> Standard:
    """Moments of what enters the layers at ``paths`` of ``net``, over all ``batches``, which
    ``run`` hands to it in inference mode; of each batch as many images count as come with it.
    Deviations are moderated by how many those are, also where each has many positions, see
    :func:`xfer.training.feature_moments.deviations`."""
    origins: dict[str, Tensor] = {}
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    counted, images = slice(None), 0

    def add(path: str, entering: Tensor) -> None:
        x = rows_of(net.get_submodule(path), entering.detach()[counted]).double()
        if path not in origins:
            # Moments about the first batch's mean, lest large means cancel the deviations.
            origins[path] = x.mean(dim=0)
            sums[path], counts[path] = [torch.zeros_like(x[0]) for _ in range(2)], 0
        away = x - origins[path]
        sums[path][0] += away.sum(dim=0)
        sums[path][1] += (away**2).sum(dim=0)
        counts[path] += len(x)

    with torch.no_grad(), inference(net), ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(watch(net, path, partial(add, path)))
        for batch, count in batches:
            counted, images = slice(count), images + count
            run(batch)
    standard = {}
    for path, origin in origins.items():
        away, squares = (total / counts[path] for total in sums[path])
        mean, variance = (origin + away).cpu(), (squares - away**2).clamp(min=0).cpu()
        std = torch.from_numpy(deviations(mean.numpy(), variance.numpy(), images))
        standard[path] = Moments(mean.float(), std.float())
    return standard


class Standardized:
    """From here on the layers of ``standard`` in ``net`` take standardised input, with weights
    that give the same answers. :meth:`folded` gives tensors for raw input; :meth:`remove` makes
    the network take it again."""

    def __init__(self, net: nn.Module, standard: Standard) -> None:
        self.net, self.standard = net, standard
        put(net, unfolded, standard)
        self._hooks = [
            net.get_submodule(path).register_forward_pre_hook(partial(_standardize, layer_moments))
            for path, layer_moments in standard.items()
        ]

    def folded(self, state: StateDict) -> StateDict:
        """``state`` of the network as it trains, for raw input; other tensors as they are."""
        return folded(state, self.standard)

    def remove(self) -> None:
        """The network with its statistics folded in."""
        for hook in self._hooks:
            hook.remove()
        put(self.net, folded, self.standard)


def put(
    net: nn.Module, change: Callable[[StateDict, Standard], StateDict], standard: Standard
) -> None:
    """Fold or unfold the layers of ``standard`` in ``net``, in place."""
    parameters = dict(net.named_parameters())
    names = [f"{path}.{kind}" for path in standard for kind in ("weight", "bias")]
    state = {name: parameters[name].detach() for name in names}
    with torch.no_grad():
        for name, tensor in change(state, standard).items():
            parameters[name].copy_(tensor)


def _standardize(of: Moments, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = args[0]
    shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
    mean, std = (t.to(x.device).view(shape) for t in (of.mean, of.std))
    # In full precision: a large mean less a large value is what bfloat16 cannot tell apart.
    return ((x.float() - mean) / std, *args[1:])
