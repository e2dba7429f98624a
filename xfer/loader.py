"""Batches whose order and augmentation depend on (seed, epoch, index) alone.

The training loader knows its position, so a resumed run goes on with the next batch; the number
of workers does not change what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from xfer.balance import balanced
from xfer.errors import XferError
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


class Order(Sampler[list[Key]]):
    """Shuffled batches of one epoch, a pure function of (seed, epoch).

    A remainder of a single image joins the batch before it: batch normalisation cannot train on
    one image. Where ``labels`` are set, every class comes equally often.
    """

    labels: Sequence[int] | None = None

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = 0
        self.skip = 0
        # Lightning looks for set_epoch on ``batch_sampler.sampler``.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return batches(self.count, self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.groups()[self.skip :])

    def groups(self) -> list[list[Key]]:
        """The keys of every batch of the epoch."""
        keys = self._keys()
        starts = [i * self.batch_size for i in range(len(self))]
        spans = zip(starts, [*starts[1:], self.count], strict=True)
        return [keys[start:end] for start, end in spans]

    def _keys(self) -> list[Key]:
        generator = torch.Generator().manual_seed(derive("order", self.seed, self.epoch))

        def shuffled(count: int) -> list[int]:
            order: list[int] = torch.randperm(count, generator=generator).tolist()
            return order

        if self.labels is None:
            return [(self.epoch, index) for index in shuffled(self.count)]
        return [(self.epoch, *draw) for draw in balanced(self.labels, shuffled)]


def batches(count: int, batch_size: int) -> int:
    """Training batches an epoch."""
    whole, rest = divmod(count, batch_size)
    return whole + (1 if rest > 1 or not whole else 0)


class TrainLoader(DataLoader[Any]):
    """A loader that can say and restore how many batches of the epoch it has given.

    Where ``features`` are set, they come in place of the images, in the same order.
    """

    features: Batches | None = None

    def __init__(
        self, pictures: Pictures, batch_size: int, workers: int, pin: bool, seed: int
    ) -> None:
        self.order = Order(len(pictures), batch_size, seed)
        self.position = 0
        super().__init__(
            pictures,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=pictures.collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_in_worker,
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
    """Every image once, in order, nothing dropped, nothing padded; or their ``features``."""

    features: Batches | None = None

    def __init__(self, pictures: Pictures, batch_size: int, workers: int, pin: bool) -> None:
        super().__init__(
            pictures,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=pictures.collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_in_worker,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        kept, chunks = self.features, self._index_sampler
        for batch in super().__iter__() if kept is None else map(kept.batch, chunks):
            yield _whole(batch)


def _whole(batch: Any) -> Any:
    if isinstance(batch, XferError):
        raise batch
    return batch
