"""An optimizer that goes on where another one stopped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xfer.core.errors import CombinationError, WeightsError
from xfer.weights.content import Momenta

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
_NUMBER = ()
"""The shape of a buffer that is one number a parameter."""


@dataclass(frozen=True)
class Loaded:
    """``continued``: names of the parameters that go on with the file's buffers, ``fresh``: of
    those that train too but start without; both in the network's order. ``frozen``: how many
    of the file's parameters do not train."""

    algorithm: str
    continued: tuple[str, ...]
    fresh: tuple[str, ...]
    frozen: int


def load(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], momenta: Momenta
) -> Loaded:
    """Put the buffers of ``momenta`` into the state of ``optimizer``, as it would have made them:
    dtype, device and memory layout of its parameter, the step count where it wants it.

    ``named`` are the network's parameters; every name in ``momenta`` must be one of them, so the
    buffers of a dropped head must be left out before. The optimizer must be fresh. Raises
    WeightsError, before anything is changed, when the optimizer keeps other buffers, a buffer
    does not fit its parameter, or none of the parameters trains; ConfigError for an optimizer
    that keeps more than such buffers.
    """
    if unknown := [name for name in momenta.buffers if name not in named]:
        what = f"the file has state of '{unknown[0]}', which the network does not have"
        raise WeightsError(_WHERE, what, _IGNORE, 29)
    group_of = {p: i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    trains = [name for name, parameter in named.items() if parameter in group_of]
    continued = [name for name in trains if name in momenta.buffers]
    if not continued:
        raise WeightsError(
            _WHERE,
            "nothing that trains has state in the file",
            f"type freeze=none, or {_IGNORE.removeprefix('type ')}",
            34,
        )
    kept = [_first_state(optimizer, group) for group in optimizer.param_groups]
    made: dict[torch.Tensor, dict[str, Any]] = {}
    for name in continued:
        parameter, buffers = named[name], momenta.buffers[name]
        like = kept[group_of[parameter]]
        _check_kind(optimizer, set(like), momenta.algorithm, set(buffers))
        made[parameter] = {key: _fitted(name, key, buffers[key], parameter, like) for key in like}
    optimizer.state.update(made)
    fresh = tuple(name for name in trains if name not in momenta.buffers)
    frozen = len(momenta.buffers) - len(continued)
    return Loaded(momenta.algorithm, tuple(continued), fresh, frozen)


def _first_state(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What ``optimizer`` keeps of a (2, 3) parameter of ``group`` after a first step.

    The step is taken by a twin, made the way that torch unpickles optimizers.
    """
    first = group["params"][0]
    trial = nn.Parameter(torch.zeros(2, 3, dtype=first.dtype, device=first.device))
    trial.grad = torch.ones_like(trial)
    kind = type(optimizer)
    twin = kind.__new__(kind)
    alone = {**group, "params": [trial]}
    try:
        twin.__setstate__(
            {
                "defaults": dict(optimizer.defaults),
                "state": defaultdict(dict),
                "param_groups": [alone],
            }
        )
        twin.step()
    except Exception as error:  # an optimizer of any library may raise anything here
        raise _cannot(optimizer, f"does not work alone ({error})") from error
    state: dict[str, Any] = dict(twin.state[trial])
    state = {key: value for key, value in state.items() if value is not None}
    shapes = {tuple(getattr(value, "shape", ())) for value in state.values()}
    if set(alone) != set(group) or not shapes <= {(2, 3), _NUMBER}:
        raise _cannot(optimizer, "keeps more than buffers of the parameters' shapes")
    return state


def _cannot(optimizer: torch.optim.Optimizer, why: str) -> CombinationError:
    what = f"{type(optimizer).__name__} cannot go on from a file: it {why}"
    return CombinationError("optim", what, f"choose optim=sgd or optim=adamw, or {_IGNORE}", 4)


def _check_kind(
    optimizer: torch.optim.Optimizer, wanted: set[str], algorithm: str, given: set[str]
) -> None:
    if wanted == given:
        return
    kind = type(optimizer).__name__
    keeps = ", ".join(sorted(wanted)) or "nothing"
    raise WeightsError(
        _WHERE,
        f"the file holds the state of {algorithm} ({', '.join(sorted(given))}), "
        f"but {kind} as configured keeps {keeps}",
        f"type {_choice(algorithm, given)}, or source.optimizer=ignore",
        28,
    )


def _choice(algorithm: str, given: set[str]) -> str:
    """The option whose optimizer keeps the buffers ``given``."""
    if algorithm == "sgd":
        return "optim=sgd optim.momentum=0.9"
    if "mu_product" in given:
        return "optim=torch optim.name=NAdam"
    if "max_exp_avg_sq" in given:
        return "optim=torch optim.name=AdamW 'optim.args={amsgrad: true}'"
    return "optim=adamw"


def _fitted(
    name: str, key: str, buffer: torch.Tensor, parameter: nn.Parameter, like: Mapping[str, Any]
) -> Any:
    """``buffer`` as the optimizer keeps it for ``parameter``; always a copy."""
    pattern = like[key]
    number = tuple(getattr(pattern, "shape", ())) == _NUMBER
    wanted = _NUMBER if number else tuple(parameter.shape)
    if tuple(buffer.shape) != wanted:
        raise _unfit(name, key, f"is {list(buffer.shape)}, but must be {list(wanted)}")
    if not isinstance(pattern, torch.Tensor):
        return type(pattern)(buffer.item())
    # A fused step reads parameter and buffers in the order of their memory.
    made = torch.empty_like(pattern if number else parameter, dtype=pattern.dtype)
    made = made.detach().copy_(buffer)
    if not made.isfinite().all():
        raise _unfit(name, key, f"is not finite as {made.dtype}")
    return made


def _unfit(name: str, key: str, why: str) -> WeightsError:
    return WeightsError(_WHERE, f"the state '{key}' of '{name}' {why}", _IGNORE, 29)
