"""The optimizer state of a source under the network's names, the old head's left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.weights.content import Momenta
from xfer.weights.match_table import USED
from xfer.weights.optimizer_state.from_torch import trainable
from xfer.weights.reshape import adapted

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Weights
    from xfer.weights.match_table import Match


def continued(weights: Weights, found: Match, heads: Sequence[str]) -> tuple[Momenta, list[str]]:
    """The state of everything that was loaded, and the file's names whose state was left out.

    ``heads`` are the classifier paths that are replaced. Raises WeightsError when the state does
    not belong to these weights.
    """
    assert weights.optimizer is not None and weights.state is not None
    own = {weights.renamed.get(name, name): tensor for name, tensor in weights.state.items()}
    momenta = weights.optimizer.named(trainable(own))
    replaced = tuple(f"{head}." for head in heads)
    rows = {row.key: row for row in found.rows if row.name and row.fate in USED}
    buffers, dropped = {}, []
    for key, tensors in momenta.buffers.items():
        row = rows.get(key)
        if row is None or row.name is None or row.name.startswith(replaced):
            dropped.append(key)
            continue
        target = found.state[row.name]
        buffers[row.name] = {
            name: _shaped(row.name, tensor, target, weights) for name, tensor in tensors.items()
        }
    return Momenta(momenta.algorithm, buffers), dropped


def _shaped(
    name: str, buffer: torch.Tensor, target: torch.Tensor, weights: Weights
) -> torch.Tensor:
    """``buffer`` in the shape that its tensor was given."""
    if buffer.ndim == 0 or buffer.shape == target.shape:
        return buffer
    other = adapted(name, buffer, tuple(target.shape), weights)
    return buffer if other is None else other[0]
