"""Cached features as the loaders of a phase: one view of the training images an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from xfer.core.checksum import fingerprint
from xfer.core.types import Plain, Samples
from xfer.data.sampler import Key
from xfer.training.features.cut import Cut, evaluated_from, prefix_state
from xfer.training.features.extract import Extraction
from xfer.training.features.store import FeatureEntry, rows, tensor_of

_BLOCK, _BLOCK_BYTES = 1024, 1 << 24  # images, and bytes: memory that is had and freed at once


class View(NamedTuple):
    """The features of a split in one view, and the row of every image."""

    entry: FeatureEntry
    positions: npt.NDArray[np.int64]

    def features(self, indices: Sequence[int]) -> torch.Tensor:
        """Features (n, ...) of the images at ``indices``."""
        return rows(self.entry, self.positions[list(indices)])

    def blocks(self) -> Iterator[torch.Tensor]:
        """The features of all images in their order, a block at a time, to read from: where they
        lie in that order they are the map itself."""
        count, width = len(self.positions), self.entry.array.nbytes // max(1, len(self.positions))
        size = min(max(_BLOCK_BYTES // max(1, width), 1), _BLOCK)
        in_order = bool((self.positions == np.arange(count)).all())
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            if in_order:
                yield tensor_of(self.entry)[block]
            else:
                yield rows(self.entry, self.positions[block])


class CachedFeatures:
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
        """Read or compute the features of ``epoch``; those of val as well, the first time."""
        view = epoch % self.views
        self.train[view] = self.view("train", None if self.work.views is None else view)
        if not self.val and "val" in self.work.splits:
            self.val[0] = self.view("val", None)

    def view(self, split: str, view: int | None) -> View:
        """The features of a split in one view, ``None`` for the evaluation view."""
        entry = self.work.entry(self.cut, self.key, split, view)
        return View(entry, self.work.positions(split, view))

    def serve(self, net: nn.Module, samples: Samples, size: int, device: torch.device) -> bool:
        """Whether the features of val give, bit for bit, what ``net`` gives on the images of
        ``samples`` in float32 and batches of ``size``: the same images, weights and batches."""
        if not self.val:
            return False
        work, state = self.work, dict(chain(net.named_parameters(), net.named_buffers()))
        names = [name for name, _ in prefix_state(work.frozen.net, self.cut)]
        same = [
            samples.sha256 == work.splits["val"].sha256,
            *(work.trainer.channels_last, work.trainer.ranks == 1),
            work.frozen.device.type == device.type == "cpu",
            *(size == work.chunk("val"), set(names) <= set(state)),
            # One that was put together otherwise may have layers after those of the proof.
            _kinds(net) == _kinds(work.frozen.net),
        ]
        return all(same) and fingerprint((n, state[n]) for n in names) == self.key["weights"]

    def logits(self, net: nn.Module) -> Iterator[npt.NDArray[np.float32]]:
        """What ``net`` gives for val, batch by batch; only what follows the cut is computed."""
        device = self.work.frozen.device
        net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        with torch.inference_mode(), evaluated_from(net, self.cut) as run:
            for features in map(self.val[0].features, self.work.batches("val", None)):
                yield run(features.to(device)).cpu().numpy()

    def facts(self, before: Plain) -> Plain:
        """What ``result.json`` says of features, after what it said ``before`` of an earlier
        phase."""
        entries = [view.entry for view in (*self.train.values(), *self.val.values())]
        return {
            "cached": True,
            "hit": all(entry.hit for entry in entries) and before["hit"] is not False,
            "views": self.views,
            "augmented": self.work.views is not None,
            "exact": self.work.claimed,
            "cut": list(self.cut.modules),
            "bytes_per_image": self.cut.bytes_per_image(),
            # Of the maps, because another process may have removed the files.
            "bytes": sum(e.array.offset + e.array.nbytes for e in entries),
            "difference": self.work.difference,
        }

    def summary(self) -> str:
        """What is known of them, in one line."""
        facts = self.facts({"hit": None})
        origin = "read from the cache" if facts["hit"] else "computed"
        shown = f"{self.views} views an image"
        if not facts["augmented"]:
            shown = "the evaluation view of each image"
        apart, same = facts["difference"], "trained bit for bit as on images"
        if not facts["exact"]:
            near = "are equal" if apart == 0 else f"differ by at most {apart:.1e} of the largest"
            same = f"a few were computed again and {near}"
        place, size = ", ".join(facts["cut"]), largest_bytes(self.work, self.cut) / 1e6
        return f"features at {place} {origin}: {shown}, {size:.1f} MB; {same}"


def _kinds(net: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in net.named_modules()]


def largest_bytes(work: Extraction, cut: Cut) -> int:
    """The bytes that all views of the training and validation images take at ``cut``, at most."""
    images = (work.views or 1) * len(work.splits["train"]) + len(work.splits.get("val", ()))
    return images * cut.bytes_per_image()


class FeatureBatches:
    """The features of one split, batch by batch, by index or (epoch, index): an epoch takes one of
    ``count`` views, which may still be missing in ``views`` at first."""

    def __init__(self, views: Mapping[int | None, View], count: int, samples: Samples) -> None:
        self.views, self.count = views, count
        self.labels = torch.from_numpy(samples.labels)

    def batch(self, keys: Sequence[int] | Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, ...) and labels int64 (n,); the epoch chooses the view."""
        first: Any = keys[0]
        epoch = first[0] if isinstance(first, tuple) else 0
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        return self.views[epoch % self.count].features(indices), self.labels[indices]
