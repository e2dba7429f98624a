"""The memory of MindSpore's optimizers under the names that torch gives it.

Its Momentum and SGD keep torch's ``momentum_buffer``, its Adam torch's two averages; the others
compute something that torch's do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError
from xfer.weights.content import Momenta

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Shape

    Tensors = Mapping[str, torch.Tensor]

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
IN_TORCH = {
    "Momentum": ("sgd", {"moments": "momentum_buffer"}),
    "SGD": ("sgd", {"accum": "momentum_buffer"}),
    "Adam": ("adam", {"moment1": "exp_avg", "moment2": "exp_avg_sq"}),
    "AdamWeightDecay": ("adam", {"adam_m": "exp_avg", "adam_v": "exp_avg_sq"}),
}
POWERS = {"beta1_power": 0.8999999761581421, "beta2_power": 0.9990000128746033}
"""MindSpore's default betas as float32, which the powers are products of."""
_FADED = 1e-30
"""A power below has lost its digits."""
_UNCORRECTED = 1_000_000.0
"""From this step on torch's Adam corrects its bias no more, as AdamWeightDecay never does."""


@dataclass(frozen=True)
class MindSporeState:
    """``family`` is MindSpore's name of the optimizer; ``memory`` holds, a prefix, the tensors by
    the parameter's name; ``scalars`` the counters that tell the number of steps."""

    family: str
    memory: Mapping[str, Tensors]
    scalars: Tensors

    def named(self, parameters: Mapping[str, Shape]) -> Momenta:
        """The state by the file's own names. A parameter that was frozen has none.

        ``momentum_buffer``, ``exp_avg`` and ``exp_avg_sq`` have the parameter's shape and the
        file's dtype, ``step`` is float32 of shape (); for AdamWeightDecay, which does not correct
        its bias, it is so large that torch does not either. Raises WeightsError when torch has no
        such optimizer, the state is of other parameters or no numbers, or the number of steps
        cannot be told.
        """
        if self.family not in IN_TORCH:
            what = f"the file's optimizer, {self.family}, cannot be continued in torch"
            raise WeightsError(_WHERE, what, _IGNORE, 66)
        algorithm, keys = IN_TORCH[self.family]
        found: dict[str, dict[str, torch.Tensor]] = {}
        for prefix, key in keys.items():
            for name, tensor in self._begun(prefix).items():
                _check(name, key, tensor, parameters)
                found.setdefault(name, {})[key] = tensor
        if not found or any(len(buffers) < len(keys) for buffers in found.values()):
            what = f"the file's {self.family} remembers nothing, or not all it needs"
            raise WeightsError(_WHERE, what, _IGNORE, 67)
        if algorithm == "adam":
            step = _steps(self)
            found = {name: {**buffers, "step": step.clone()} for name, buffers in found.items()}
        return Momenta(algorithm, found)

    def _begun(self, prefix: str) -> Tensors:
        """The buffers under ``prefix``, less those that SGD marks as not yet used."""
        marks = self.memory.get("stat", {})
        begun = {name for name, mark in marks.items() if not mark.bool().any()}
        return {n: t for n, t in self.memory[prefix].items() if n not in marks or n in begun}


def _check(name: str, key: str, tensor: torch.Tensor, parameters: Mapping[str, Shape]) -> None:
    what = ""
    if name not in parameters:
        what = f"the file has state of '{name}', but no weight"
    elif tuple(tensor.shape) != parameters[name]:
        what = f"the state of '{name}' is {list(tensor.shape)}, not {list(parameters[name])}"
    if what:
        raise WeightsError(_WHERE, what, _IGNORE, 26)
    numbers = tensor.is_floating_point() and bool(tensor.isfinite().all())
    if not numbers or (key == "exp_avg_sq" and bool((tensor < 0).any())):
        raise WeightsError(_WHERE, f"the state '{key}' of '{name}' is no number", _IGNORE, 69)


def _steps(state: MindSporeState) -> torch.Tensor:
    """How many steps were made, float32 of shape (). MindSpore 1.x counts them only while the
    rate follows a schedule; otherwise the powers of the betas tell."""
    import torch

    if state.family == "AdamWeightDecay":
        return torch.tensor(_UNCORRECTED)
    counted = _number(state.scalars, "global_step")
    if counted is not None and counted > 0:
        return torch.tensor(float(round(counted)))
    powers = {name: _number(state.scalars, name) for name in POWERS}
    told = [
        math.log(power) / math.log(POWERS[name])
        for name, power in powers.items()
        if power is not None and _FADED < power <= 1
    ]
    if not told or max(told) - min(told) > 0.01 + 1e-3 * max(told):
        raise WeightsError(
            _WHERE, "the file does not tell how many steps its Adam has made", _IGNORE, 68
        )
    return torch.tensor(float(round(told[0])))


def _number(scalars: Tensors, name: str) -> float | None:
    value = float(scalars[name]) if name in scalars and scalars[name].numel() == 1 else math.nan
    return value if math.isfinite(value) else None
