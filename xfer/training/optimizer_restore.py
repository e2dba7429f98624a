"""An optimizer that continues where another one stopped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from xfer.core.errors import CombinationError, WeightsError
from xfer.weights.content import OptimizerBuffers

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
_NUMBER = ()
"""The shape of a buffer that is one number a parameter."""


def load(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], saved: OptimizerBuffers
) -> tuple[str, ...]:
    """Put the buffers of ``saved`` into the state of ``optimizer``, as it would have made them:
    dtype, device and memory layout of its parameter, the step count where it wants it. Gives the
    names of the parameters that continue with them, in the network's order; others that train
    start without.

    ``named`` are the network's parameters; every name in ``saved`` must be one of them, so the
    buffers of a dropped head must be left out before. The optimizer must be fresh. Raises
    WeightsError, before anything is changed, when the optimizer keeps other buffers, a buffer
    does not fit its parameter, or none of the parameters trains; ConfigError for an optimizer
    that keeps more than such buffers.
    """
    if unknown := [name for name in saved.buffers if name not in named]:
        what = f"the file has state of '{unknown[0]}', which the network does not have"
        raise WeightsError(_WHERE, what, _IGNORE, 29)
    group_of = {p: i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    continued = {n: p for n, p in named.items() if p in group_of and n in saved.buffers}
    if not continued:
        what = "nothing that trains has state in the file"
        fix = f"type freeze=none, or {_IGNORE.removeprefix('type ')}"
        raise WeightsError(_WHERE, what, fix, 34)
    patterns = [_first_state(optimizer, group) for group in optimizer.param_groups]
    made: dict[torch.Tensor, dict[str, Any]] = {}
    for name, parameter in continued.items():
        buffers, pattern = saved.buffers[name], patterns[group_of[parameter]]
        if buffers.keys() != pattern.keys():
            raise _other_kind(optimizer, set(pattern), saved.algorithm, set(buffers))
        made[parameter] = {
            key: _converted(name, key, buffers[key], parameter, value)
            for key, value in pattern.items()
        }
    optimizer.state.update(made)
    return tuple(continued)


def _first_state(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What ``optimizer`` keeps of a (2, 3) parameter of ``group`` after a first step.

    The step is taken by a twin, made the way that torch unpickles optimizers.
    """
    first, kind = group["params"][0], type(optimizer)
    trial = nn.Parameter(torch.zeros(2, 3, dtype=first.dtype, device=first.device))
    trial.grad = torch.ones_like(trial)
    twin, alone = kind.__new__(kind), {**group, "params": [trial]}
    defaults, why = dict(optimizer.defaults), ""
    state: dict[str, Any] = {}
    try:
        twin.__setstate__(
            {"defaults": defaults, "state": defaultdict(dict), "param_groups": [alone]}
        )
        twin.step()
        state = {key: value for key, value in twin.state[trial].items() if value is not None}
    except Exception as error:  # an optimizer of any library may raise anything here
        why = f"does not work alone ({error})"
    shapes = {tuple(getattr(value, "shape", ())) for value in state.values()}
    if not why and (set(alone) != set(group) or not shapes <= {(2, 3), _NUMBER}):
        why = "keeps more than buffers of the parameters' shapes"
    if why:
        what = f"{kind.__name__} cannot continue from a file: it {why}"
        fix = f"choose optim=sgd or optim=adamw, or {_IGNORE}"
        raise CombinationError("optim", what, fix, 4)
    return state


def _other_kind(
    optimizer: torch.optim.Optimizer, wanted: set[str], algorithm: str, given: set[str]
) -> WeightsError:
    """The error for an optimizer that keeps other buffers; it names the option that keeps
    ``given``."""
    if algorithm == "sgd":
        option = "optim=sgd optim.momentum=0.9"
    elif "mu_product" in given:
        option = "optim=torch optim.name=NAdam"
    elif "max_exp_avg_sq" in given:
        option = "optim=torch optim.name=AdamW 'optim.args={amsgrad: true}'"
    else:
        option = "optim=adamw"
    what = (
        f"the file holds the state of {algorithm} ({', '.join(sorted(given))}), but "
        f"{type(optimizer).__name__} as configured keeps {', '.join(sorted(wanted)) or 'nothing'}"
    )
    return WeightsError(_WHERE, what, f"type {option}, or source.optimizer=ignore", 28)


def _converted(
    name: str, key: str, buffer: torch.Tensor, parameter: nn.Parameter, pattern: Any
) -> Any:
    """``buffer`` as the optimizer keeps it for ``parameter``, where it would keep a ``pattern`` for
    another one; always a copy."""
    number = tuple(getattr(pattern, "shape", ())) == _NUMBER
    wanted = _NUMBER if number else tuple(parameter.shape)
    state = f"the state '{key}' of '{name}'"
    if tuple(buffer.shape) != wanted:
        what = f"{state} is {list(buffer.shape)}, but must be {list(wanted)}"
        raise WeightsError(_WHERE, what, _IGNORE, 29)
    if not isinstance(pattern, torch.Tensor):
        return type(pattern)(buffer.item())
    # A fused step reads parameter and buffers in the order of their memory.
    made = torch.empty_like(pattern if number else parameter, dtype=pattern.dtype)
    made = made.detach().copy_(buffer)
    if not made.isfinite().all():
        raise WeightsError(_WHERE, f"{state} is not finite as {made.dtype}", _IGNORE, 29)
    return made
