"""How a new head begins to train step by step: solved or from zero, its input standardised."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from xfer.core.errors import CombinationError
from xfer.core.log import log
from xfer.core.standardize import Standard, folded
from xfer.core.types import Plain
from xfer.data.augment import Plain as NoAugment
from xfer.models.head import Keep, Mlp
from xfer.plan.plan import Plan
from xfer.training.exact import NotExact, at_rest, features_of, solve
from xfer.training.features import AutoFeatures
from xfer.training.features.cut import evaluated_from
from xfer.training.features.extract import Extraction, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.head_input import first_layer, moments, put
from xfer.training.head_problem import held_out_answers, held_out_score
from xfer.training.mirroring import asks, mirroring
from xfer.training.optim import Exact


def prepare_head(plan: Plan, net: nn.Module) -> tuple[Standard, Plain]:
    """Give ``net`` the best head on its frozen features, where it is to begin with that; and the
    moments of the head's input over the training images, where that is to be standardised, beside
    what :mod:`xfer.training.mirroring` found, where that was to be asked."""
    specs = plan.specs
    solves = specs.trainer.head_start == "solved"
    standardizes = specs.trainer.standardize and not isinstance(specs.head, Keep)
    if not (solves or standardizes):
        return {}, {}
    trainer = replace(specs.trainer, precision="32-true", max_epochs=1)
    specs = replace(specs, trainer=trainer, augment=NoAugment(), optim=Exact())
    plan = replace(plan, specs=specs)
    frozen, cached, found = at_rest(plan, net), None, {}
    if isinstance(specs.features, AutoFeatures):
        try:
            cached = features_of(plan, frozen)
        except NotExact as error:
            log.info(f"the head's input is computed from the images: {error}")
    if solves and cached is None:
        log.warning("the head does not begin solved: its input cannot be cached")
    elif solves and cached is not None:
        found = _begin_solved(plan, frozen, cached)
    standard = _moments(plan, frozen, cached) if standardizes else {}
    if isinstance(specs.head, Mlp):
        # Its random start is meant for standardised input.
        put(net, folded, standard)
    return standard, found


def _begin_solved(plan: Plan, frozen: PartlyFrozen, cached: CachedFeatures) -> Plain:
    before = {name: tensor.clone() for name, tensor in frozen.net.state_dict().items()}
    try:
        solved = solve(plan, frozen, cached)
    except (NotExact, CombinationError) as error:  # or no image is held out to choose l2 by
        frozen.net.load_state_dict(before)
        why = f"{error.where} {error.what}" if isinstance(error, CombinationError) else error
        log.warning(f"the head does not begin solved: {why}")
        return {}
    solution = solved.solution
    best = solution.path[solution.best]
    _, counts = held_out_answers(plan, solution.held_out, cached.work.splits["train"])
    said = "no training image was held out, since each is alone in its class"
    if counts["n"]:
        score = held_out_score({"cv_acc": best.cv_acc, **counts})
        said = f"cross-validated loss {best.cv_loss:.4f}, {score}"
    log.info(f"the head begins solved: {said}")
    return mirroring(frozen, cached, solved) if asks(plan) else {}


def _moments(plan: Plan, frozen: PartlyFrozen, cached: CachedFeatures | None) -> Standard:
    net, paths = frozen.net, []
    for head in plan.layout.heads:
        if path := first_layer(net, head):
            paths.append(path)
        else:
            why = f"the first layer of '{head}' is not a plain linear layer with a bias"
            log.info(f"the head's input is not standardised: {why}")
    if not paths:
        return {}
    if cached is None:
        # In the batches of features, or the last bits are others than those of a cached run.
        options = plan.specs.features
        options = options if isinstance(options, AutoFeatures) else AutoFeatures()
        images = Extraction(plan, frozen, options).image_batches("train")
        return moments(net, paths, images, net)
    view, parts = cached.train[None], cached.work.batches("train", None)
    batches = ((view.features(part).to(frozen.device), len(part)) for part in parts)
    with evaluated_from(net, cached.cut) as run:
        return moments(net, paths, batches, run)
