"""The learning-rate range test (Smith, 2017): short climbs of the rate, and a rate to start from.

The rate rises exponentially from step to step until the loss diverges. Two rates are read off the
smoothed loss: ``lowest``, where it is that, and ``steepest``, where it falls fastest. Every
parameter group keeps its multiple, what the first phase freezes stays frozen, and the weights of
a climb are thrown away.

On cached features a step takes milliseconds, and so there are several climbs, of more steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from xfer.core.device import device_of
from xfer.core.errors import DataError, DivergedError
from xfer.core.live_line import working
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.data.loader import TrainLoader, train_images
from xfer.models.network import assemble, fill
from xfer.plan.plan import Plan
from xfer.training.features import AutoFeatures
from xfer.training.features.cut import Tail
from xfer.training.features.extract import PartlyFrozen
from xfer.training.features.feature_loader import FeatureBatches
from xfer.training.features.feature_switch import cacheable
from xfer.training.features.find_cut import Refusal
from xfer.training.fit_health import HIGHEST_RATE
from xfer.training.head_start import prepare_head
from xfer.training.mirroring import heeding
from xfer.training.module import Classifier
from xfer.training.teacher import lessons_of

_ON_IMAGES = 1, 100  # climbs and their steps
_ON_FEATURES = 3, 200
_LOWEST = 1e-6
_SMOOTHING = 0.9
_DIVERGED = 4.0  # times the lowest smoothed loss
_FIRST_LOOKED_AT = 10  # steps; the average is noise before
_REACH = 2  # steps to either side, over which the fall is measured
_SHARE = 3.0  # a fit of many epochs bears less than a climb of a few steps; bench/lr_find.py


def lr_find(plan: Plan) -> Plain:
    """Climb on the run's own network, data, loss and optimizer.

    Its ``rates`` and smoothed ``losses`` by step (means over the climbs), ``lowest``,
    ``steepest``, and as ``suggested`` a third of ``lowest``. Raises DivergedError when the loss
    falls nowhere.
    """
    specs, data = plan.specs, plan.specs.data
    if plan.dataset is None or data is None:
        raise DataError("data", "is needed to find a rate", "give data=... or data.root=DIR", 43)
    device = device_of(specs.trainer.accelerator)
    net = assemble(plan.parts, plan.state)
    standard, mirrored = prepare_head(plan, net)
    specs = heeding(plan, mirrored).specs
    module = Classifier(net, replace(plan, specs=specs), standard=standard).to(device)
    images = train_images(plan.dataset.splits["train"], plan.card.input, specs.augment)
    loader = TrainLoader(images, data.batch_size, 0, device.type == "cuda", specs.seed)
    loader.order.labels = data.balance(images.samples.labels)
    lessons = lessons_of(plan, device)
    loader.taught = lessons.batch if lessons else None
    views = _on_features(module, loader)
    climbs, steps = _ON_IMAGES if views is None else _ON_FEATURES
    if lessons:
        lessons.cached_views = views
    began = {name: tensor.clone() for name, tensor in module.moving().items()}
    batches = _endless(loader)
    climbed: list[list[float]] = []
    with working("lr_find", climbs * steps) as advance:
        for number in range(climbs):
            fill(module.net, began)
            climbed.append([])
            for loss in _climb(module, batches, _rates(steps), number):
                climbed[-1].append(loss)
                advance(1)
    # As far as all of them came: the mean over fewer would make a step.
    means = [statistics.mean(losses) for losses in zip(*climbed, strict=False)]
    return _read(_rates(steps)[: len(means)], means)


def _rates(steps: int) -> list[float]:
    return [_LOWEST * (HIGHEST_RATE / _LOWEST) ** (i / (steps - 1)) for i in range(steps)]


def _climb(
    module: Classifier, batches: Iterator[Any], rates: list[float], number: int
) -> Iterator[float]:
    """The smoothed loss of each step, until it diverges."""
    optimizer = module.configure_optimizers()["optimizer"]
    base = module.plan.specs.optim.rate
    shares = [g["lr"] / base * g["phases"][0] for g in optimizer.param_groups]
    mixed = module.plan.specs.trainer.numbers != "32-true"
    average, lowest = 0.0, math.inf
    for step, rate in enumerate(rates):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        # It needs no loss scaling: bfloat16 has float32's range, and so float16 is left out.
        with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
            module.seed_step(number, step)
            loss = module.loss_of([part.to(module.device) for part in next(batches)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(loss.detach())
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        lowest = min(lowest, smooth)
        if not smooth <= _DIVERGED * lowest < math.inf:
            return
        yield smooth


def _on_features(module: Classifier, loader: TrainLoader) -> int | None:
    """Put features in place of the images, if the run has or may cache any: one view of each. How
    many augmented views that are, 1 or, of images as they are evaluated, 0; ``None`` on images."""
    options = module.plan.specs.features
    if not isinstance(options, AutoFeatures):
        return None
    frozen = PartlyFrozen(module.net, module.hashes, module.device)
    cached = cacheable(module.plan, frozen, options)
    if isinstance(cached, Refusal):
        log.info(f"lr_find climbs on images: {cached.reason}")
        return None
    cached.prepare(0)
    loader.features = FeatureBatches(cached.train, 1, cached.work.splits["train"])
    Tail(module.net, cached.cut)
    module.cut = True
    return 0 if cached.work.views is None else 1


def _endless(loader: TrainLoader) -> Iterator[Any]:
    """Training batches, epoch after epoch."""
    for epoch in count():
        loader.order.set_epoch(epoch)
        yield from loader


def _read(rates: list[float], losses: list[float]) -> Plain:
    """Where the loss falls fastest, where it is lowest, and what is proposed."""
    first = min(_FIRST_LOOKED_AT, len(losses) // 2)
    falls = [
        losses[i - _REACH] - losses[i + _REACH] for i in range(first + _REACH, len(losses) - _REACH)
    ]
    if not falls or max(falls) <= 0:
        what = f"no learning rate from {_LOWEST:g} to {HIGHEST_RATE:g} lowered the loss"
        raise DivergedError("optim.lr", what, "check the data, the weights and freeze", 3)
    lowest = rates[losses.index(min(losses[first:]), first)]
    return {
        "suggested": lowest / _SHARE,
        "lowest": lowest,
        "steepest": rates[first + _REACH + falls.index(max(falls))],
        "rates": rates,
        "losses": losses,
    }
