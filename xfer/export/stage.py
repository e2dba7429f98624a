"""The stage ``export``: the network, and the real images that its files are tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import XferError
from xfer.core.files import file_sha256
from xfer.core.log import log
from xfer.data.preprocess import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import nn

    from xfer.core.types import Array, Card, Exported, Images, InputSpec, Samples
    from xfer.plan.plan import Plan

_BATCH = 32


def hand_over(plan: Plan, net: nn.Module, folder: Path, checkpoint: Path | None) -> list[Exported]:
    """Write ``net`` in every format asked for; see :func:`xfer.export.export`.

    Each file that passed is a line on the terminal, also where another one was refused."""
    import torch

    from xfer.export import Evidence, export

    asked, samples, spec = plan.specs.export, check_split(plan), plan.card.input
    at = spread(len(samples), min(len(samples), asked.gate.images))
    chosen = Chosen(samples.images, at)
    approximate = [w for w in asked.writers if getattr(w, "trial", "logits") == "score"]
    evidence = Evidence(
        photos=chosen,
        labels=samples.labels[at],
        calibration=_calibration(plan, approximate),
        val=(lambda: _labelled(samples, spec)) if (samples.labels >= 0).all() else None,
        max_drop=asked.gate.max_drop,
    )
    images = _prepared(samples, at, spec)
    net = net.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    card = _traceable(plan.card, checkpoint)
    files: Sequence[Exported] = ()
    try:
        files = export(net, images, asked.writers, card, folder, asked.gate.tolerance, evidence)
    except XferError as error:
        files = error.passed
        raise
    finally:
        for file in files:
            log.info(_line(file))
    return list(files)


def _traceable(card: Card, checkpoint: Path | None) -> Card:
    """The card with the hash of the checkpoint, so that a file says what it was made from."""
    card = card.merged()
    if checkpoint is None:
        return card
    return replace(card, source={**card.source, "checkpoint": file_sha256(checkpoint)})


def _line(file: Exported) -> str:
    told = f"export/{file.file}: {file.bytes:,} bytes; "
    told += f"{file.compared} differ by up to {file.max_abs_diff:.1e}, "
    told += f"same top class on {file.agree:.1%} of {file.images} images"
    if file.bound is None:
        told += f"; accuracy on val {file.acc:.4f}, the checkpoint's {file.acc_network:.4f}"
    return told


@dataclass(frozen=True)
class Chosen:
    """Some pictures of a split, decoded when asked for."""

    images: Images
    at: list[int]

    def __getitem__(self, index: int) -> Image:
        return self.images[self.at[index]]

    def __len__(self) -> int:
        return len(self.at)


def check_split(plan: Plan) -> Samples:
    """The split whose images files are tried on: val, else test, else train."""
    assert plan.dataset is not None
    splits = plan.dataset.splits
    return splits.get("val") or splits.get("test") or splits["train"]


def _calibration(plan: Plan, writers: Sequence[object]) -> Array | None:
    """As many training images as the most demanding of ``writers`` is calibrated on."""
    samples = plan.dataset.splits.get("train") if plan.dataset else None
    count = max((getattr(writer, "images", _BATCH) for writer in writers), default=0)
    if samples is None or not count:
        return None
    at = spread(len(samples), min(len(samples), count))
    return _prepared(samples, at, plan.card.input)


def _labelled(samples: Samples, spec: InputSpec) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(samples), _BATCH):
        at = range(start, min(start + _BATCH, len(samples)))
        yield _prepared(samples, at, spec), samples.labels[list(at)]


def _prepared(samples: Samples, at: Sequence[int], spec: InputSpec) -> Array:
    return np.stack([prepare(samples.images[i], spec) for i in at])


def spread(n: int, count: int) -> list[int]:
    """``count`` positions spread evenly over ``n``."""
    return [i * n // count for i in range(count)]
