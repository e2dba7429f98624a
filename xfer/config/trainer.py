"""How training runs: epochs, device, precision. Becomes a Lightning Trainer in ``fit``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Epochs = Annotated[int, Gt(0)]
Node = dict[str, Any]
"""A class as ``_target_``, and its arguments."""


@dataclass(frozen=True)
class TrainerOptions:
    """How a fit computes; what is ``auto`` is left to the plan, see :mod:`xfer.plan.auto`.

    Mean and deviation of what enters a new head are folded into its first layer afterwards. It
    begins with all classes equally likely (Kolesnikov et al., 2020) or solved (Kumar et al., 2022).
    ``metrics`` and ``callbacks`` name classes of the user's, see :mod:`xfer.config.custom`.
    """

    max_epochs: Epochs | Literal["auto"] = "auto"
    """passes over the training images; a number asks for training step by step"""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """device; ``auto`` is the best there is"""
    devices: Annotated[int, Gt(0)] = 1
    """how many of them, one process each; see several devices"""
    nodes: Annotated[int, Gt(0)] = 1
    """machines, with ``devices`` of each; more than one need a launcher, see several nodes"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """what each of several devices holds: ``ddp`` the whole network, ``fsdp`` an equal part of
    weights, gradients and the optimizer's state, for networks that do not fit"""
    precision: Precision | Literal["auto"] = "auto"
    """number format of the arithmetic; ``16-mixed`` needs a GPU"""
    accumulate: Annotated[int, Gt(0)] = 1
    """batches an optimizer step"""
    clip_norm: Annotated[float, Ge(0)] = 0.0
    """largest gradient norm; 0 is off"""
    ema_decay: Annotated[float, Ge(0), Lt(1)] | Literal["auto"] = "auto"
    """decay of a moving average of the weights, which is then what is validated and kept; 0 is
    off"""
    patience: Annotated[int, Ge(0)] = 0
    """epochs without a new best by ``checkpoint.monitor`` before the run stops, counted in the
    last phase of ``freeze`` alone; 0 is off"""
    compile: bool = False
    """run the network through torch.compile"""
    channels_last: bool = True
    """the memory layout that convolutions prefer"""
    deterministic: bool = False
    """only reproducible kernels; needed for bit-identical runs on a GPU"""
    on_oom: Literal["error", "halve"] = "error"
    """what to do when memory runs out: end with exit 8 and a size that fits, or halve the
    batch, double ``accumulate`` and begin the fit again; see reliability"""
    standardize: bool = True
    """what enters a new head has mean 0 and deviation 1 while it trains"""
    head_start: Literal["auto", "zero", "solved"] = "auto"
    """how a new head begins: ``zero``, or ``solved``, as the exact head of the network before it
    trains; ``auto`` is one of the two"""
    metrics: dict[str, Node] = field(default_factory=dict)
    """further metrics by name, each ``{_target_: CLASS, ...}``; see parts of your own"""
    callbacks: tuple[Node, ...] = ()
    """callbacks of Lightning, each ``{_target_: CLASS, ...}``; see parts of your own"""

    @property
    def shards(self) -> bool:
        """Whether the network is divided among the ranks."""
        return self.strategy == "fsdp"

    @property
    def ranks(self) -> int:
        """How many processes train together."""
        return self.nodes * self.devices

    @property
    def epochs(self) -> int:
        """How many epochs are trained, once the plan has decided it."""
        if self.max_epochs == "auto":
            raise ValueError("trainer.max_epochs is still to be decided by the plan")
        return self.max_epochs

    @property
    def averages(self) -> float:
        """The decay of the average of the weights, once the plan has decided it; 0 is off."""
        if self.ema_decay == "auto":
            raise ValueError("trainer.ema_decay is still to be decided by the plan")
        return self.ema_decay

    @property
    def numbers(self) -> Precision:
        """The precision that is computed in, once the plan has decided it."""
        if self.precision == "auto":
            raise ValueError("trainer.precision is still to be decided by the plan")
        return self.precision
