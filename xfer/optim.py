"""Optimizers. Parameters come in groups by learning-rate multiple; weight decay spares vectors.

Biases and the scales of normalisation layers (tensors of fewer than two dimensions) are not
decayed, as in timm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt

from xfer.errors import ConfigError, closest

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Rate = Annotated[float, Gt(0), Lt(1e4)]
Decay = Annotated[float, Ge(0), Lt(1e4)]


def groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    multiples: Mapping[str, float],
    lr: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Optimizer groups of everything that trains: by multiple, and whether it is decayed."""
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if multiples[name] > 0:
            found.setdefault((multiples[name], parameter.ndim > 1), []).append(parameter)
    return [
        {"params": members, "lr": lr * multiple, "weight_decay": weight_decay if decayed else 0.0}
        for (multiple, decayed), members in found.items()
    ]


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    lr: Rate
    weight_decay: Decay = 0.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019; torch.optim.AdamW)."""

    lr: Rate
    weight_decay: Decay = 0.01
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)


@dataclass(frozen=True)
class Torch:
    """Any class of torch.optim by its name; ``args`` are its further arguments."""

    name: str
    lr: Rate
    weight_decay: Decay = 0.0
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        known = {
            name: kind
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        }
        # These two need a closure or sparse gradients, which training here does not give.
        known = {k: v for k, v in known.items() if k not in ("Optimizer", "LBFGS", "SparseAdam")}
        if self.name not in known:
            raise ConfigError(
                "optim.name", f"torch has no optimizer '{self.name}'", closest(self.name, known), 60
            )
        try:
            return known[self.name](groups, lr=self.lr, **self.args)  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise _bad_args(self.name, error) from error


@dataclass(frozen=True)
class Timm:
    """Any optimizer of timm by its name (``lamb``, ``adan``, ``lion``...)."""

    name: str
    lr: Rate
    weight_decay: Decay = 0.0
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        from timm.optim import create_optimizer_v2, list_optimizers

        if self.name not in (known := [str(n) for n in list_optimizers()]):
            raise ConfigError(
                "optim.name", f"timm has no optimizer '{self.name}'", closest(self.name, known), 60
            )
        try:
            made: Optimizer = create_optimizer_v2(groups, opt=self.name, lr=self.lr, **self.args)
        except (TypeError, ValueError) as error:
            raise _bad_args(self.name, error) from error
        return made


def _bad_args(name: str, error: Exception) -> ConfigError:
    return ConfigError("optim.args", f"do not suit '{name}' ({error})", "mend optim.args", 61)
