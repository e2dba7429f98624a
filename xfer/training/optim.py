"""Optimizers. Parameters come in groups by learning-rate multiple and by whether they decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from xfer.core.errors import ConfigError, closest
from xfer.models.norms import norm_parameters

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Rate = Annotated[float, Gt(0), Lt(1e4)] | Literal["auto"]
Decay = Annotated[float, Ge(0), Lt(1e4)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every optimizer takes.

    An ``lr`` of ``auto`` is decided in :mod:`xfer.plan.auto`. What ``decay`` names ``matrices`` is
    timm's way, ``no_norms`` MindSpore's, ``all`` torch's.
    """

    solves: ClassVar[bool] = False
    """Whether the head is solved and nothing is trained step by step."""
    rate_scale: ClassVar[float] = 1.0
    """Of the rate that the plan decides, which is that of an adaptive optimizer."""

    lr: Rate
    """base learning rate; ``auto`` leaves it to the plan; a freeze rule multiplies it, the
    schedule scales it"""
    weight_decay: Decay = 0.0
    """weight decay of the tensors that ``optim.decay`` chooses"""
    decay: Literal["matrices", "no_norms", "all"] = "matrices"
    """what is decayed: ``matrices`` of two dimensions and more, ``no_norms`` all but normalisation
    layers, ``all`` everything"""

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """The base learning rate, once the plan has decided it."""
        if self.lr == "auto":
            raise ValueError("optim.lr is still to be decided by the plan")
        return float(self.lr)

    def groups(
        self, net: nn.Module, multiples: Mapping[str, tuple[float, ...]]
    ) -> list[dict[str, Any]]:
        """Optimizer groups of everything that ever trains; ``multiples`` of ``lr``, one a phase, by
        parameter name. A group has the largest as its ``lr`` and the share of it in each phase as
        its ``phases``."""
        spared = norm_parameters(net) if self.decay == "no_norms" else set()
        groups: dict[tuple[tuple[float, ...], bool], list[nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            decays = parameter.ndim > 1 if self.decay == "matrices" else name not in spared
            if any(multiples[name]):
                groups.setdefault((multiples[name], decays), []).append(parameter)
        return [
            {
                "params": members,
                "lr": self.rate * max(rates),
                "phases": tuple(rate / max(rates) for rate in rates),
                "weight_decay": self.weight_decay if decays else 0.0,
            }
            for (rates, decays), members in groups.items()
        ]


@dataclass(frozen=True, kw_only=True)
class AutoOptim(Options):
    """A linear head on a frozen backbone is solved exactly, anything else is trained by AdamW; the
    plan says which, and why. An ``lr`` that is given asks for AdamW."""

    lr: Rate = "auto"
    """base learning rate; a number asks for AdamW at that rate"""
    weight_decay: Decay = 0.01
    """of AdamW; a head that is solved has a penalty of its own"""

    def becomes(self, choice: str, epochs: int | None) -> Options:
        """What the plan chose: ``exact`` or ``adamw``."""
        if choice == "exact":
            return Exact()
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, decay=self.decay)


@dataclass(frozen=True, kw_only=True)
class Exact(Options):
    """The best linear head on what is frozen: logistic regression solved to its optimum,
    which takes no rate.

    An ``l2`` of ``auto`` is that of least log loss over the folds: :mod:`xfer.training.logistic`.
    """

    solves: ClassVar[bool] = True

    lr: Rate = "auto"
    """there is none; a number is refused"""
    l2: Annotated[float, Gt(0)] | Literal["auto"] = "auto"
    """strength of the penalty: half the squared weights of the standardised head times this,
    beside the mean loss; ``auto`` chooses it by cross-validation"""
    folds: Annotated[int, Ge(2)] = 5
    """stratified folds of the training images"""


@dataclass(frozen=True)
class Sgd(Options):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    rate_scale: ClassVar[float] = 10.0

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """share of the last step that the next one keeps"""
    nesterov: bool = False
    """Nesterov's form of it"""

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW(Options):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019; torch.optim.AdamW)."""

    weight_decay: Decay = 0.01
    """weight decay of the tensors that ``optim.decay`` chooses"""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """decay of the two moving averages"""

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.AdamW(groups, lr=self.rate, betas=self.betas)


@dataclass(frozen=True)
class TorchOptim(Options):
    """Any class of torch.optim by its name; ``args`` are its further arguments."""

    library: ClassVar[str] = "torch"

    name: str
    """``optim=torch``: a class of torch.optim; ``optim=timm``: a name of timm's list"""
    args: dict[str, Any] = field(default_factory=dict)
    """further arguments of that optimizer"""

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        known = self._known()
        if self.name not in known:
            what = f"{self.library} has no optimizer '{self.name}'"
            raise ConfigError("optim.name", what, closest(self.name, known), 60)
        try:
            return known[self.name](groups, lr=self.rate, **self.args)
        except (TypeError, ValueError) as error:
            what = f"do not suit '{self.name}' ({error})"
            raise ConfigError("optim.args", what, "mend optim.args", 61) from error

    def _known(self) -> Mapping[str, Callable[..., Optimizer]]:
        import torch

        # Two of them need a closure or sparse gradients, which training here does not give.
        return {
            name: kind
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type)
            and issubclass(kind, torch.optim.Optimizer)
            and name not in ("Optimizer", "LBFGS", "SparseAdam")
        }


@dataclass(frozen=True)
class TimmOptim(TorchOptim):
    """Any optimizer of timm by its name (``lamb``, ``adan``, ``lion``...)."""

    library: ClassVar[str] = "timm"

    def _known(self) -> Mapping[str, Callable[..., Optimizer]]:
        from timm.optim import create_optimizer_v2, list_optimizers

        return {str(name): partial(create_optimizer_v2, opt=name) for name in list_optimizers()}
