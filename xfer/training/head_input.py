"""What enters the head's first layer: its mean and deviation, and the layer on standardised input.

Training then takes steps of one size on every network, whatever the scale of its features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xfer.core.standardize import Moments, Standard, folded, unfolded
from xfer.training.features.cut import inference

if TYPE_CHECKING:
    from xfer.core.types import StateDict

_CONSTANT = 1e-6  # of the mean: what varies less is constant


def first_layer(net: nn.Module, head: str) -> str | None:
    """The path of the head's first layer that has a weight: linear, or a convolution of 1 x 1.

    ``None`` where there is none, or one that computes otherwise or has no bias: a class derived
    from these, as in a head of one's own, into which no mean and deviation can be folded.
    """
    for name, module in net.get_submodule(head).named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            plain = type(module) in (nn.Linear, nn.Conv2d) and module.bias is not None
            return (f"{head}.{name}" if name else head) if plain else None
    return None


@contextmanager
def watched(net: nn.Module, path: str, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Within, ``see`` is given what enters the layer at ``path``."""
    hook = net.get_submodule(path).register_forward_pre_hook(lambda _, args: see(args[0]))
    try:
        yield
    finally:
        hook.remove()


def rows_of(layer: nn.Module, entering: Tensor) -> Tensor:
    """What enters a layer as (rows, d): every position of a feature map is a row."""
    if isinstance(layer, nn.Conv2d):
        entering = entering.movedim(1, -1)
    return entering.reshape(-1, entering.shape[-1])


def moments(net: nn.Module, paths: Iterable[str], batches: Iterable[Tensor]) -> Standard:
    """Moments of what enters the layers at ``paths``, over all ``batches``, in inference mode."""
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def seen(path: str) -> Callable[[Tensor], None]:
        layer = net.get_submodule(path)

        def see(entering: Tensor) -> None:
            x = rows_of(layer, entering.detach()).double()
            if path not in sums:
                # Moments about the first batch's mean, lest large means cancel the deviations.
                zero = torch.zeros_like(x[0])
                sums[path], counts[path] = [x.mean(dim=0), zero, zero.clone()], 0
            away = x - sums[path][0]
            sums[path][1] += away.sum(dim=0)
            sums[path][2] += (away**2).sum(dim=0)
            counts[path] += len(x)

        return see

    with torch.no_grad(), inference(net):
        for batch in batches:
            with _all_watched(net, {path: seen(path) for path in paths}):
                net(batch)
    return {path: _moments(sums[path], counts[path]) for path in sums}


@contextmanager
def _all_watched(net: nn.Module, seen: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    if not seen:
        yield
        return
    path, *rest = seen
    with watched(net, path, seen[path]), _all_watched(net, {key: seen[key] for key in rest}):
        yield


def _moments(sums: list[Tensor], count: int) -> Moments:
    origin, total, squares = sums
    away = total / count
    std = (squares / count - away**2).clamp(min=0).sqrt()
    mean = origin + away
    constant = (std <= _CONSTANT * mean.abs()) | (std == 0)
    return Moments(mean.float().cpu(), torch.where(constant, 1.0, std).float().cpu())


class Standardized:
    """From here on the layers of ``standard`` in ``net`` take standardised input, with weights
    that give the same answers. :meth:`folded` gives tensors for raw input; :meth:`remove` makes
    the network take it again."""

    def __init__(self, net: nn.Module, standard: Standard) -> None:
        self.net, self.standard = net, standard
        put(net, unfolded, standard)
        self._hooks = [
            net.get_submodule(path).register_forward_pre_hook(_scaled(own))
            for path, own in standard.items()
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
    own = dict(net.named_parameters())
    names = [f"{path}.{kind}" for path in standard for kind in ("weight", "bias")]
    state = {name: own[name].detach() for name in names}
    with torch.no_grad():
        for name, tensor in change(state, standard).items():
            own[name].copy_(tensor)


def _scaled(own: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        mean, std = (t.to(x.device).view(shape) for t in (own.mean, own.std))
        # In full precision: a large mean less a large value is what bfloat16 cannot tell apart.
        return ((x.float() - mean) / std, *args[1:])

    return hook
