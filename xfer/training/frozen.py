"""A network of which the head alone trains: its features, and what enters its head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from xfer import freeze
from xfer.core.device import device_of
from xfer.freeze.rows import ParameterRow
from xfer.training.features import Auto
from xfer.training.features.cut import Tail, inference
from xfer.training.features.extract import Extraction
from xfer.training.features.feature_loader import Kept, Rows, View
from xfer.training.features.feed import fitting
from xfer.training.features.find_cut import Refusal
from xfer.training.head_input import rows_of, watched

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan.plan import Plan

_ANY_EPOCHS = 1_000_000
_BLOCK = 1024


class NotExact(Exception):
    """Why a head cannot be solved after all, in one line."""


@dataclass(frozen=True)
class Frozen:
    """A network of which the head alone trains, and the hashes of the rest."""

    net: nn.Module
    hashes: dict[str, str]
    device: torch.device


def at_rest(plan: Plan, net: nn.Module) -> Frozen:
    """``net`` on the run's device, all of it but the head frozen and in inference mode."""
    device = device_of(plan.specs.trainer.accelerator)
    rows = [
        ParameterRow(n, plan.layout.in_head(n), float(plan.layout.in_head(n)))
        for n in plan.layout.names
    ]
    freeze.apply(net, rows)
    net.train()
    freeze.hold(net, "eval")
    net.to(device)
    if plan.specs.trainer.channels_last:
        net.to(memory_format=torch.channels_last)
    names = freeze.frozen(net, rows, "eval")
    return Frozen(net, freeze.hashes(net.state_dict(), names), device)


def features_of(plan: Plan, frozen: Frozen) -> Kept:
    """The features of every view that is trained on, of each training image as it is evaluated,
    and of the validation images."""
    options = plan.specs.features
    assert isinstance(options, Auto)
    # As many views as are asked for: they are used together, and not one an epoch.
    trainer = replace(plan.specs.trainer, max_epochs=_ANY_EPOCHS)
    many = replace(plan, specs=replace(plan.specs, trainer=trainer))
    work = Extraction(many, frozen, options)
    cut = fitting(work, options)
    if isinstance(cut, Refusal):
        raise NotExact(cut.reason)
    kept = Kept(work, cut)
    shown: list[int | None] = [None, *range(work.views or 0)]
    for view in shown:
        kept.train[view] = kept.view("train", view)
    kept.val[0] = kept.view("val", None)
    return kept


def inputs(
    frozen: Frozen, kept: Kept, path: str, split: str, view: int | None
) -> npt.NDArray[np.float32]:
    """What enters the head's layer, float32 (n, d), the mean over the positions of a map. As it is
    kept, without a copy, where that is the same."""
    own: View = kept.val[0] if split == "val" else kept.train[view]
    in_order = bool((own.positions == np.arange(len(own.positions))).all())
    parts = kept.cut.parts
    alone = len(parts) == 1 and len(parts[0].shape) == 1 and parts[0].module == path
    if in_order and alone and own.entry.dtype == "float32":
        return own.entry.array
    found: list[npt.NDArray[np.float32]] = []
    layer = frozen.net.get_submodule(path)

    def see(entering: torch.Tensor) -> None:
        x = rows_of(layer, entering.float()).view(
            len(entering), -1, entering.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        )
        found.append(x.mean(dim=1).cpu().numpy())

    with watched(frozen.net, path, see):
        for _ in logits(frozen, kept, split, own):
            pass
    return np.concatenate(found)


def logits(frozen: Frozen, kept: Kept, split: str, own: View) -> Iterator[torch.Tensor]:
    """Logits of a split, a block at a time, in inference mode from the features on."""
    rows, tail = Rows({0: own}, 1, kept.work.samples(split)), Tail(frozen.net, kept.cut)
    try:
        with torch.no_grad(), inference(frozen.net), kept.work.cast(split):
            for features in batches(rows, own):
                yield frozen.net(features.to(frozen.device))
    finally:
        tail.remove()


def batches(rows: Rows, own: View) -> Iterator[torch.Tensor]:
    """The features of a view in the order of its images, a block at a time."""
    count = len(own.positions)
    for start in range(0, count, _BLOCK):
        yield rows.features(range(start, min(start + _BLOCK, count)))
