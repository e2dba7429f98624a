"""Specs to Plan: every fact of a run, derived and checked before anything is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import Attempts, ConfigError, closest, raise_all
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Card, Dataset, InputSpec, Network, Plain
from xfer.data.dataset import resizable
from xfer.freeze import Phase, layout, lone_norm
from xfer.models import adapters
from xfer.models.head import Keep, Remap
from xfer.models.head.class_match import Naming, adopt
from xfer.plan import auto
from xfer.plan.classes import class_mismatch, joined
from xfer.plan.plan import Plan
from xfer.plan.preflight import check_devices
from xfer.weights.content import Weights

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.models.network import Parts
    from xfer.weights.content import Match, OptimizerState
    from xfer.weights.formats.checkpoint_format import Snapshot


def make_plan(specs: Specs, not_exact: str = "") -> Plan:
    """Derive and check every fact. Raises all problems together.

    ``not_exact`` is why a fit that was to solve the head could not.
    """
    _check_model_source(specs)
    attempt = Attempts()
    training = specs.trains or (not specs.stages and not specs.checkpoint.path)
    whole = training or specs.calibrates
    if specs.checkpoint.path:
        snapshot = attempt(_snapshot, specs)
        known = snapshot.card.input if snapshot else None
        dataset = attempt(_dataset, specs, whole, known)
        plan = attempt(_from_checkpoint, specs, dataset, snapshot) if snapshot else None
    else:
        weights = attempt(specs.source.load, specs.backbone)
        own = weights.input if weights and not training else None
        dataset = attempt(_dataset, specs, whole, own if own and own.range else None)
        raise_all(attempt.errors)
        plan = attempt(_from_specs, specs, dataset, weights, not_exact)
    raise_all(attempt.errors)
    assert plan is not None
    if training:
        attempt(_check_training, plan)
    raise_all(attempt.errors)
    return plan


def _dataset(specs: Specs, whole: bool, known: InputSpec | None) -> Dataset | None:
    """The data; where the network's input is ``known``, its pixels have the range of that."""
    data = specs.data
    if data is None:
        return None
    if known and hasattr(data, "range"):
        if "data.range" in specs.explicit and data.range != known.range:
            ends = list(known.range) if known.range else "null"
            what = f"contradicts the network, which was trained with {ends}"
            raise ConfigError("data.range", what, "drop it", 85)
        data = replace(data, range=known.range)
    return data.dataset(whole)


def _resizable(specs: Specs, dataset: Dataset, spec: InputSpec) -> Dataset:
    return resizable(dataset, spec, getattr(specs.data, "on_bad", "error"))


def _check_model_source(specs: Specs) -> None:
    """The model comes from exactly one place: fit, a checkpoint, or a source with its own head."""
    keep = isinstance(specs.head, Keep | Remap)
    kind = specs.facts.get("source", {}).get("_target_", "")
    if specs.trains and specs.checkpoint.path:
        raise ConfigError(
            "checkpoint.path",
            "a run that fits makes its own checkpoint",
            "drop 'fit' from stages, or start from those weights with source=run source.path=...",
            81,
        )
    needs = set(specs.stages) - ({"lr_find", "report"} if "lr_find" in specs.stages else set())
    if needs and "fit" not in specs.stages and not specs.checkpoint.path and not keep:
        raise ConfigError(
            "stages",
            f"{list(specs.stages)} has no model to work on",
            "add fit, or give checkpoint.path=FILE, or head=keep or head=remap with a source",
            82,
        )
    if keep and kind.endswith("Scratch") and not specs.checkpoint.path:
        raise ConfigError(
            "head",
            f"{type(specs.head).__name__.lower()} needs a source with a head of its own",
            "choose source=... or head=linear",
            83,
        )


