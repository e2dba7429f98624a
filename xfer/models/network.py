"""The network of a run: backbone, then source, then head swap, then freeze table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, is_dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xfer.core.errors import ConfigError, WeightsError, XferError
from xfer.core.protocols import Backbone, Head
from xfer.core.seeds import derive
from xfer.core.types import Network, Plain
from xfer.models import adapters, mindspore_layers
from xfer.models.backbone import Timm, Torchvision, index
from xfer.models.head import Keep, Linear, swap
from xfer.weights.content import Match, Weights
from xfer.weights.match import match
from xfer.weights.match_errors import MISFIT

# Libraries whose networks are nothing but their state.
STATELESS = ("timm", "torchvision")
_RELATIVES = 8  # are built to be compared; each takes some 0.1 s


@dataclass(frozen=True)
class Parts:
    """What a network is made of.

    ``head_from_source`` when the head comes whole from the source. ``source_classes`` is the
    source's number of classes, ``rows`` its rows that each class of a remapped head starts from;
    ``compat`` what makes the layers compute what the source's own library does. ``adapters`` are
    what a fit trains beside frozen weights, see :mod:`xfer.models.adapters`.
    """

    backbone: Backbone
    head: Head
    classes: int
    seed: int = 0
    head_from_source: bool = False
    source_classes: int | None = None
    rows: tuple[tuple[int, ...], ...] = ()
    compat: Plain = field(default_factory=dict)
    adapters: Plain = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the source's head is needed, so that it must fit as well."""
        return self.head_from_source or isinstance(self.head, Keep) or bool(self.rows)

    def bare(self) -> Network:
        """The architecture that the source must fit."""
        keeps = isinstance(self.head, Keep)
        network = self.backbone.build(self.classes if keeps else self.source_classes)
        mindspore_layers.apply(network.module, self.compat)
        if self.head_from_source:
            swap(network, self.head, self.classes)
        return network

    def finish(self, network: Network) -> None:
        """Swap in the new head, unless the source's own stays; then put adapters in."""
        if not self.head_from_source:
            swap(network, self.head, self.classes, self.rows)
        adapters.put(network.module, self.adapters)


def blueprint(parts: Parts) -> tuple[Network, Network]:
    """The network before and after the head swap, on the meta device: shapes without memory.

    Raises ConfigError for one that takes more than images.
    """
    before, after = on_meta(parts.bare), on_meta(parts.bare)
    needed = [
        name
        for name, entry in signature(before.module.forward).parameters.items()
        if entry.default is entry.empty and entry.kind < entry.VAR_POSITIONAL
    ]
    if len(needed) > 1:
        inputs = f"{len(needed)} inputs ({', '.join(needed)})"
        what = f"takes {inputs}, but xfer gives it only images"
        fix = "wrap it into a network whose forward takes one float32 tensor (n, 3, height, width)"
        raise ConfigError("backbone", what, fix, 0)
    with torch.device("meta"):
        parts.finish(after)
    return before, after


def on_meta(build: Callable[[], Network]) -> Network:
    """The network that ``build`` makes, without values, where its architecture allows that."""
    with torch.random.fork_rng(devices=[]):
        try:
            # There is nothing to fill, and to work that out imports torch's compiler.
            with torch.device("meta"), SkipInit():
                return build()
        except (NotImplementedError, RuntimeError, ConfigError):
            # Some architectures compute with their fresh tensors; those are built for real, and
            # what no device can build raises then.
            return build()


def width_at_heads(network: Network) -> int | None:
    """Numbers an image that enter the heads of a network; ``None`` where they follow from the
    size of the image, as before a convolution. A pass on the meta device would say, and would
    import torch's compiler, which takes as long as the whole plan."""
    layers = [network.module.get_submodule(path) for path in network.heads]
    widths = [layer.in_features for layer in layers if isinstance(layer, nn.Linear)]
    return sum(widths) if widths and len(widths) == len(layers) else None


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, parameters and buffers."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check(parts: Parts, weights: Weights, before: Network | None = None) -> Match:
    """Decide what of ``weights`` goes where; see :func:`xfer.weights.match.match`. ``before`` is
    the network before the head swap, where it has been built. Where nothing fits but another size
    of the same architecture, or the one that the file is called by, the error names that one."""
    try:
        return _match(parts, before or on_meta(parts.bare), weights)
    except WeightsError as error:
        if error.number == MISFIT and (typed := _relative(parts, weights) or _called(weights)):
            error.fix = f"these are the tensors of another one: type {typed}"
        raise


