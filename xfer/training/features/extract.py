"""The features of a run's images: computed by its frozen prefix, or read from the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from xfer.core.checksum import over, tensor_hashes
from xfer.core.device import arithmetic_of
from xfer.core.errors import DataError, XferError
from xfer.core.files import read_json, write_json
from xfer.core.live_line import counted
from xfer.core.long_array import zeros
from xfer.core.memory import give_back, keep_freed
from xfer.core.seeds import derive
from xfer.core.types import Plain
from xfer.data.loader import ImageDataset, Loader, eval_images, train_images
from xfer.data.preprocess import prepare
from xfer.data.sampler import EpochSampler, RankShare, shared_size
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.features import AutoFeatures
from xfer.training.features.cut import Cut, extract, prefix_state
from xfer.training.features.feature_dir import EntryFiles, storage_errors
from xfer.training.features.feature_parts import assisted, put_together, shared
from xfer.training.features.find_cut import Refusal, find
from xfer.training.features.store import FeatureEntry, digest, rows

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.core.types import InputSpec
    from xfer.plan.plan import Plan

_PROVING = 2
"""Images that prove a cut: more than one, to see what an answer takes from its neighbours."""
MIRRORED = -1
"""The view of the training images as they are evaluated, left and right exchanged."""
_FINDER = 3
"""The version of what finds and proves cuts: raised when it comes to refuse what it took, so that
stored cuts are proved again."""
_CHECKED = {"train": 1, "val": 2, "test": 2}
"""Images whose features are computed again whenever an entry is used; val and test are scored."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""The share of the largest feature by which a batch of another size may differ."""


@dataclass(frozen=True)
class PartlyFrozen:
    """A network in training mode, the hashes of its frozen tensors by name, and where it is."""

    net: nn.Module
    hashes: dict[str, str]
    device: torch.device


