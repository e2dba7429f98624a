"""Cached features as the loaders of a phase: one view of the training images an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xfer.core.checksum import fingerprint
from xfer.core.types import Plain, Samples
from xfer.data.sampler import Key
from xfer.training.features.cut import Cut, Tail, prefix_state
from xfer.training.features.extract import Extraction
from xfer.training.features.store import Entry, rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


class Kept:
    """The features of one phase by view: ``train`` by number, or ``None`` for the evaluation
    view; ``val`` has the one, 0."""

    def __init__(self, work: Extraction, cut: Cut) -> None:
        self.work, self.cut, self.views = work, cut, work.views or 1
        self.key = work.key(cut)
        self.train: dict[int | None, View] = {}
        self.val: dict[int | None, View] = {}

    def has(self, epoch: int) -> bool:
        """Whether the epoch's features are there."""
        return epoch % self.views in self.train

    def prepare(self, epoch: int) -> None:
        """Find or compute the features of ``epoch``; those of val as well, the first time."""
        view = epoch % self.views
        shown = None if self.work.views is None else view
        self.train[view] = self.view("train", shown)
        if not self.val:
            self.val[0] = self.view("val", None)

    def view(self, split: str, view: int | None) -> View:
        """The features of a split in one view, ``None`` for the evaluation view."""
        entry = self.work.entry(self.cut, self.key, split, view)
        return View(entry, self.work.positions(split, view))

    def serve(self, net: nn.Module, samples: Samples, size: int, device: torch.device) -> bool:
        """Whether the features of val give, bit for bit, what ``net`` gives on the images of
        ``samples`` in float32 and batches of ``size``: the same images, weights and batches."""
        work, state = self.work, dict(chain(net.named_parameters(), net.named_buffers()))
        names = [name for name, _ in prefix_state(work.net, self.cut)]
        same = [
            *(bool(self.val), samples.sha256 == work.samples("val").sha256),
            *(work.channels_last, work.ranks == 1),
            work.device.type == device.type == "cpu",
            *(size == work.chunk("val"), set(names) <= set(state)),
        ]
        return all(same) and fingerprint((n, state[n]) for n in names) == self.key["weights"]

    def logits(self, net: nn.Module) -> list[npt.NDArray[np.float32]]:
        """What ``net`` gives for val, batch by batch; only what is behind the cut is computed."""
        device = self.work.device
        net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        rows, tail = Rows(self.val, 1, self.work.samples("val")), Tail(net, self.cut)
        try:
            with torch.inference_mode():
                batches = [rows.batch(keys)[0] for keys in self.work.batches("val", None)]
                return [net(features.to(device)).cpu().numpy() for features in batches]
        finally:
            tail.remove()

    def _entries(self) -> list[Entry]:
        return [view.entry for view in (*self.train.values(), *self.val.values())]

    @property
    def found(self) -> bool:
        """Whether none of them had to be computed."""
        return all(entry.hit for entry in self._entries())

    @property
    def most_bytes(self) -> int:
        """What all views take once each has been used."""
        return largest_cut(self.work, self.cut)

    def facts(self, before: Plain) -> Plain:
        """What is to be said, added to what was said ``before`` of an earlier phase."""
        return {
            "cached": True,
            "hit": self.found and before["hit"] is not False,
            "views": self.views,
            "augmented": self.work.views is not None,
            "exact": self.work.claimed,
            "cut": list(self.cut.modules),
            "bytes_per_image": self.cut.bytes_per_image(),
            # Of the maps, because another process may have removed the files.
            "bytes": sum(e.array.offset + e.array.nbytes for e in self._entries()),
            "difference": self.work.difference,
        }


def largest_cut(work: Extraction, cut: Cut) -> int:
    """The bytes that all views of the training and validation images take at ``cut``, at most."""
    images = (work.views or 1) * len(work.samples("train")) + len(work.samples("val"))
    return images * cut.bytes_per_image()


class View(NamedTuple):
    """The features of a split in one view, and the row of every image."""

    entry: Entry
    positions: npt.NDArray[np.int64]


class Rows:
    """The features of one split, batch by batch, by index or (epoch, index)."""

    def __init__(self, kept: Mapping[int | None, View], views: int, samples: Samples) -> None:
        self.kept, self.views = kept, views
        self.labels = torch.from_numpy(samples.labels)

    def batch(self, keys: Sequence[int] | Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, ...) and labels int64 (n,); the epoch chooses the view."""
        first: Any = keys[0]
        epoch = first[0] if isinstance(first, tuple) else 0
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        return self.features(indices, epoch), self.labels[indices]

    def features(self, indices: Sequence[int], epoch: int = 0) -> torch.Tensor:
        """Features (n, ...) of the images at ``indices``; the epoch chooses the view."""
        view = self.kept[epoch % self.views]
        return rows(view.entry, view.positions[list(indices)])