def _match(parts: Parts, before: Network, weights: Weights) -> Match:
    heads = () if parts.whole else before.heads
    return match(before.module.state_dict(), weights, heads, before.dropped)


def _relative(parts: Parts, weights: Weights) -> str:
    """What to type for the model of another size in the same family that ``weights`` fit, or
    nothing."""
    backbone = parts.backbone
    if backbone.library not in STATELESS or not is_dataclass(backbone):
        return ""
    if getattr(backbone, "args", None):
        return ""  # they are of this one
    for name in index.relatives(backbone.library, backbone.name)[:_RELATIVES]:
        other = replace(parts, backbone=replace(backbone, name=name))
        try:
            _match(other, on_meta(other.bare), weights)
        except XferError:
            continue  # not this one, or the installed library lacks it
        return f"backbone.name={name}"
    return ""


def _called(weights: Weights) -> str:
    """The same for a model that ``weights`` are called by and fit, the head aside."""
    for library, name in index.called(weights.origin or "")[:_RELATIVES]:
        try:
            spec = Timm(name) if library == "timm" else Torchvision(name)
            other = Parts(spec, Linear(), 2)
            _match(other, on_meta(other.bare), weights)
        except XferError:
            continue
        return f"backbone={library} backbone.name={name}"
    return ""


def assemble(parts: Parts, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """The network with the tensors of ``state``, a match's, in it; what they leave out and the new
    head are drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        network = unset(parts) if state else with_drawn(parts)
        if state and not _replaces(state, parts, network):
            del network  # before another one takes its memory
            network = with_drawn(parts)
        fill(network.module, state)
        torch.manual_seed(derive("head", parts.seed))
        parts.finish(network)
    return network.module


def empty(parts: Parts) -> nn.Module:
    """The network before it has any weights."""
    with torch.random.fork_rng(devices=[]):
        network = unset(parts)
        torch.manual_seed(derive("head", parts.seed))
        parts.finish(network)
    return network.module


def with_drawn(parts: Parts) -> Network:
    """The architecture with all of its weights drawn from the seed."""
    torch.manual_seed(derive("initial", parts.seed))
    return parts.bare()


def unset(parts: Parts) -> Network:
    """The architecture with parameters that may hold anything, where nothing but the weights
    follows from what is drawn; what somebody else's backbone makes of it is not known."""
    with SkipInit() if parts.backbone.library in STATELESS else nullcontext():
        return with_drawn(parts)


def from_weights(parts: Parts, weights: Weights) -> nn.Module:
    """The network with ``weights`` that no plan has matched to it yet."""
    return assemble(parts, check(parts, weights).state)


def _replaces(state: Mapping[str, torch.Tensor], parts: Parts, network: Network) -> bool:
    """Whether every parameter gets a value, or is of a head that will be swapped."""
    swapped = () if parts.whole else tuple(f"{path}." for path in network.heads)
    names = (name for name, _ in network.module.named_parameters(remove_duplicate=False))
    return all(name in state or name.startswith(swapped) for name in names)


def fill(net: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors by name; every name must exist with its shape. Others keep their values."""
    tensors = net.state_dict()
    for name, tensor in state.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise WeightsError(name, "does not fit the network", "check backbone.name and head", 31)
        tensors[name].copy_(tensor)


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
    anything: to draw random numbers that weights will replace takes longer than to read a file of
    weights. Buffers are made as ever: not all of them are in such a file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``func``, unless it would fill a parameter."""
        kwargs = kwargs or {}
        if func in _DRAWING:
            target = args[0] if args else kwargs["tensor"]
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs)
