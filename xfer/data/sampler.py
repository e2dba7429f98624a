"""The order of training images: a pure function of (seed, epoch), shared out among ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from xfer.core.seeds import derive
from xfer.data.multilabel_rows import label_odds

if TYPE_CHECKING:
    import numpy.typing as npt

Draw = tuple[int, ...]
"""(index), or (index, time) from the second time on that an image is drawn, time 1."""


def balanced(labels: Sequence[int], shuffled: Callable[[int], list[int]]) -> list[Draw]:
    """As many draws as there are ``labels``, every class as often as any other, give or take one.

    Within a class no image comes twice more often than another. ``shuffled(n)`` is a random order
    of 0 to n - 1; nothing else is random here.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    share, rest = divmod(len(labels), len(members))
    favoured = set(shuffled(len(members))[:rest])
    drawn: list[Draw] = []
    for place, label in enumerate(sorted(members)):
        images, count = members[label], share + (place in favoured)
        times = -(-count // len(images))
        of_class: list[Draw] = []
        for time in range(times):
            again = (time,) if time else ()
            of_class += [(images[i], *again) for i in shuffled(len(images))]
        drawn += of_class[:count]
    return [drawn[i] for i in shuffled(len(drawn))]


def balanced_labels(
    labels: npt.NDArray[np.int64], shuffled: Callable[[int], list[int]], start: float
) -> list[Draw]:
    """As many draws as there are images with these labels (n, classes), each as often as
    :func:`xfer.data.multilabel_rows.label_odds` has it, rounded up or down.

    Which of the two is decided by systematic sampling (W. G. Madow, 1949) along a
    random order, from ``start`` on, a random number from 0 to 1.
    """
    order = shuffled(len(labels))
    ends = np.minimum(np.cumsum(label_odds(labels)[order]), len(labels))
    ends[-1] = len(labels)
    times = np.diff(np.floor(ends + start), prepend=np.floor(start)).astype(np.int64)
    drawn: list[Draw] = []
    for index, count in zip(order, times.tolist(), strict=True):
        drawn += [(index, time) if time else (index,) for time in range(count)]
    return [drawn[i] for i in shuffled(len(drawn))]


Key = tuple[int, ...]
"""(epoch, index): what one training image is drawn for; (epoch, index, time) from the second time
on in the same epoch."""


class RankShare(NamedTuple):
    """What part of the batches is this process's: that of ``rank`` (from 0) of ``ranks``. A run
    that goes on with other ranks has ``begun`` with so many, and keeps their batches; ``None``
    stands for as many as now."""

    rank: int = 0
    ranks: int = 1
    begun: int | None = None

    @property
    def pieces(self) -> int:
        """How many parts of a training batch each rank computes, one after the other."""
        return -(-(self.begun or self.ranks) // self.ranks)

    @property
    def parts(self) -> int:
        """Into how many parts a training batch is divided: as it was, wherever that is possible."""
        return self.ranks * self.pieces

    def of(self, count: int) -> range:
        """Which of ``count`` batches are this process's: as many as any other's, but for one."""
        return range(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)


ALL = RankShare()


class EpochSampler(Sampler[list[Key]]):
    """Shuffled batches of one epoch, a pure function of (seed, epoch).

    Of ``ranks`` processes each takes its even part of every batch of ``ranks * batch_size``
    images, so all of them together see what one process with that batch size would. A remainder
    of less than two images a rank joins the batch before it: batch normalisation cannot train on
    one image. Ranks that go on with what others have begun keep these batches; fewer of them take
    several parts of each, one after the other. Where ``labels`` are set, every class comes equally
    often; of several labels an image (n, classes) see :func:`balanced_labels`.
    """

    labels: Sequence[int] | npt.NDArray[np.int64] | None = None

    def __init__(self, count: int, batch_size: int, seed: int, share: RankShare = ALL) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.share, self.begun = share, share.begun or share.ranks
        self.epoch = 0
        self.skip = 0
        # Lightning looks for set_epoch on ``batch_sampler.sampler``.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return batches(self.count, self.batch_size, self.begun) * self.share.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        parts = self.parts()  # now: the epoch may be another when the next batch is asked for
        mine = (some[rank] for some in parts for rank in self._mine())
        return islice(mine, self.skip, None)

    def groups(self) -> list[list[Key]]:
        """The keys of every batch of the epoch, as far as they are this rank's."""
        return [some[rank] for some in self.parts() for rank in self._mine()]

    def _mine(self) -> range:
        return range(self.share.rank, self.share.parts, self.share.ranks)

    def part(self, number: int) -> tuple[int, int]:
        """Of which batch of the epoch the rank's batch ``number`` is which part (both from 0)."""
        batch, piece = divmod(number, self.share.pieces)
        return batch, self._mine()[piece]

    def parts(self) -> Iterator[list[list[Key]]]:
        """The keys of every batch of the epoch, part by part: those of a rank each, as it began."""
        keys, size, each = self._keys(), self.batch_size * self.begun, self.share.parts
        starts = [i * size for i in range(batches(self.count, self.batch_size, self.begun))]
        spans = zip(starts, [*starts[1:], self.count], strict=True)
        whole = (keys(start, end) for start, end in spans)
        return ([batch[part::each] for part in range(each)] for batch in whole)

    def _keys(self) -> Callable[[int, int], list[Key]]:
        """The keys of the epoch from one position in its order to another."""
        epoch, generator = self.epoch, torch.Generator()
        generator.manual_seed(derive("order", self.seed, epoch))

        def shuffled(count: int) -> list[int]:
            order: list[int] = torch.randperm(count, generator=generator).tolist()
            return order

        if self.labels is None:
            order = torch.randperm(self.count, generator=generator)
            return lambda start, end: [(epoch, index) for index in order[start:end].tolist()]
        if isinstance(self.labels, np.ndarray):
            start = float(torch.rand(1, generator=generator, dtype=torch.float64))
            draws = balanced_labels(self.labels, shuffled, start)
        else:
            draws = balanced(self.labels, shuffled)
        return lambda start, end: [(epoch, *draw) for draw in draws[start:end]]

    def weight(self, number: int) -> float:
        """What this rank's mean loss of its batch ``number`` (from 0) must be multiplied by, so
        that the mean over the parts is the mean over the images."""
        (batch, part), each, size = (
            self.part(number),
            self.share.parts,
            self.batch_size * self.begun,
        )
        last = number + self.share.pieces >= len(self)
        whole = self.count - batch * size if last else size
        return len(range(part, whole, each)) * each / whole


def batches(count: int, batch_size: int, ranks: int = 1) -> int:
    """Training batches an epoch."""
    whole, rest = divmod(count, batch_size * ranks)
    return whole + (1 if rest >= 2 * ranks or not whole else 0)


def shared_size(count: int, batch_size: int, ranks: int) -> int:
    """The largest batch, ``batch_size`` at most, that leaves each of ``ranks`` at least one."""
    return min(batch_size, max(1, count // ranks)) if ranks > 1 else batch_size