def _from_specs(specs: Specs, dataset: Dataset | None, weights: Weights, not_exact: str) -> Plan:
    from xfer.models.network import blueprint, check
    from xfer.plan.facts import optimizer_facts
    from xfer.weights.load_report import account

    given = dataset
    dataset, classes, parts = joined(specs, given, weights)
    before, after = blueprint(parts)
    found = check(parts, before, weights)
    spec = _input(weights.input or before.input, getattr(specs.backbone, "image_size", None))
    spec = replace(spec, range=dataset.range if dataset else spec.range)
    if given and (left := _resizable(specs, given, spec)) is not given:
        dataset, _, _ = joined(specs, left, weights)
    kept = weights.head if parts.head_from_source and weights.head else specs.facts["head"]
    card = Card(
        # With what the builder added by itself, so that the card alone rebuilds the network.
        backbone={**specs.facts["backbone"], **({"args": before.args} if before.args else {})},
        head=kept,
        classes=classes,
        input=spec,
        source=_source_facts(specs, weights, found, parts),
        experiment=specs.experiment,
        # Weights that stay as they came were trained and chosen on what their file names.
        splits=_hashes(dataset) if "fit" in specs.stages else weights.splits,
        compat=weights.compat,
    )
    plan = Plan(specs, dataset, card, parts, weights, (), {})
    if dataset and "train" in dataset.splits:
        plan = _with_phases(plan, after, not_exact)
        plan.facts["features"] = _expected_features(plan, after)
        plan.facts["optimizer"] = optimizer_facts(after.module, plan.phases, plan.specs.optim)
    if weights.state is not None:
        plan.load.update(account(weights, found, before.heads))
    if parts.rows and weights.classes:
        own = weights.classes
        plan.load["head"] = {
            name: [own[i] for i in members]
            for name, members in zip(classes, parts.rows, strict=True)
        }
    if weights.optimizer is not None:
        heads = () if parts.head_from_source else before.heads
        plan = _with_momenta(plan, weights.optimizer, found, heads)
    return _finish(plan)


def _with_momenta(
    plan: Plan, optimizer: OptimizerState, found: Match, heads: tuple[str, ...]
) -> Plan:
    from xfer.weights.load_report import mark_continued
    from xfer.weights.optimizer_state import continued

    momenta, dropped = continued(optimizer, plan.weights, found, heads)
    mark_continued(plan.load, momenta)
    plan.load["optimizer"] = {
        "algorithm": momenta.algorithm,
        "continued": len(momenta.buffers),
        "dropped": dropped,
    }
    return replace(plan, momenta=momenta)


def _input(spec: InputSpec, image_size: int | None) -> InputSpec:
    return spec.scaled(image_size) if image_size else spec


def _source_facts(specs: Specs, weights: Weights, found: Match, parts: Parts) -> Plain:
    """What ``result.json`` says of the source, and what fetches and places it again."""
    return {
        "spec": {**specs.facts["source"], **weights.pinned},
        "kind": weights.kind,
        "origin": weights.origin,
        "sha256": weights.sha256,
        "coverage": found.coverage if weights.state is not None else None,
        "loaded": len(found.of("loaded", "renamed", "adapted")),
        "dropped": len(found.of("dropped head", "left out")),
        "missing": len(found.missing),
        "unexpected": 0,
        "kept": parts.head_from_source,
        "classes": parts.source_classes,
        "rows": [list(row) for row in parts.rows],
    }


def _with_phases(plan: Plan, network: Network, not_exact: str) -> Plan:
    """With what trains when, its adapters, the shape of every parameter, what the network is
    made of, and every automatic choice."""
    found = layout(network.module, network.heads)
    if own := plan.specs.freeze.adapters(found):
        adapters.put(network.module, own)
        found = found.adapted(own["weights"], [*dict(network.module.named_parameters())])
        parts, card = replace(plan.parts, adapters=own), replace(plan.card, adapters=own)
        plan = replace(plan, parts=parts, card=card)
    images = len(plan.dataset.splits["train"]) if plan.dataset else 0
    choices = auto.decide(plan.specs, found, images, plan.weights.state is not None, not_exact)
    specs = auto.apply(plan.specs, choices)
    phases = specs.freeze.phases(found, specs.trainer.epochs)
    if specs.trainer.head_start == "solved":
        phases = specs.freeze.after_solved(phases)
    card = plan.card
    if not _chooses_on_val(specs, phases):
        card = replace(card, splits={k: v for k, v in card.splits.items() if k != "val"})
    return replace(
        plan,
        specs=specs,
        card=card,
        phases=phases,
        shapes={name: tuple(p.shape) for name, p in network.module.named_parameters()},
        layout=found,
        facts={**plan.facts, "auto": [asdict(choice) for choice in choices]},
    )


def _chooses_on_val(specs: Specs, phases: Sequence[Phase]) -> bool:
    """Whether the validation images choose: one of several epochs, or when a phase begins."""
    kept = specs.checkpoint
    if specs.optim.solves or not kept.monitor.startswith("val_"):
        return False
    several = kept.start_epoch + kept.interval <= specs.trainer.epochs
    return several or any(phase.patience is not None for phase in phases)


def _hashes(dataset: Dataset | None) -> dict[str, str]:
    return {name: samples.sha256 for name, samples in dataset.splits.items()} if dataset else {}


