"""Batches whose order and augmentation depend on (seed, epoch, index) alone.

The training loader knows its position, so a resumed run goes on with the next batch; the number
of workers does not change what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from xfer.balance import balanced
from xfer.errors import DataError, XferError
from xfer.preprocess import named
from xfer.randomness import derive
from xfer.signals import ignore_in_worker

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.types import Samples

    Transform = Callable[[Image], npt.NDArray[np.float32]]

Key = tuple[int, ...]
"""(epoch, index): what one training image is drawn for; (epoch, index, time) from the second time
on in the same epoch."""


class Share(NamedTuple):
    """What part of the batches is this process's: that of ``rank`` (from 0) of ``ranks``."""

    rank: int = 0
    ranks: int = 1


ALL = Share()


class Batches(Protocol):
    """What gives whole batches by their keys, in place of images: computed features."""

    def batch(self, keys: Sequence[int] | Sequence[Key], /) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (n, ...) and labels int64 (n,)."""
        ...


class Pictures(TorchDataset[Any]):
    """Samples through a transform. A key is an index, or an (epoch, index) pair whose transform
    draws from a generator of its own.

    A broken file comes back as the error itself, because a worker process cannot raise it whole.
    """

    def __init__(self, samples: Samples, transform: Transform, seed: int = 0) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Key) -> Any:
        epoch, index, *again = key if isinstance(key, tuple) else (None, key)
        try:
            image = self.samples.images[index]
            if epoch is None:
                array = self.transform(image)
            else:
                with torch.random.fork_rng(devices=[]):
                    # torch.manual_seed would also queue a call for every kind of device, slowly.
                    seed = derive("augment", self.seed, epoch, index, *again)
                    torch.default_generator.manual_seed(seed)
                    array = self.transform(image)
        except DataError as error:
            return named(error, self.samples.names[index])
        except XferError as error:
            return error
        return array, int(self.samples.labels[index])

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Stack to images float32 (n, 3, h, w) and labels int64 (n,); an error stays an error."""
        for item in items:
            if isinstance(item, XferError):
                return item
        images, labels = zip(*items, strict=True)
        return torch.stack([torch.from_numpy(image) for image in images]), torch.tensor(labels)

    @staticmethod
    def collate_sound(items: list[Any]) -> Any:
        """Stack what could be read, ``None`` where nothing could, and every item's error."""
        errors = [item if isinstance(item, XferError) else None for item in items]
        good = [item for item in items if not isinstance(item, XferError)]
        return (Pictures.collate(good) if good else None), errors


class Order(Sampler[list[Key]]):
    """Shuffled batches of one epoch, a pure function of (seed, epoch).

    Of ``ranks`` processes each takes its even part of every batch of ``ranks * batch_size``
    images, so all of them together see what one process with that batch size would. A remainder
    of less than two images a rank joins the batch before it: batch normalisation cannot train on
    one image. Where ``labels`` are set, every class comes equally often.
    """

    labels: Sequence[int] | None = None

    def __init__(self, count: int, batch_size: int, seed: int, share: Share = ALL) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.ranks = share
        self.epoch = 0
        self.skip = 0
        # Lightning looks for set_epoch on ``batch_sampler.sampler``.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return batches(self.count, self.batch_size, self.ranks)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.groups()[self.skip :])

    def groups(self) -> list[list[Key]]:
        """The keys of every batch of the epoch, as far as they are this rank's."""
        return [parts[self.rank] for parts in self.parts()]

    def parts(self) -> list[list[list[Key]]]:
        """The keys of every batch of the epoch, rank by rank."""
        keys, size = self._keys(), self.batch_size * self.ranks
        starts = [i * size for i in range(len(self))]
        spans = zip(starts, [*starts[1:], self.count], strict=True)
        batches = [keys[start:end] for start, end in spans]
        return [[batch[rank :: self.ranks] for rank in range(self.ranks)] for batch in batches]

    def _keys(self) -> list[Key]:
        generator = torch.Generator().manual_seed(derive("order", self.seed, self.epoch))

        def shuffled(count: int) -> list[int]:
            order: list[int] = torch.randperm(count, generator=generator).tolist()
            return order

        if self.labels is None:
            return [(self.epoch, index) for index in shuffled(self.count)]
        return [(self.epoch, *draw) for draw in balanced(self.labels, shuffled)]

    def weight(self, batch: int) -> float:
        """What this rank's mean loss of batch ``batch`` (from 0) must be multiplied by, so that
        the mean over the ranks is the mean over the images."""
        last = batch + 1 == len(self)
        size = self.batch_size * self.ranks
        whole = self.count - batch * size if last else size
        own = len(range(self.rank, whole, self.ranks))
        return own * self.ranks / whole


def batches(count: int, batch_size: int, ranks: int = 1) -> int:
    """Training batches an epoch."""
    whole, rest = divmod(count, batch_size * ranks)
    return whole + (1 if rest >= 2 * ranks or not whole else 0)


def _working(workers: int, pin: bool) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": ignore_in_worker,
        "pin_memory": pin,
    }


class TrainLoader(DataLoader[Any]):
    """A loader that can say and restore how many batches of the epoch it has given.

    Where ``features`` are set, they come in place of the images, in the same order.
    """

    features: Batches | None = None

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        workers: int,
        pin: bool,
        seed: int,
        share: Share = ALL,
    ) -> None:
        self.order = Order(len(pictures), batch_size, seed, share)
        self.position = 0
        super().__init__(
            pictures,
            batch_sampler=self.order,
            collate_fn=pictures.collate,
            **_working(workers, pin),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.order.skip = self.position
        kept = self.features
        for batch in super().__iter__() if kept is None else map(kept.batch, self.order):
            # A finished epoch is position 0 of the next, not the end of this one.
            self.position = (self.position + 1) % len(self.order)
            yield _whole(batch)

    def state_dict(self) -> dict[str, int]:
        """Batches given in this epoch."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind that many batches."""
        self.position = state["position"]


class EvalLoader(DataLoader[Any]):
    """Every image once, in order, nothing dropped, nothing padded; or their ``features``.

    ``sound`` gives batches as :meth:`Pictures.collate_sound` does, in place of raising. With a
    ``share`` the batches of one process only; :func:`shared_size` says how large they may be, so
    that no process is left without.
    """

    features: Batches | None = None

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        workers: int,
        pin: bool,
        share: Share = ALL,
        sound: bool = False,
    ) -> None:
        count = len(pictures)
        chunks = [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
        self.chunks = chunks[share.rank :: share.ranks]
        super().__init__(
            pictures,
            batch_sampler=self.chunks,
            collate_fn=pictures.collate_sound if sound else pictures.collate,
            **_working(workers, pin),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        kept = self.features
        for batch in super().__iter__() if kept is None else map(kept.batch, self.chunks):
            yield _whole(batch)


def shared_size(count: int, batch_size: int, ranks: int) -> int:
    """The largest batch, ``batch_size`` at most, that leaves each of ``ranks`` at least one."""
    return min(batch_size, max(1, count // ranks)) if ranks > 1 else batch_size


def _whole(batch: Any) -> Any:
    if isinstance(batch, XferError):
        raise batch
    return batch
