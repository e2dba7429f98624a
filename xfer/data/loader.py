"""Batches whose order and augmentation depend on (seed, epoch, index) alone.

The training loader knows its position, so a resumed run continues with the next batch; the number
of workers does not change what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xfer.core.errors import DataError, XferError
from xfer.core.seeds import derive
from xfer.core.signals import ignore_in_worker
from xfer.data.preprocess import named, prepare
from xfer.data.sampler import ALL, EpochSampler, Key, RankShare
from xfer.data.shared_memory import as_tensors, handed_over, has_locks

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.core.protocols import Augment
    from xfer.core.types import InputSpec, Samples

    Transform = Callable[[Image], npt.NDArray[np.float32]]
    Recipe = Callable[[Image, InputSpec], npt.NDArray[np.float32]]


class Batches(Protocol):
    """What gives whole batches by their keys, in place of images: computed features."""

    def batch(self, keys: Sequence[int] | Sequence[Key], /) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (n, ...) and labels int64 (n,)."""
        ...


class ImageDataset(TorchDataset[Any]):
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
            with torch.random.fork_rng(devices=[], enabled=epoch is not None):
                if epoch is not None:
                    # torch.manual_seed would also queue a call for every kind of device, slowly.
                    seed = derive("augment", self.seed, epoch, index, *again)
                    torch.default_generator.manual_seed(seed)
                array = self.transform(image)
        except DataError as error:
            return named(error, self.samples.names[index])
        except XferError as error:
            return error
        return array, self.samples.labels[index]

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Stack to images float32 (n, 3, h, w) and labels int64 (n,); an error stays an error."""
        for item in items:
            if isinstance(item, XferError):
                return item
        images, labels = zip(*items, strict=True)
        # A number an image or, with several labels, a row.
        known = torch.from_numpy(np.array(labels, np.int64))
        return torch.stack([torch.from_numpy(image) for image in images]), known

    @staticmethod
    def collate_sound(items: list[Any]) -> Any:
        """Stack what could be read, ``None`` where nothing could, and every item's error."""
        errors = [item if isinstance(item, XferError) else None for item in items]
        good = [item for item in items if not isinstance(item, XferError)]
        return (ImageDataset.collate(good) if good else None), errors


def train_images(samples: Samples, spec: InputSpec, augment: Augment) -> ImageDataset:
    """Images as they are trained on: augmented, as the network takes them."""
    return ImageDataset(samples, augment.transform(spec), augment.seed)


def eval_images(samples: Samples, spec: InputSpec, recipe: Recipe = prepare) -> ImageDataset:
    """Images as they are evaluated, without augmentation. ``recipe`` is another than
    :func:`xfer.data.preprocess.prepare` for samples that have been fitted to the size already."""
    return ImageDataset(samples, lambda image: recipe(image, spec))


class Loader(DataLoader[Any]):
    """A loader of torch that warns of nothing, and does with what shared memory there is."""

    def __init__(self, pictures: ImageDataset, collate: Any, workers: int, **options: Any) -> None:
        if workers and has_locks():
            collate = partial(handed_over, collate)
            options |= {"num_workers": workers, "worker_init_fn": ignore_in_worker}
        else:
            options.pop("persistent_workers", None)
        super().__init__(pictures, collate_fn=collate, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(as_tensors, super().__iter__())

    def check_worker_number_rationality(self) -> None:
        """Say nothing: that there are more workers than processors is a remark of the plan."""


class _Loader(Loader):
    """Batches of ``keys``; where ``features`` are set, they come in place of the images, in the
    same order. A batch that is an error is raised."""

    features: Batches | None = None

    def __init__(
        self, pictures: ImageDataset, keys: Iterable[Any], collate: Any, workers: int, pin: bool
    ) -> None:
        self.keys = keys
        super().__init__(
            *(pictures, collate, workers),
            batch_sampler=keys,
            persistent_workers=workers > 0,
            pin_memory=pin,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        features = self.features
        for batch in super().__iter__() if features is None else map(features.batch, self.keys):
            if isinstance(batch, XferError):
                raise batch
            yield batch


class TrainLoader(_Loader):
    """A loader that can say and restore how many batches of the epoch it has given. Where
    ``taught`` is set, it gives a third tensor for the keys of each batch: a teacher's logits."""

    taught: Callable[[Sequence[Key]], torch.Tensor] | None = None

    def __init__(
        self,
        pictures: ImageDataset,
        batch_size: int,
        workers: int,
        pin: bool,
        seed: int,
        share: RankShare = ALL,
    ) -> None:
        self.order = EpochSampler(len(pictures), batch_size, seed, share)
        self.position = 0
        super().__init__(pictures, self.order, pictures.collate, workers, pin)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.order.skip = self.position
        taught, keys = self.taught, iter(self.order)
        for batch in super().__iter__():
            # A finished epoch is position 0 of the next, not the end of this one.
            self.position = (self.position + 1) % len(self.order)
            yield batch if taught is None else (*batch, taught(next(keys)))

    def state_dict(self) -> dict[str, int]:
        """Batches given in this epoch, whole ones: as many for any number of ranks."""
        return {"position": self.position // self.order.share.pieces}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many batches."""
        self.position = state["position"] * self.order.share.pieces


class EvalLoader(_Loader):
    """Every image once, in order, nothing dropped, nothing padded; or their ``features``.

    ``sound`` gives batches as :meth:`ImageDataset.collate_sound` does, in place of raising. With a
    ``share`` the batches of one process only, those of the images at ``span``;
    :func:`shared_size` says how large they may be, so that no process is left without.
    """

    def __init__(
        self,
        pictures: ImageDataset,
        batch_size: int,
        workers: int,
        pin: bool,
        share: RankShare = ALL,
        sound: bool = False,
    ) -> None:
        count = len(pictures)
        chunks = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
        mine = [chunks[number] for number in share.of(len(chunks))]
        collate = pictures.collate_sound if sound else pictures.collate
        super().__init__(pictures, mine, collate, workers, pin)
        self.span = range(mine[0].start, mine[-1].stop) if mine else range(0)
