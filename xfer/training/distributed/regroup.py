"""What a run needs that goes on with other ranks than it began with.

Its batches stay, and so do their parts wherever that is possible: fewer ranks compute several of
them, one after the other, before the optimizer's step. Resume files count whole batches, so that
any number of ranks can read what any other wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from xfer.core.types import Plain, StateDict


def count_whole(checkpoint: Plain, pieces: int) -> None:
    """Have Lightning's record of a rank that takes ``pieces`` of each batch count batches."""
    _recount(checkpoint, lambda count: count // pieces)


def count_pieces(checkpoint: Plain, pieces: int) -> None:
    """Have a record that counts batches count the ``pieces`` that a rank takes of each."""
    _recount(checkpoint, lambda count: count * pieces)


def _recount(checkpoint: Plain, counted: Callable[[int], int]) -> None:
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for span in ("total", "current"):
        # Files are written where a step ends, whose last batch may be counted as completed later.
        late = progress[span]["processed"] - progress[span]["completed"]
        for key in ("ready", "started", "processed"):
            progress[span][key] = counted(progress[span][key])
        progress[span]["completed"] = progress[span]["processed"] - late


def losses_of(sums: Sequence[StateDict], rank: int, ranks: int) -> StateDict:
    """What ``rank`` of ``ranks`` continues of the epoch's training loss, of which ``sums`` has a
    part of each rank that there was: its own or, where they are not as many, the first all."""
    import torch

    if len(sums) == ranks:
        return sums[rank]
    total = {key: torch.stack([part[key] for part in sums]).sum(0) for key in sums[0]}
    return total if rank == 0 else {key: torch.zeros_like(total[key]) for key in total}


def track(net: nn.Module, tracks: bool) -> None:
    """Whether BatchNorm that trains takes up what it sees into its moving statistics, which are
    those of the first part of each batch alone."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.track_running_stats = tracks
