"""What MindSpore's training leaves beside the weights, separated and named as in torch.

The optimizer writes its memory of parameter ``x`` as ``<prefix>.x``, its settings and counters
under plain names. So an entry is optimizer state when its first part is such a prefix and the
rest is itself an entry of the same shape; a module that is called ``moments`` keeps its weights.

MindSpore's Momentum and SGD keep torch's ``momentum_buffer``, its Adam torch's two averages. Its
other optimizers compute something that torch's do not: their state is recognised and left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError
from xfer.core.types import Plain
from xfer.weights.content import Content, OptimizerBuffers, Shape
from xfer.weights.optimizer_state import check_owner

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
_PREFIXES = frozenset(
    "moments accum stat moment1 moment2 adam_m adam_v mean_square moment mean_gradient mean_grad "
    "accum_update linear lamb_m lamb_v vhat prev step_size ax_ mu eta exp_avg exp_avg_sq "
    "max_exp_avg_sq exp_avg_sq_row exp_avg_sq_col".split()
)
_JOINED = re.compile(r"(exp_avg_sq(?:_row|_col)?|mu|eta)_(.+)")
"""State of AdaFactor and ASGD that has no dot after its prefix and a shape of its own."""
_SCALAR = re.compile(
    "global_step|learning_rate(_group_[0-9]+)?|momentum|beta[12]_power|epoch_num|step_num"
    "|fake_lr|fake_param|afactor_step"
    "|scale_sense|current_iterator_step|last_overflow_iterator_step"
)
_FAMILIES = {
    frozenset({"moments"}): "Momentum",
    frozenset({"accum", "stat"}): "SGD",
    frozenset({"moment1", "moment2"}): "Adam",
    frozenset({"adam_m", "adam_v"}): "AdamWeightDecay",
}
_IN_TORCH = {
    "Momentum": ("sgd", {"moments": "momentum_buffer"}),
    "SGD": ("sgd", {"accum": "momentum_buffer"}),
    "Adam": ("adam", {"moment1": "exp_avg", "moment2": "exp_avg_sq"}),
    "AdamWeightDecay": ("adam", {"adam_m": "exp_avg", "adam_v": "exp_avg_sq"}),
}
_POWERS = {"beta1_power": 0.8999999761581421, "beta2_power": 0.9990000128746033}
"""MindSpore's default betas as float32, which the powers are products of."""
_FADED = 1e-30
"""A power below has lost its digits."""
_UNCORRECTED = 1_000_000.0
"""From this step on torch's Adam corrects its bias no more, as AdamWeightDecay never does."""


def sorted_out(
    path: Path, form: str, tensors: Tensors, asides: Mapping[str, str], facts: Plain
) -> Content:
    """A file's tensors as weights, asides and optimizer state. ``asides`` are entries that are no
    tensors. Raises WeightsError when no weights are among them."""
    memory: dict[str, dict[str, torch.Tensor]] = {}
    state: dict[str, torch.Tensor] = {}
    scalars: dict[str, torch.Tensor] = {}
    left: dict[str, str] = {}
    for name, tensor in tensors.items():
        owner = _owner(name, tensors)
        if owner is not None:
            prefix, parameter = owner
            memory.setdefault(prefix, {})[parameter] = tensor
            left[name] = "optimizer state"
        # A setting, a counter or, as a rate for each step, a table.
        elif "." not in name and tensor.ndim <= (1 if _SCALAR.fullmatch(name) else 0):
            scalars[name] = tensor
            left[name] = "training scalar"
        else:
            state[name] = tensor
    if not state:
        raise WeightsError(path, "holds no weights", "save the network with its parameters", 65)
    family = _FAMILIES.get(frozenset(memory), ", ".join(sorted(memory)))
    # AdaMax has the prefixes of Adam, but only one beta to take powers of.
    if family == "Adam" and set(_POWERS) & set(scalars) == {"beta1_power"}:
        family = "AdaMax"
    if family not in _IN_TORCH:
        left = {n: f"{why} ({family})" if n not in scalars else why for n, why in left.items()}
    optimizer = MindSporeState(family, memory, scalars) if memory else None
    return Content(form, state, {**left, **asides}, optimizer, facts)


