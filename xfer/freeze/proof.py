"""The proof that frozen is frozen: a hash of every such tensor before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xfer.core.checksum import over, tensor_hashes, whole
from xfer.freeze.apply import batch_norms, resting
from xfer.freeze.rows import BatchNorm, ParameterRow

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xfer.core.types import Plain


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
