"""The processes that train together, and what they send each other.

Gradients go through torch's own group (nccl on GPUs). Everything else lies in the processor's
memory and goes through a gloo group of its own, so that it never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy.typing as npt
import torch
from torch import distributed

from xfer.core.long_array import zeros
from xfer.data.sampler import RankShare

T = TypeVar("T")
Rows = npt.NDArray[Any]

_PATIENCE = timedelta(days=30)
"""Rank 0 may solve or write for hours while the others wait; one that dies is noticed at once,
because its connections close."""
_AT_ONCE = 1 << 13  # rows that are sent together


class ProcessGroup:
    """``ranks`` processes, of which this is number ``rank``, and number ``local`` on its node; one
    alone keeps every value."""

    def __init__(self, rank: int = 0, ranks: int = 1, local: int = 0) -> None:
        self.rank, self.ranks, self.local = rank, ranks, local
        self._group: Any = (
            distributed.new_group(backend="gloo", timeout=_PATIENCE) if ranks > 1 else None
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def share(self) -> RankShare:
        """The part of a sequence that is this process's."""
        return RankShare(self.rank, self.ranks)

    def broadcast(self, value: T) -> T:
        """What rank 0 has for ``value``."""
        if self._group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0, self._group, torch.device("cpu"))
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in their order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.ranks
        distributed.all_gather_object(values, value, self._group)
        return values

    def gather_rows(self, rows: Rows) -> Rows:
        """On rank 0 the rows (n, ...) of all ranks after each other, as many as they may be; every
        other keeps its own."""
        if self._group is None:
            return rows
        counts = self.all_gather(len(rows))
        if not self.leads:
            for start in range(0, len(rows), _AT_ONCE):
                distributed.send(torch.tensor(rows[start : start + _AT_ONCE]), 0, self._group)
            return rows
        every = zeros((sum(counts), *rows.shape[1:]), rows.dtype)
        every[: len(rows)] = rows
        end = len(rows)
        for rank, count in enumerate(counts[1:], 1):
            begin, end = end, end + count
            for start in range(begin, end, _AT_ONCE):
                block = torch.from_numpy(every[start : min(start + _AT_ONCE, end)])
                distributed.recv(block, rank, self._group)
        return every

    def all_reduce_max(self, number: int) -> int:
        """The largest ``number`` of any rank."""
        return self._reduced(number, "MAX")

    def all_reduce_sum(self, number: int) -> int:
        """The sum of every rank's ``number``."""
        return self._reduced(number, "SUM")

    def _reduced(self, number: int, how: Literal["MAX", "SUM"]) -> int:
        if self._group is None:
            return number
        value = torch.tensor(number)
        distributed.all_reduce(value, getattr(distributed.ReduceOp, how), self._group)
        return int(value)

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Within, rank 0 alone; the others follow when it is done, and see what it left."""
        if self._group is not None and not self.leads:
            distributed.barrier(self._group)
        yield
        if self._group is not None and self.leads:
            distributed.barrier(self._group)

    def broadcast_state(self, net: torch.nn.Module) -> None:
        """Give the tensors of ``net``, wherever they lie, the values that rank 0 has."""
        if self._group is not None:
            for tensor in net.state_dict().values():
                # Bytes are sent as they lie, which may be in another order on another rank.
                value = tensor.cpu().contiguous()
                distributed.broadcast(value, 0, self._group)
                tensor.copy_(value)

    def broadcast_buffers(self, net: torch.nn.Module) -> None:
        """Give the buffers of ``net``, wherever they lie, the values that rank 0 has."""
        if self._group is not None:
            values = self.broadcast([buffer.cpu() for buffer in net.buffers()])
            for buffer, value in zip(net.buffers(), values, strict=True):
                buffer.copy_(value)


ALONE = ProcessGroup()
