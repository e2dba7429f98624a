"""Low-rank adapters of frozen weights (LoRA, Hu et al. 2021, arXiv:2106.09685).

Whoever reads an adapted weight W reads W + scale * B A, where W is frozen, A has ``rank`` rows
and B ``rank`` columns. This is a parametrization as torch has them, with one difference: the
frozen weight stays where it was, under its own name, and the factors stand beside it as
parameters of the same layer. So no name and no module of the network changes.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from xfer.core.errors import WeightsError
from xfer.core.types import Plain

if TYPE_CHECKING:
    from torch import Tensor, nn


class Matrix(NamedTuple):
    """A weight that can have an adapter: its name, and its sizes as a matrix. A convolution has
    one row an output channel."""

    name: str
    rows: int
    columns: int

    def smaller(self, rank: int) -> bool:
        """Whether an adapter of ``rank`` has fewer numbers than the weight."""
        return rank * (self.rows + self.columns) < self.rows * self.columns


def factors(weight: str) -> tuple[str, str]:
    """The names of a weight's factors A (rank, columns) and B (rows, rank)."""
    return f"{weight}_lora_a", f"{weight}_lora_b"


def matrices(net: nn.Module) -> tuple[Matrix, ...]:
    """The weights of linear layers, convolutions and attention, but for those that two layers
    share."""
    from torch import nn

    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    uses = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))
    return tuple(
        Matrix(name, len(weight), weight.numel() // len(weight))
        for path, module in net.named_modules()
        if isinstance(module, kinds)
        for name, weight in module.named_parameters(path, recurse=False)
        if name.endswith("weight") and weight.ndim > 1 and uses[id(weight)] == 1
    )


def put(net: nn.Module, adapters: Plain) -> None:
    """Give every weight named in ``adapters["weights"]`` an adapter of ``adapters["rank"]`` and
    ``adapters["scale"]``; an empty dict changes nothing.

    A is drawn as in the reference implementation (loralib), B is zero, so that the network
    answers as before. Raises WeightsError for a name that can have none of that rank.
    """
    if not adapters:
        return
    rank, known = adapters["rank"], {matrix.name: matrix for matrix in matrices(net)}
    for name in adapters["weights"]:
        matrix = known.get(name)
        if matrix is None or not 1 <= rank <= min(matrix.rows, matrix.columns):
            what = f"is not a weight of the network that can have an adapter of rank {rank}"
            raise WeightsError(name, what, "check backbone.name and head", 12)
        path, _, attribute = name.rpartition(".")
        _adapt(net.get_submodule(path), attribute, rank, adapters["scale"])


def _adapt(module: nn.Module, attribute: str, rank: int, scale: float) -> None:
    import torch
    from torch import nn

    weight = dict(module.named_parameters(recurse=False))[attribute]
    a = weight.new_empty((rank, weight[0].numel()))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    for name, factor in zip(factors(attribute), (a, a.new_zeros(len(weight), rank)), strict=True):
        module.register_parameter(name, nn.Parameter(factor))

    def read(self: nn.Module) -> Tensor:
        parameters: Any = self._parameters
        weight, a, b = (parameters[name] for name in (attribute, *factors(attribute)))
        device = weight.device.type
        # The sum is formed in the precision in which it is merged.
        can_cast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if can_cast else nullcontext():
            adapted: Tensor = weight + scale * (b @ a).view_as(weight)
        return adapted

    kind = type(module)
    # On the class, as torch does it: nn.Module would not look for a property elsewhere.
    body = {attribute: property(read), "_adapted": attribute, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), body)


def merge(net: nn.Module) -> nn.Module:
    """``net``, its adapters added to the weights and gone; its answers stay."""
    import torch

    for module in net.modules():
        while attribute := vars(type(module)).get("_adapted"):
            weight = dict(module.named_parameters(recurse=False))[attribute]
            with torch.no_grad():
                weight.copy_(getattr(module, attribute))
            module.__class__ = type(module).__base__  # type: ignore[assignment]
            for name in factors(attribute):
                delattr(module, name)
    return net