def _owner(name: str, tensors: Tensors) -> tuple[str, str] | None:
    """The prefix of an entry that is optimizer state, and the parameter that it is state of."""
    prefix, _, rest = name.partition(".")
    if prefix in _PREFIXES and rest in tensors and tensors[rest].shape == tensors[name].shape:
        return prefix, rest
    joined = _JOINED.fullmatch(name)
    return (joined[1], joined[2]) if joined and joined[2] in tensors else None


@dataclass(frozen=True)
class MindSporeState:
    """``family`` is MindSpore's name of the optimizer, or the prefixes of one that torch does not
    have; ``memory`` holds, a prefix, the tensors by the parameter's name; ``scalars`` the counters
    that tell the number of steps."""

    family: str
    memory: Mapping[str, Tensors]
    scalars: Tensors

    def named(self, parameters: Mapping[str, Shape]) -> OptimizerBuffers:
        """The state by the file's own names. A parameter that was frozen has none.

        ``momentum_buffer``, ``exp_avg`` and ``exp_avg_sq`` have the parameter's shape and the
        file's dtype, ``step`` is float32 of shape (); for AdamWeightDecay, which does not correct
        its bias, it is so large that torch does not either. Raises WeightsError when torch has no
        such optimizer, the state is of other parameters or no numbers, or the number of steps
        cannot be told.
        """
        if self.family not in _IN_TORCH:
            what = f"the file's optimizer ({self.family}) cannot be continued in torch"
            raise WeightsError(_WHERE, what, _IGNORE, 66)
        algorithm, keys = _IN_TORCH[self.family]
        # SGD marks the buffers that it has not used yet.
        unused = {n for n, mark in self.memory.get("stat", {}).items() if mark.bool().any()}
        buffers: dict[str, dict[str, torch.Tensor]] = {}
        for prefix, key in keys.items():
            for name, tensor in self.memory[prefix].items():
                if name not in unused:
                    check_owner(name, tuple(tensor.shape), parameters)
                    _check_values(name, key, tensor)
                    buffers.setdefault(name, {})[key] = tensor
        if not buffers or any(len(tensors) < len(keys) for tensors in buffers.values()):
            what = f"the file's {self.family} state is empty or incomplete"
            raise WeightsError(_WHERE, what, _IGNORE, 67)
        if algorithm == "adam":
            step = self._steps()
            buffers = {name: {**tensors, "step": step.clone()} for name, tensors in buffers.items()}
        return OptimizerBuffers(algorithm, buffers)

    def _steps(self) -> torch.Tensor:
        """How many steps were made, float32 of shape (). MindSpore 1.x counts them only while the
        rate follows a schedule; otherwise the powers of the betas tell."""
        import torch

        if self.family == "AdamWeightDecay":
            return torch.tensor(_UNCORRECTED)
        numbers = {n: float(t) for n, t in self.scalars.items() if t.numel() == 1}
        counted = numbers.get("global_step", 0.0)
        if math.isfinite(counted) and counted > 0:
            return torch.tensor(float(round(counted)))
        steps = [
            math.log(numbers[name]) / math.log(beta)
            for name, beta in _POWERS.items()
            if _FADED < numbers.get(name, math.nan) <= 1
        ]
        if not steps or max(steps) - min(steps) > 0.01 + 1e-3 * max(steps):
            what = "the file does not say how many steps its Adam has taken"
            raise WeightsError(_WHERE, what, _IGNORE, 68)
        return torch.tensor(float(round(steps[0])))


def _check_values(name: str, key: str, tensor: torch.Tensor) -> None:
    finite = tensor.is_floating_point() and bool(tensor.isfinite().all())
    if not finite or (key == "exp_avg_sq" and bool((tensor < 0).any())):
        what = f"the state '{key}' of '{name}' is not a finite number"
        raise WeightsError(_WHERE, what, _IGNORE, 69)