class Extraction:
    """Images of one run to features, as the uncached run would compute them.

    Some kernels answer otherwise for another batch. With one of the ``views`` an epoch this is
    ``exact``: view e is computed in the very batches of epoch e. Else chunks of ``batch_size``
    serve every order. ``difference`` is the largest one between a stored feature and the same
    computed again, as a share of the largest feature. Raises DataError where the run has no images.
    """

    def __init__(
        self,
        plan: Plan,
        frozen: PartlyFrozen,
        options: AutoFeatures,
        group: ProcessGroup = ALONE,
    ) -> None:
        if plan.dataset is None or plan.specs.data is None:
            fix = "give data=... or data.root=DIR"
            raise DataError("data", "is needed to compute features", fix, 43)
        self.plan, self.frozen, self.trainer = plan, frozen, plan.specs.trainer
        self.splits, self.data, self.group = plan.dataset.splits, plan.specs.data, group
        self.batch_size = options.batch_size
        self.store = options.store()
        self.views = options.views_of(plan.specs.augment.random, self.trainer.epochs)
        # Batches in which an image comes twice or not at all are no order for an entry.
        balanced = self.data.sampler == "balanced"
        one_an_epoch = self.views == self.trainer.epochs
        self.exact = one_an_epoch and options.batch_size is None and not balanced
        # The batches are the same; a GPU's answers are where its kernels are reproducible.
        reproducible = frozen.device.type == "cpu" or self.trainer.deterministic
        self.claimed = self.exact and reproducible
        self.difference = 0.0

    def cast(self, split: str) -> torch.autocast:
        """In which a split is computed: what is held out in full precision, as it is evaluated."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        kind = None if split != "train" else kinds.get(self.trainer.precision)
        return torch.autocast(self.frozen.device.type, kind, enabled=kind is not None)

    def cut(self, answers: bool = False) -> Cut | Refusal:
        """Where the network can be cut: proved on real images, or known from an earlier proof of
        the same layers in the same state; with ``answers`` for evaluation alone. The network must
        be in training mode."""
        net, card = self.frozen.net, self.plan.card
        frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
        resting = [name for name, module in net.named_modules() if not module.training]
        # Everything that a cut depends on: it holds for any weights.
        facts = {
            **self._recipe(),
            "finder": _FINDER,
            "answers": answers,
            "head": card.head,
            "adapters": card.adapters,
            "classes": len(card.classes),
            "state": hashlib.sha256(json.dumps([frozen, resting]).encode()).hexdigest(),
        }
        path = self.store.folder / "cuts" / f"{digest(facts)}.json"
        if stored := _stored(path, facts):
            return stored
        with self.cast("train"):
            first = range(min(_PROVING, len(self.splits["train"])))
            images = self._images("train", None, first)
            cut = find(net, images, self.plan.layout.heads, answers)
        if isinstance(cut, Cut):
            proved = {"layers": facts, "cut": cut.to_plain()}
            with storage_errors(path):
                write_json(path, {**proved, "sha256": digest(proved)})
        return cut

    def _recipe(self) -> Plain:
        """What features and cut depend on, beside the weights and the images."""
        card, device = self.plan.card, self.frozen.device
        return {
            "backbone": card.backbone,
            "compat": card.compat,
            "input": card.input.to_plain(),
            "precision": self.trainer.precision,
            "channels_last": self.trainer.channels_last,
            "device": device.type,
            "processor": arithmetic_of(device),
            "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
        }

    def key(self, cut: Cut) -> Plain:
        """Everything that the features depend on, but the images and their augmentation."""
        prefix = dict(prefix_state(self.frozen.net, cut))
        hashed = {name: value for name, value in self.frozen.hashes.items() if name in prefix}
        rest = tensor_hashes((n, tensor) for n, tensor in prefix.items() if n not in hashed)
        return {
            **self._recipe(),
            "weights": over(hashed | rest),
            "cut": cut.to_plain(),
            "threads": torch.get_num_threads(),
        }

    def entry(self, cut: Cut, key: Plain, split: str, view: int | None) -> FeatureEntry:
        """One view of a split, stored or computed; ``view`` ``None`` is the evaluation transform.

        Of several ranks each computes an equal part where there is no such entry yet. A stored one
        that does not agree with the network is computed anew. Raises OutputError when it cannot be
        stored or seen, DataError for a broken image, XferError when it never agrees.
        """
        if not self.group.leads:
            return self._assisted(cut, split, view)
        full = self._whole_key(key, split, view)
        entry = self._made(cut, full, split, view)
        shared(self.group, full)
        return entry

    def _whole_key(self, key: Plain, split: str, view: int | None) -> Plain:
        samples, augment = self.splits[split], self.plan.specs.facts["augment"]
        order = self.plan.specs.seed if self._in_epochs_order(view) else None
        full = {
            **key,
            "data": samples.sha256,
            "augment": None if view is None else augment,
            "view": view,
            "chunk": self.chunk(split),
            "order": order,
        }
        if split != "train":
            full["precision"] = "32-true"
        if order is not None and (parts := self._share.parts) > 1:
            begun = self.plan.specs.begun_ranks
            full["ranks"] = parts if parts == begun else [begun, parts]
        return full

    def _made(self, cut: Cut, full: Plain, split: str, view: int | None) -> FeatureEntry:
        """The entry of ``full``, as rank 0 has it read or computed."""
        files, count = EntryFiles(self.store.folder, digest(full)), len(self.splits[split])

        def computed() -> Iterator[torch.Tensor]:
            return put_together(files, self.group, self._chunks(cut, split, view))

        for _ in range(2):
            entry = self.store.entry(full, count, computed)
            if self._agrees(cut, entry, split, view):
                return entry
            if not entry.hit:
                break
            # Its manifest vouches for it, the network does not.
            self.store.forget(full, "its features are not those of this network")
        raise self._apart(entry)

    def _apart(self, entry: FeatureEntry) -> XferError:
        apart = f"its features differ from the same computed again by {self.difference:.1e} of the"
        apart += " largest"
        return XferError(entry.path, apart, "report this bug, and use features=never", 16)

    def _assisted(self, cut: Cut, split: str, view: int | None) -> FeatureEntry:
        """The entry that rank 0 has made with the part that this rank computes."""
        chunks, count = partial(self._chunks, cut, split, view), len(self.splits[split])
        entry = assisted(self.store, self.group, count, chunks)
        if not self._agrees(cut, entry, split, view):
            raise self._apart(entry)
        return entry

    @property
    def _share(self) -> RankShare:
        return RankShare(0, self.trainer.ranks, self.plan.specs.begun_ranks)

    def positions(self, split: str, view: int | None) -> npt.NDArray[np.int64]:
        """The row of every image in the entry of a view."""
        row_of = zeros((len(self.splits[split]),), np.int64)
        row = 0
        for batch in self.batches(split, view):
            row_of[list(batch)] = np.arange(row, row + len(batch))
            row += len(batch)
        return row_of

    def _in_epochs_order(self, view: int | None) -> bool:
        return self.exact and view is not None

    def batches(self, split: str, view: int | None) -> Sequence[Sequence[int]]:
        """The images of a split as they are computed together."""
        count, chunk = len(self.splits[split]), self.chunk(split)
        if view is not None and self.exact:
            order = EpochSampler(count, chunk, self.plan.specs.seed, self._share)
            order.set_epoch(view)
            return [[index for _, index in part] for batch in order.parts() for part in batch]
        return [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]

    def chunk(self, split: str) -> int:
        """Images that are computed together."""
        if split != "train":
            size = self.data.eval_batch_size
            return shared_size(len(self.splits[split]), size, self.trainer.ranks)
        return self.data.batch_size if self.exact else (self.batch_size or self.data.batch_size)

    def _pictures(self, split: str, view: int | None) -> ImageDataset:
        spec, augment = self.plan.card.input, self.plan.specs.augment
        if view is None:
            return eval_images(self.splits[split], spec)
        if view == MIRRORED:
            return eval_images(self.splits[split], spec, _mirrored)
        return train_images(self.splits[split], spec, augment)

    def _images(self, split: str, view: int | None, indices: Sequence[int]) -> torch.Tensor:
        """These images as a batch on the device."""
        pictures = self._pictures(split, view)
        return self._placed(pictures.collate([pictures[key] for key in _keys(view, indices)]))

    def _placed(self, batch: Any, least: int = 0) -> torch.Tensor:
        """The images of ``batch``, filled up to ``least``, on the device, laid out as training lays
        them out. Raises the error that a broken image has left in its place."""
        if isinstance(batch, XferError):
            raise batch
        images: torch.Tensor = batch[0]
        if len(images) < least:
            filler = images[:1].expand(least - len(images), *images.shape[1:])
            images = torch.cat([images, filler])
        images = images.to(self.frozen.device)
        if self.trainer.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def image_batches(
        self, split: str, view: int | None = None
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """Images (n, 3, h, w) of this rank's part of a split on the device, as they are computed
        together, and how many of them count. A remainder of train is filled up to a whole chunk,
        unless the uncached run has the same; that of val is one there as well."""
        pictures, chunk = self._pictures(split, view), self.chunk(split)
        batches = self.batches(split, view)
        mine = self.group.share.of(len(batches))
        pads = split == "train" and not self._in_epochs_order(view) and chunk < len(pictures)
        loader = Loader(
            *(pictures, pictures.collate, self.data.workers),
            batch_sampler=_Keys([batches[number] for number in mine], view),
        )
        for batch in counted(loader, f"features of {split}", len(loader)):
            yield self._placed(batch, chunk if pads else 0), len(batch[1])

    def _chunks(self, cut: Cut, split: str, view: int | None) -> Iterator[torch.Tensor]:
        """Features (n, size) of this rank's part of a split, batch by batch."""
        holds = self.frozen.device.type == "cpu" and keep_freed()
        for images, count in self.image_batches(split, view):
            with self.cast(split):
                yield extract(self.frozen.net, cut, images)[:count].cpu()
        if holds:
            give_back()  # what is solved on the features needs other pieces

    def _agrees(self, cut: Cut, entry: FeatureEntry, split: str, view: int | None) -> bool:
        """Whether stored features differ by no more than another batch size explains."""
        drawn = np.random.default_rng(derive("check", self.plan.specs.seed, split, view or 0))
        count = len(self.splits[split])
        chosen = drawn.choice(count, min(count, _CHECKED[split]), replace=False)
        stored = rows(entry, self.positions(split, view)[chosen]).float()
        with self.cast(split):
            again = extract(self.frozen.net, cut, self._images(split, view, chosen.tolist())).cpu()
        largest = float(again.float().abs().max())
        apart = float((stored - again.float()).abs().max())
        difference = apart / max(largest, torch.finfo(torch.float32).tiny)
        agree = difference <= _TOLERANCE[again.dtype]
        if agree or not entry.hit:
            self.difference = max(self.difference, difference)
        return agree


def _stored(path: Path, facts: Plain) -> Cut | None:
    """The cut that an earlier run wrote; ``None`` for what is not there, says something else or was
    changed since."""
    try:
        stored = read_json(path)
        same = stored["sha256"] == digest({"layers": facts, "cut": stored["cut"]})
        return Cut.from_plain(stored["cut"]) if same else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _mirrored(image: Image, spec: InputSpec) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(prepare(image, spec)[:, :, ::-1])


class _Keys(Sampler[list[Any]]):
    """The keys of ``batches``, each when it is its turn."""

    def __init__(self, batches: Sequence[Sequence[int]], view: int | None) -> None:
        self.batches, self.view = batches, view

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        return (_keys(self.view, batch) for batch in self.batches)


def _keys(view: int | None, indices: Sequence[int]) -> list[Any]:
    return list(indices) if view is None else [(view, i) for i in indices]
