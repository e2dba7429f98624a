"""How a new head begins to train step by step: solved or from zero, its input standardised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from xfer.core.log import log
from xfer.core.standardize import Standard, folded
from xfer.data.augment import Plain as NoAugment
from xfer.data.loader import EvalLoader, eval_images
from xfer.models.head import Keep, Mlp
from xfer.training.exact import solve
from xfer.training.features import Auto
from xfer.training.features.cut import Tail
from xfer.training.features.feature_loader import Kept, Rows
from xfer.training.frozen import Frozen, NotExact, at_rest, batches, features_of
from xfer.training.head_input import first_layer, moments, put
from xfer.training.optim import Exact

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.plan.plan import Plan


def prepare_head(plan: Plan, net: nn.Module) -> Standard:
    """Give ``net`` the best head on its frozen features, where it is to begin with that; and the
    moments of the head's input over the training images, where that is to be standardised."""
    specs = plan.specs
    trainer = replace(specs.trainer, precision="32-true", max_epochs=1)
    specs = replace(specs, trainer=trainer, augment=NoAugment(), optim=Exact())
    plan = replace(plan, specs=specs)
    if specs.trainer.head_start == "zero" and not _standardizes(specs):
        return {}
    frozen, kept = at_rest(plan, net), None
    if isinstance(specs.features, Auto):
        try:
            kept = features_of(plan, frozen)
        except NotExact as error:
            log.info(f"the head's input is computed from the images: {error}")
    if specs.trainer.head_start == "solved":
        if kept is None:
            log.warning("the head does not begin solved: its input cannot be kept")
        else:
            _begin_solved(plan, frozen, kept)
    if not _standardizes(specs):
        return {}
    standard = _moments(plan, frozen, kept)
    if isinstance(specs.head, Mlp):
        # Its random start is meant for standardised input.
        put(net, folded, standard)
    return standard


def _moments(plan: Plan, frozen: Frozen, kept: Kept | None) -> Standard:
    net = frozen.net
    layers = {head: first_layer(net, head) for head in plan.layout.heads}
    for head in (head for head, path in layers.items() if path is None):
        why = f"the first layer of '{head}' is no plain linear one with a bias"
        log.info(f"the head's input is not standardised: {why}")
    paths = [path for path in layers.values() if path]
    if not paths:
        return {}
    if kept is None:
        return moments(net, paths, _images(plan, frozen.device))
    own, tail = kept.train[None], Tail(net, kept.cut)
    rows = Rows({0: own}, 1, kept.work.samples("train"))
    try:
        return moments(net, paths, (batch.to(frozen.device) for batch in batches(rows, own)))
    finally:
        tail.remove()


def _standardizes(specs: Specs) -> bool:
    """Whether the head is new, and its input to be standardised."""
    return specs.trainer.standardize and not isinstance(specs.head, Keep)


def _begin_solved(plan: Plan, frozen: Frozen, kept: Kept) -> None:
    before = {name: tensor.clone() for name, tensor in frozen.net.state_dict().items()}
    try:
        found = solve(plan, frozen, kept).solution
    except NotExact as error:
        frozen.net.load_state_dict(before)
        log.warning(f"the head does not begin solved: {error}")
        return
    best = found.path[found.best]
    log.info(
        f"the head begins solved: cross-validated loss {best.cv_loss:.4f}, "
        f"accuracy {best.cv_acc:.4f}"
    )


def _images(plan: Plan, device: torch.device) -> Iterator[torch.Tensor]:
    """The training images as they are evaluated, batch by batch."""
    specs, spec = plan.specs, plan.card.input
    assert plan.dataset is not None and specs.data is not None
    dataset = eval_images(plan.dataset.splits["train"], spec)
    loader = EvalLoader(dataset, specs.data.eval_batch_size, specs.data.workers, pin=False)
    for images, _ in loader:
        yield images.to(device)
