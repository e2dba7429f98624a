"""What trains and what does not: an optimizer's groups before, and hashes of tensors after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xfer.core.checksum import over, tensor_hashes, whole
from xfer.core.errors import ConfigError, XferError
from xfer.freeze.apply import batch_norms, resting
from xfer.freeze.rows import BatchNorm, ParameterRow, Phase, ever

if TYPE_CHECKING:
    import torch
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


def frozen(
    net: nn.Module, rows: Sequence[ParameterRow], batch_norm: BatchNorm = "eval"
) -> set[str]:
    """Names of every tensor of the state that cannot move while ``rows`` hold: the parameters
    that they freeze, and the buffers of modules that are wholly frozen or, without a parameter,
    at rest.

    The statistics of a BatchNorm move with ``adapt`` and ``train``, and are left out.
    """
    still = {row.name for row in rows if row.frozen}
    norms = {path for path, _ in batch_norms(net)} if batch_norm != "eval" else set()
    ids = {id(p) for name, p in net.named_parameters() if name in still}
    at_rest = list(resting(net, ids))
    for path, module in net.named_modules():
        names = {name for name, _ in module.named_parameters(path)}
        if batch_norm == "train":
            names = {name for name in names if name.rpartition(".")[0] not in norms}
        if names and names <= still:
            at_rest.append((path, module))
    buffers = {name for path, module in at_rest for name, _ in module.named_buffers(path)}
    buffers = {name for name in buffers if name.rpartition(".")[0] not in norms}
    return (still | buffers) & set(net.state_dict())


def hashes(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, str]:
    """sha256 of each named tensor's name, dtype, shape and bytes. A name that ``state`` lacks is
    left out, which :func:`verdict` counts as moved."""
    return tensor_hashes((name, whole(state[name])) for name in sorted(names) if name in state)


def verdict(before: Mapping[str, str], after: Mapping[str, str]) -> Plain:
    """What ``freeze_proof.json`` holds: whether nothing ``moved``, the number of tensors, one
    sha256 over all of them, and each one's, before and after."""
    names = sorted({*before, *after})
    moved = [name for name in names if before.get(name) != after.get(name)]
    return {
        "proved": not moved,
        "tensors": len(names),
        "moved": moved,
        "sha256": {"before": over(before), "after": over(after)},
        "hashes": {n: {"before": before.get(n), "after": after.get(n)} for n in names},
    }
