"""The proof that frozen is frozen: a hash of every such tensor before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xfer.core.checksum import over, tensor_hashes
from xfer.freeze.apply import batch_norms, resting
from xfer.freeze.policy import BatchNorm
from xfer.freeze.rows import Row

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xfer.core.types import Plain


def frozen(net: nn.Module, rows: Sequence[Row], batch_norm: BatchNorm = "eval") -> set[str]:
    """Names of every tensor of the state that cannot move while ``rows`` hold: the parameters
    that they freeze, and the buffers of modules that are wholly frozen or, without a parameter,
    at rest.

    The statistics of a BatchNorm move with ``adapt`` and ``train``, and are left out.
    """
    still = {row.name for row in rows if row.frozen}
    norms = {path for path, _ in batch_norms(net)} if batch_norm != "eval" else set()
    found = set(still)
    for path, module in net.named_modules():
        start = f"{path}." if path else ""
        own = {start + name for name, _ in module.named_parameters()}
        if batch_norm == "train":
            own = {name for name in own if name.rpartition(".")[0] not in norms}
        if own and own <= still:
            found |= _buffers(path, module, norms)
    ids = {id(p) for name, p in net.named_parameters() if name in still}
    for path, module in resting(net, ids):
        found |= _buffers(path, module, norms)
    return found & set(net.state_dict())


def _buffers(path: str, module: nn.Module, norms: set[str]) -> set[str]:
    """Names of the buffers in ``module``, but for those of ``norms``."""
    names = {name for name, _ in module.named_buffers(path)}
    return {name for name in names if name.rpartition(".")[0] not in norms}


def hashes(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, str]:
    """sha256 of each named tensor's name, dtype, shape and bytes. A name that ``state`` lacks is
    left out, which :func:`verdict` tells as moved."""
    return tensor_hashes((name, state[name]) for name in sorted(names) if name in state)


def verdict(before: Mapping[str, str], after: Mapping[str, str]) -> Plain:
    """What ``freeze_proof.json`` holds: whether nothing ``moved``, the number of tensors, one
    sha256 over all of them, and each one's own, before and after."""
    names = sorted({*before, *after})
    moved = [name for name in names if before.get(name) != after.get(name)]
    return {
        "proved": not moved,
        "tensors": len(names),
        "moved": moved,
        "sha256": {"before": over(before), "after": over(after)},
        "hashes": {n: {"before": before.get(n), "after": after.get(n)} for n in names},
    }
