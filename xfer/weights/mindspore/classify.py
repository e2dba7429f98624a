"""What MindSpore's training leaves beside the weights, told from them.

The optimizer writes its memory of parameter ``x`` as ``<prefix>.x``, its settings and counters
under plain names. So an entry is optimizer state when its first part is such a prefix and the
rest is itself an entry of the same shape; a module that is called ``moments`` keeps its weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError
from xfer.weights.content import Content
from xfer.weights.mindspore.ckpt_optimizer import IN_TORCH, POWERS, MindSporeState

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from xfer.core.types import Plain

    Tensors = Mapping[str, torch.Tensor]

_FAMILIES = {
    frozenset({"moments"}): "Momentum",
    frozenset({"accum", "stat"}): "SGD",
    frozenset({"moment1", "moment2"}): "Adam",
    frozenset({"adam_m", "adam_v"}): "AdamWeightDecay",
    frozenset({"mean_square", "moment"}): "RMSProp",
    frozenset({"mean_square", "moment", "mean_gradient"}): "RMSProp",
    frozenset({"mean_square", "moment", "mean_grad"}): "RMSProp",
    frozenset({"accum"}): "Adagrad",
    frozenset({"accum", "accum_update"}): "Adadelta",
    frozenset({"moments", "linear"}): "FTRL",
    frozenset({"lamb_m", "lamb_v"}): "Lamb",
    frozenset({"moment1", "moment2", "vhat"}): "AMSGrad",
    frozenset({"prev", "step_size"}): "Rprop",
    frozenset({"ax_", "mu", "eta"}): "ASGD",
    frozenset({"exp_avg", "exp_avg_sq"}): "NAdam or RAdam of mindspore.experimental",
    frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}): "Adam of mindspore.experimental",
    frozenset({"exp_avg", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"}): "AdaFactor",
    frozenset({"exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"}): "AdaFactor",
}
_PREFIXES = frozenset().union(*_FAMILIES)
_JOINED = re.compile(r"(exp_avg_sq(?:_row|_col)?|mu|eta)_(.+)")
"""State of AdaFactor and ASGD that has no dot after its prefix and a shape of its own."""
_SCALAR = re.compile(
    "global_step|learning_rate(_group_[0-9]+)?|momentum|beta[12]_power|epoch_num|step_num"
    "|fake_lr|fake_param|afactor_step"
    "|scale_sense|current_iterator_step|last_overflow_iterator_step"
)


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
        elif _is_scalar(name, tensor):
            scalars[name] = tensor
            left[name] = "training scalar"
        else:
            state[name] = tensor
    if not state:
        raise WeightsError(path, "holds no weights", "save the network with its parameters", 65)
    family = _family(memory, scalars)
    if family not in IN_TORCH:
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


def _is_scalar(name: str, tensor: torch.Tensor) -> bool:
    """A setting, a counter or, as a rate for each step, a table."""
    return tensor.ndim <= (1 if _SCALAR.fullmatch(name) else 0) and "." not in name


def _family(memory: Mapping[str, Tensors], scalars: Tensors) -> str:
    # AdaMax has the prefixes of Adam, but only one beta to take powers of.
    if set(memory) == {"moment1", "moment2"} and set(POWERS) & set(scalars) == {"beta1_power"}:
        return "AdaMax"
    return _FAMILIES.get(frozenset(memory), " and ".join(sorted(memory)))
