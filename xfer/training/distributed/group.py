"""The processes that train together, and what they tell each other.

Gradients go through torch's own group (nccl on GPUs). Everything else is small, lies in the
processor's memory and goes through a gloo group of its own, so that it never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
"""Rank 0 may compute features for hours while the others wait; one that dies is noticed at once,
because its connections close."""


class Team:
    """``ranks`` processes, of which this is number ``rank``; alone, every call is its own echo."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rank, self.ranks = rank, ranks
        self._group: Any = (
            distributed.new_group(backend="gloo", timeout=_PATIENCE) if ranks > 1 else None
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """What rank 0 has for ``value``."""
        if self._group is None:
            return value
        held = [value]
        distributed.broadcast_object_list(held, 0, self._group, torch.device("cpu"))
        return held[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's ``value``, in their order."""
        if self._group is None:
            return [value]
        held: list[Any] = [None] * self.ranks
        distributed.all_gather_object(held, value, self._group)
        return held

    def largest(self, number: int) -> int:
        """The largest ``number`` of any rank."""
        if self._group is None:
            return number
        held = torch.tensor(number)
        distributed.all_reduce(held, distributed.ReduceOp.MAX, self._group)
        return int(held)

    def leader_first(self) -> Any:
        """Within, rank 0 alone; the others follow when it is done, and find what it left."""
        return nullcontext() if self._group is None else self._in_turn()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self.leads:
            distributed.barrier(self._group)
        yield
        if self.leads:
            distributed.barrier(self._group)

    def same(self, net: torch.nn.Module) -> None:
        """Give the tensors of ``net``, in place, the values that rank 0 has."""
        if self._group is None:
            return
        for tensor in net.state_dict().values():
            distributed.broadcast(tensor, 0, self._group)

    def same_buffers(self, net: torch.nn.Module) -> None:
        """The same for buffers alone, wherever they lie."""
        if self._group is None:
            return
        for buffer, value in zip(
            net.buffers(), self.told([b.cpu() for b in net.buffers()]), strict=True
        ):
            buffer.copy_(value)


ALONE = Team()
