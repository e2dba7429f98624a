"""The audit of an optimizer: what will ever train is in exactly one group, nothing else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from xfer.core.errors import ConfigError, XferError
from xfer.freeze.rows import Phase, ever

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from xfer.core.types import Plain


def audit(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    phases: Sequence[Phase],
    phase: int,
) -> list[Plain]:
    """One row a group, in order: ``lr``, ``weight_decay``, number of ``tensors`` and of
    ``parameters``, the first three ``names``. ``phase`` is the position of the one that holds.

    Raises XferError, a bug, when a parameter that never trains is in a group, one that trains
    some time is in none or in two, a group holds multiples that differ, or a gradient is on where
    the phase says frozen or off where it says trained.
    """
    parameters = dict(named_parameters)
    names = {id(p): name for name, p in parameters.items()}
    multiples = ever(phases)
    groups = [
        [names.get(id(p), "a parameter of no network") for p in group["params"]]
        for group in optimizer.param_groups
    ]
    _check_groups(groups, multiples)
    for name, parameter in parameters.items():
        if parameter.requires_grad != (multiples[name][phase] > 0):
            state = "has a gradient" if parameter.requires_grad else "has no gradient"
            raise _broken(f"'{name}' {state} in phase '{phases[phase].name}'")
    return [
        {
            "lr": float(group["lr"]),
            "weight_decay": float(group.get("weight_decay", 0)),
            "tensors": len(group["params"]),
            "parameters": sum(p.numel() for p in group["params"]),
            "names": members[:3],
        }
        for group, members in zip(optimizer.param_groups, groups, strict=True)
    ]


def _check_groups(groups: Sequence[Sequence[str]], multiples: dict[str, tuple[float, ...]]) -> None:
    count = Counter(name for group in groups for name in group)
    for name in count:
        if not any(multiples.get(name, ())):
            raise _broken(f"'{name}' never trains and is in an optimizer group")
    for name, by_phase in multiples.items():
        if any(by_phase) and count[name] != 1:
            raise _broken(f"'{name}' trains and is in {count[name]} optimizer groups")
    for group in groups:
        if len({multiples[name] for name in group}) > 1:
            raise _broken(f"the optimizer group of '{group[0]}' mixes learning-rate multiples")


def _broken(what: str) -> XferError:
    return XferError("freeze", what, "report this bug", 2)


def check_read(
    named_parameters: Iterable[tuple[str, nn.Parameter]], adapters: Collection[str]
) -> None:
    """Raise ConfigError when one of ``adapters`` has no gradient after a backward pass: then the
    network does not read its weight. A gradient of zeros is one, which every adapter has while
    the new head is zero."""
    for name, parameter in named_parameters:
        if name in adapters and parameter.grad is None:
            weight = name.rpartition("_lora_")[0]
            what = f"the network never reads '{weight}', so its adapter learns nothing"
            raise ConfigError("freeze.targets", what, "write a pattern that leaves it out", 32)