def _expected_features(plan: Plan, network: Network) -> Plain:
    """What features at the heads would take, where they are asked for and only heads train at
    first; what is behind an inner cut is known when the fit has proved one."""
    from xfer.models.network import width_at_heads

    options, data = plan.specs.features, plan.dataset
    if options.use == "never" or data is None:
        return {}
    if not all(row.head or row.frozen for row in plan.phases[0].rows):
        return {"cut": "the last frozen input that the fit can prove"}
    width = width_at_heads(network)
    if width is None:
        return {"cut": "the input of the head"}
    count = options.views_of(plan.specs.augment.random, plan.specs.trainer.epochs) or 1
    images = count * len(data.splits["train"]) + len(data.splits["val"])
    # At most: a layer under autocast may hand on two bytes a number.
    sizes = {"bytes_per_image": width * 4, "bytes": width * 4 * images}
    return {"cut": "the input of the head", "count": count, **sizes}


def _snapshot(specs: Specs) -> Snapshot:
    from xfer.models.restore import read_checkpoint

    return read_checkpoint(Path(specs.checkpoint.path or "").expanduser())[1]


def _from_checkpoint(specs: Specs, dataset: Dataset | None, snapshot: Snapshot) -> Plan:
    """The checkpoint's facts win over the experiment's; a typed contradiction is an error."""
    from xfer.models.restore import of_a_card, pieces

    path = Path(specs.checkpoint.path or "").expanduser()
    card = snapshot.card.merged()
    for group, facts in (("backbone", card.backbone), ("head", card.head)):
        typed = [k for k in specs.explicit if k == group or k.startswith(f"{group}.")]
        if typed and not _agrees(specs.facts[group], facts):
            raise ConfigError(
                sorted(typed)[0], f"contradicts {path}, which holds {_short(facts)}", "drop it", 85
            )
    dataset = dataset and _resizable(specs, dataset, card.input)
    if dataset and str(card.head["_target_"]).endswith(".Keep"):
        dataset = adopt(dataset, Naming(card.classes), card.head.get("aliases") or {})
    if dataset and dataset.classes != card.classes:
        raise class_mismatch(dataset.classes, card.classes, str(path))
    with of_a_card(best_checkpoint(path)):
        parts, _ = pieces(card, specs.make)
    return _finish(Plan(specs, dataset, card, parts, Weights("checkpoint", None), (), {}))


def _agrees(asked: Plain, held: Plain) -> bool:
    """Whether a checkpoint holds what is asked for; it may hold more arguments."""
    return all(
        _agrees(value, held.get(key) or {}) if isinstance(value, dict) else held.get(key) == value
        for key, value in asked.items()
    )


def _short(facts: Plain) -> str:
    target = str(facts["_target_"]).rpartition(".")[2]
    return target + (f" '{facts['name']}'" if "name" in facts else "")


def _check_training(plan: Plan) -> None:
    from xfer.evaluation.metrics import names

    plan.specs.loss.weights(plan.train_counts)
    known, monitor = names(len(plan.card.classes)), plan.specs.checkpoint.monitor
    if monitor not in known:
        raise ConfigError(
            "checkpoint.monitor", f"no metric is called '{monitor}'", closest(monitor, known), 86
        )
    check_devices(
        plan.specs,
        {name: len(s) for name, s in plan.dataset.splits.items()} if plan.dataset else {},
    )
    _check_batch(plan)
    start, epochs = plan.specs.checkpoint.start_epoch, plan.specs.trainer.epochs
    if start > epochs:
        raise ConfigError(
            "checkpoint.start_epoch", f"{start} is behind the last epoch {epochs}", "lower it", 87
        )


def _check_batch(plan: Plan) -> None:
    """Raise ConfigError for batches of one image where a BatchNorm would have one value to train
    on; larger maps have more, and an odd image at the end of an epoch is never alone."""
    from xfer.models.network import empty

    specs = plan.specs
    if specs.data is None or specs.data.batch_size > 1 or not plan.layout.batch_norms:
        return
    phases = [phase.rows for phase in plan.phases]
    if name := lone_norm(empty(plan.parts), phases, specs.freeze.batch_norm, plan.card.input.size):
        what = f"is 1, and the BatchNorm {name} cannot train on one value a channel"
        raise ConfigError("data.batch_size", what, "type data.batch_size=2", 68)


def _finish(plan: Plan) -> Plan:
    from xfer.plan.facts import plan_facts

    plan.facts.update(plan_facts(plan))
    return plan
