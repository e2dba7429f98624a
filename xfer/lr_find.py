"""The learning-rate range test (Smith, 2017): a short climb of the rate, and a rate to start from.

The rate rises exponentially from step to step until the loss diverges. Two rates are read off the
smoothed loss: ``steepest``, where it falls fastest, and ``valley``, two thirds along its longest
way down (the rule of fastai). Every parameter group keeps its multiple, what the first phase
freezes stays frozen, and the weights of the climb are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from xfer.errors import DataError, DivergedError
from xfer.evaluate import device_of
from xfer.loader import Pictures, TrainLoader
from xfer.model import Classifier
from xfer.network import assemble
from xfer.types import Plain

if TYPE_CHECKING:
    from xfer.plan import Plan

_STEPS = 100
_LOWEST, _HIGHEST = 1e-7, 10.0
_SMOOTHING = 0.95
_DIVERGED = 4.0  # times the lowest smoothed loss
_FIRST_LOOKED_AT = 10  # steps; the average is noise before
_REACH = 2  # steps to either side, over which the fall is measured


def lr_find(plan: Plan) -> Plain:
    """Climb on the run's own network, data, loss and optimizer.

    Its ``rates`` and smoothed ``losses`` by step, ``steepest``, and as ``suggested`` the valley.
    Raises DivergedError when the loss falls nowhere.
    """
    device = device_of(plan.specs.trainer)
    module = Classifier(assemble(plan.parts, plan.weights), plan).to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    shares = [g["lr"] / plan.specs.optim.rate * g["phases"][0] for g in optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, batch in zip(range(_STEPS), _batches(plan, device), strict=False):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        loss = _step(module, optimizer, batch, step)
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > _DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    return _read(rates, losses)


def _batches(plan: Plan, device: torch.device) -> Iterator[Any]:
    """Training batches on the device, epoch after epoch."""
    specs = plan.specs
    if plan.dataset is None or specs.data is None:
        raise DataError("data", "is needed to find a rate", "give data=... or data.root=DIR", 43)
    augment = specs.augment
    pictures = Pictures(
        plan.dataset.splits["train"], augment.transform(plan.card.input), augment.seed
    )
    loader = TrainLoader(pictures, specs.data.batch_size, 0, device.type == "cuda", specs.seed)
    loader.order.labels = specs.data.balance(pictures.samples.labels)
    epoch = 0
    while True:
        loader.order.set_epoch(epoch)
        for images, labels in loader:
            yield images.to(device), labels.to(device)
        epoch += 1


def _step(module: Classifier, optimizer: Any, batch: Any, number: int) -> float:
    precision = module.plan.specs.trainer.precision
    # The climb needs no loss scaling: bfloat16 has float32's range, and so float16 is left out.
    with torch.autocast(module.device.type, torch.bfloat16, enabled=precision != "32-true"):
        module.seed_step(0, number)
        loss = module.loss_of(batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _read(rates: list[float], losses: list[float]) -> Plain:
    """Where the loss falls fastest, and its longest way down."""
    first = min(_FIRST_LOOKED_AT, len(losses) // 2)
    falls = [
        losses[i - _REACH] - losses[i + _REACH] for i in range(first + _REACH, len(losses) - _REACH)
    ]
    if not falls or max(falls) <= 0:
        raise DivergedError(
            "optim.lr",
            f"no learning rate from {_LOWEST:g} to {_HIGHEST:g} lowered the loss",
            "look at the data, the weights and freeze",
            3,
        )
    start, end = _longest_fall(losses[first:])
    return {
        "suggested": rates[first + start + (end - start) * 2 // 3],
        "steepest": rates[first + _REACH + falls.index(max(falls))],
        "rates": rates,
        "losses": losses,
    }


def _longest_fall(losses: list[float]) -> tuple[int, int]:
    """Begin and end of the longest subsequence in which the loss only falls."""
    length, begin = [1] * len(losses), list(range(len(losses)))
    for i in range(len(losses)):
        for j in range(i):
            if losses[j] > losses[i] and length[j] + 1 > length[i]:
                length[i], begin[i] = length[j] + 1, begin[j]
    end = length.index(max(length))
    return begin[end], end
