"""The features of a run's images: computed by its frozen prefix, or found in the store."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from xfer.core.checksum import over, tensor_hashes
from xfer.core.errors import XferError
from xfer.core.files import read_json, write_json
from xfer.core.seeds import derive
from xfer.core.signals import ignore_in_worker
from xfer.core.types import Plain, Samples
from xfer.data.loader import Pictures, eval_images, train_images
from xfer.data.sampler import Order, Share, shared_size
from xfer.training.features import Auto, folder
from xfer.training.features.cut import Cut, extract, prefix_state
from xfer.training.features.find_cut import Refusal, find
from xfer.training.features.store import Entry, Store, digest, rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan.plan import Plan

_PROVING = 2
"""Images that prove a cut: more than one, to see what an answer takes from its neighbours."""
_FINDER = 1
"""Of what finds and proves cuts: raised when it comes to refuse what it took, so that cuts that
were kept are proved again."""
_CHECKED = {"train": 1, "val": 2}
"""Images whose features are computed again whenever an entry is used. Those of val are scored."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""The share of the largest feature by which a batch of another size may differ."""


class Partly(Protocol):
    """A partly frozen network in training mode, and the hashes of what is frozen."""

    @property
    def net(self) -> nn.Module:
        """The network."""
        ...

    @property
    def hashes(self) -> dict[str, str]:
        """Of every frozen tensor, by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...


class Extraction:
    """Images of one run to features, as the uncached run would compute them.

    Some kernels answer otherwise for another batch. With one of the ``views`` an epoch this is
    ``exact``: view e is computed in the very batches of epoch e. Else chunks of ``batch_size``
    serve every order. ``difference`` is the largest one between a kept feature and the same
    computed again.
    """

    def __init__(self, plan: Plan, module: Partly, options: Auto) -> None:
        self.plan, self.net, self.hashes = plan, module.net, module.hashes
        self.batch_size = options.batch_size
        self.store = Store(folder(options.dir), options.max_gb)
        epochs = plan.specs.trainer.epochs
        self.views = options.views_of(plan.specs.augment.random, epochs)
        balanced = plan.specs.data is not None and plan.specs.data.sampler == "balanced"
        # Batches in which an image comes twice or not at all are no order for an entry.
        self.exact = self.views == epochs and options.batch_size is None and not balanced
        self.device, self.ranks = module.device, plan.specs.trainer.devices
        # The batches are the same; a GPU's answers are where its kernels are reproducible.
        reproducible = self.device.type == "cpu" or plan.specs.trainer.deterministic
        self.claimed = self.exact and reproducible
        self.channels_last = plan.specs.trainer.channels_last
        self.difference = 0.0
        precision = plan.specs.trainer.precision
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        self.kind = kinds.get(precision)

    def cast(self, split: str) -> AbstractContextManager[Any]:
        """In which a split is computed: validation in full precision, as it is evaluated."""
        if self.kind is None or split == "val":
            return nullcontext()
        return torch.autocast(self.device.type, self.kind)

    def cut(self) -> Cut | Refusal:
        """Where the network can be cut: proved on real images, or known from an earlier proof of
        the same layers in the same state. The network must be in training mode."""
        facts = self._layers()
        path = self.store.folder / "cuts" / f"{digest(facts)}.json"
        if known := _known(path, facts):
            return known
        with self.cast("train"):
            first = range(min(_PROVING, len(self.samples("train"))))
            found = find(self.net, self._images("train", None, first), self.plan.layout.heads)
        if isinstance(found, Cut):
            kept = {"layers": facts, "cut": found.to_plain()}
            write_json(path, {**kept, "sha256": digest(kept)})
        return found

    def _layers(self) -> Plain:
        """Everything that a cut depends on: it holds for any weights."""
        frozen = [name for name, p in self.net.named_parameters() if not p.requires_grad]
        resting = [name for name, module in self.net.named_modules() if not module.training]
        state = json.dumps([frozen, resting])
        return {
            **self._recipe(),
            "finder": _FINDER,
            "head": self.plan.card.head,
            "adapters": self.plan.card.adapters,
            "classes": len(self.plan.card.classes),
            "state": hashlib.sha256(state.encode()).hexdigest(),
        }

    def _recipe(self) -> Plain:
        return {
            "backbone": self.plan.card.backbone,
            "compat": self.plan.card.compat,
            "input": self.plan.card.input.to_plain(),
            "precision": self.plan.specs.trainer.precision,
            "channels_last": self.channels_last,
            "device": self.device.type,
            "processor": _processor(self.device),
            "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
        }

    def samples(self, split: str) -> Samples:
        """One split of the data."""
        assert self.plan.dataset is not None
        return self.plan.dataset.splits[split]

    def key(self, cut: Cut) -> Plain:
        """Everything that the features depend on, but the images and their augmentation."""
        prefix = dict(prefix_state(self.net, cut))
        known = {name: own for name, own in self.hashes.items() if name in prefix}
        rest = tensor_hashes((n, tensor) for n, tensor in prefix.items() if n not in known)
        return {
            **self._recipe(),
            "weights": over(known | rest),
            "cut": cut.to_plain(),
            "threads": torch.get_num_threads(),
        }

    def entry(self, cut: Cut, key: Plain, split: str, view: int | None) -> Entry:
        """One view of a split, found or computed; ``view`` ``None`` is the evaluation transform.

        What is found and does not agree with the network is computed anew. Raises OutputError when
        it cannot be kept, DataError for a broken image, XferError when it never agrees.
        """
        chunk = self.chunk(split)
        augment = None if view is None else self.plan.specs.facts["augment"]
        samples = self.samples(split)
        order = self.plan.specs.seed if self._in_epochs_order(view) else None
        what = {"data": samples.sha256, "augment": augment, "view": view}
        full = {**key, **what, "chunk": chunk, "order": order}
        if split == "val":
            full["precision"] = "32-true"
        if order is not None and self.ranks > 1:
            full["ranks"] = self.ranks

        def compute() -> Iterator[torch.Tensor]:
            return self._chunks(cut, split, view)

        found = self.store.entry(full, len(samples), compute)
        agrees = self._agrees(cut, found, split, view)
        if found.hit and not agrees:
            # Its manifest vouches for it, the network does not.
            self.store.forget(full, "its features are not those of this network")
            found = self.store.entry(full, len(samples), compute)
            agrees = self._agrees(cut, found, split, view)
        if not agrees:
            apart = f"its features differ by {self.difference:.1e} from the same computed again"
            raise XferError(found.path, apart, "report this bug, and use features=never", 16)
        return found

    def positions(self, split: str, view: int | None) -> npt.NDArray[np.int64]:
        """The row of every image in the entry of a view."""
        found = np.empty(len(self.samples(split)), np.int64)
        found[np.concatenate(self.batches(split, view))] = np.arange(len(found))
        return found

    def _in_epochs_order(self, view: int | None) -> bool:
        return self.exact and view is not None

    def batches(self, split: str, view: int | None) -> list[list[int]]:
        """The images of a split as they are computed together."""
        count, chunk = len(self.samples(split)), self.chunk(split)
        if view is not None and self._in_epochs_order(view):
            order = Order(count, chunk, self.plan.specs.seed, Share(0, self.ranks))
            order.set_epoch(view)
            return [[index for _, index in part] for batch in order.parts() for part in batch]
        return [list(range(i, min(i + chunk, count))) for i in range(0, count, chunk)]

    def chunk(self, split: str) -> int:
        """Images that are computed together."""
        data = self.plan.specs.data
        assert data is not None
        if split != "train":
            return shared_size(len(self.samples(split)), data.eval_batch_size, self.ranks)
        return data.batch_size if self.exact else (self.batch_size or data.batch_size)

    def _pictures(self, split: str, view: int | None) -> Pictures:
        spec, augment = self.plan.card.input, self.plan.specs.augment
        if view is None:
            return eval_images(self.samples(split), spec)
        return train_images(self.samples(split), spec, augment)

    def _images(self, split: str, view: int | None, indices: Sequence[int]) -> torch.Tensor:
        """These images as a batch on the device."""
        pictures, keys = self._pictures(split, view), _keys(view, indices)
        return self._placed(_whole(pictures.collate([pictures[key] for key in keys])))

    def _placed(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` on the device, laid out as training lays them out."""
        images = images.to(self.device)
        if self.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _chunks(self, cut: Cut, split: str, view: int | None) -> Iterator[torch.Tensor]:
        """Features (n, size) of a split, batch by batch. A remainder of train is filled up to a
        whole chunk, unless the uncached run has the same; that of val is one there as well."""
        from tqdm import tqdm

        pictures, chunk = self._pictures(split, view), self.chunk(split)
        data = self.plan.specs.data
        assert data is not None
        pads = split == "train" and not self._in_epochs_order(view) and chunk < len(pictures)
        loader: DataLoader[Any] = DataLoader(
            pictures,
            batch_sampler=[_keys(view, batch) for batch in self.batches(split, view)],
            num_workers=data.workers,
            collate_fn=pictures.collate,
            worker_init_fn=ignore_in_worker,
        )
        for batch in tqdm(loader, f"features of {split}", delay=3, leave=False, disable=None):
            images = _whole(batch)
            n = len(images)
            if pads and n < chunk:
                images = torch.cat([images, images[:1].expand(chunk - n, *images.shape[1:])])
            with self.cast(split):
                yield extract(self.net, cut, self._placed(images))[:n].cpu()

    def _agrees(self, cut: Cut, entry: Entry, split: str, view: int | None) -> bool:
        """Whether kept features differ by no more than another batch size explains."""
        drawn = np.random.default_rng(derive("check", self.plan.specs.seed, split, view or 0))
        count = len(self.samples(split))
        chosen = drawn.choice(count, min(count, _CHECKED[split]), replace=False)
        images = self._images(split, view, chosen.tolist())
        kept = rows(entry, self.positions(split, view)[chosen]).float()
        with self.cast(split):
            again = extract(self.net, cut, images).cpu()
        difference = float((kept - again.float()).abs().max())
        agree = difference <= _TOLERANCE[again.dtype] * float(again.float().abs().max())
        if agree or not entry.hit:
            self.difference = max(self.difference, difference)
        return agree


def _processor(device: torch.device) -> str:
    """What a kernel is chosen by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _known(path: Path, facts: Plain) -> Cut | None:
    """The cut that an earlier run wrote; ``None`` for what is not there, says something else or was
    changed since."""
    try:
        found = read_json(path)
        same = found["sha256"] == digest({"layers": facts, "cut": found["cut"]})
        return Cut.from_plain(found["cut"]) if same else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _keys(view: int | None, indices: Sequence[int]) -> list[Any]:
    return list(indices) if view is None else [(view, i) for i in indices]


def _whole(batch: Any) -> torch.Tensor:
    if isinstance(batch, XferError):
        raise batch
    images: torch.Tensor = batch[0]
    return images
