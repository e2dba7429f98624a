"""Specs to Plan: every fact of a run, derived and checked before anything is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xfer.core.control_groups import available
from xfer.core.errors import Attempts, CombinationError, ConfigError, DataError, closest, raise_all
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Card, Dataset, InputSpec, Network, Plain
from xfer.data.dataset import resizable
from xfer.data.tta import check_tta
from xfer.freeze import Layout, Phase, layout, lone_norm
from xfer.models import adapters
from xfer.models.head import Keep, Knn, Prototype, Remap
from xfer.models.head.class_match import Naming, adopt
from xfer.plan import auto
from xfer.plan.calibration_plan import NO_CALIBRATION, CalibrationPlan, plan_calibration
from xfer.plan.certificate_images import check_certificate
from xfer.plan.classes import class_mismatch, joined, source_head
from xfer.plan.memory_plan import within_memory
from xfer.plan.multilabel_task import check_source_head, of_card, refuse_for_labels, watched
from xfer.plan.plan import NO_LAYOUT, Plan
from xfer.plan.preflight import check_devices, check_votes
from xfer.plan.teacher_plan import TeacherPlan, plan_teacher

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.models.network import Parts
    from xfer.weights.content import Match, OptimizerBuffers, Weights
    from xfer.weights.formats.checkpoint_format import Snapshot


def make_plan(specs: Specs, not_exact: str = "") -> Plan:
    """Derive and check every fact. Raises all problems together.

    ``not_exact`` is why a fit that was to solve the head could not.
    """
    from xfer.evaluation.metrics import check_names

    _check_model_source(specs)
    if (image := specs.embed.neighbours) and not Path(image).expanduser().is_file():
        what = f"there is no file '{image}'"
        raise DataError("embed.neighbours", what, "give the path of one image", 76)
    check_names(specs.metrics, specs.task.several)
    attempt = Attempts()
    training = specs.trains or (not specs.stages and not specs.checkpoint.path)
    whole = training or specs.calibrates or {"embed", "soup"} & {*specs.stages}
    if specs.checkpoint.path:
        snapshot = attempt(_snapshot, specs)
        known = snapshot.card.input if snapshot else None
        if snapshot:
            specs = of_card(specs, snapshot.card)
        refuse_for_labels(specs)
        learned = snapshot.card.classes if snapshot else ()
        dataset = attempt(_dataset, specs, whole, known, learned)
        plan = attempt(_from_checkpoint, specs, dataset, snapshot) if snapshot else None
    else:
        refuse_for_labels(specs)
        weights = attempt(specs.source.load, specs.backbone)
        known = weights.input if weights and not training else None
        dataset = attempt(_dataset, specs, whole, known if known and known.range else None)
        raise_all(attempt.errors)
        plan = attempt(_from_specs, specs, dataset, weights, not_exact)
    raise_all(attempt.errors)
    if plan is None:
        raise RuntimeError("a plan that failed without an error")
    check_tta(plan.card.input, specs.tta)
    check_votes(plan)
    check_devices(plan, training)
    if training:
        _check_training(plan)
        check_certificate(plan.specs, plan.dataset)
    free = available()
    fitting = within_memory(plan.specs, plan.card.input.size, free)
    specs = auto.apply(plan.specs, fitting) if fitting else plan.specs
    return replace(plan, specs=specs, decisions=(*plan.decisions, *fitting), memory=free)


def _dataset(
    specs: Specs, whole: bool, known: InputSpec | None, learned: tuple[str, ...] = ()
) -> Dataset | None:
    """The data; where the network's input is ``known``, its pixels have the range of that. Labels
    are those that the network has ``learned``."""
    data = specs.data
    if data is None:
        return None
    if known and hasattr(data, "range"):
        if "data.range" in specs.explicit and data.range != known.range:
            ends = list(known.range) if known.range else "null"
            what = f"contradicts the network, which was trained with {ends}"
            raise ConfigError("data.range", what, "drop it", 85)
        data = replace(data, range=known.range)
    return specs.task.read(data, whole, learned)


def _check_model_source(specs: Specs) -> None:
    """The model comes from exactly one place: fit, a checkpoint, or a source with its own head."""
    keep = isinstance(specs.head, Keep | Remap)
    kind = specs.facts.get("source", {}).get("_target_", "")
    path = specs.checkpoint.path
    if path and "worth" in specs.stages:
        what = "the network in it has seen the training images, which the curve holds out in turn"
        raise CombinationError("checkpoint.path", what, "drop it, or 'worth' from stages", 34)
    if specs.trains and path:
        what = "a run that fits makes its own checkpoint"
        fix = "drop 'fit' from stages, or start from those weights with source=run source.path=..."
        raise ConfigError("checkpoint.path", what, fix, 81)
    alone = {"lr_find", "audit", "worth", "embed"}
    needs = set(specs.stages) - ({*alone, "report"} if alone & set(specs.stages) else set())
    if needs and "fit" not in specs.stages and not path and not keep:
        what = f"{list(specs.stages)} has no model to work on"
        fix = "add fit, or give checkpoint.path=FILE, or head=keep or head=remap with a source"
        raise ConfigError("stages", what, fix, 82)
    if keep and kind.endswith("Scratch") and not path:
        what = f"{type(specs.head).__name__.lower()} needs a source with a head of its own"
        raise ConfigError("head", what, "choose source=... or head=linear", 83)


def _from_specs(specs: Specs, dataset: Dataset | None, weights: Weights, not_exact: str) -> Plan:
    from xfer.models.network import blueprint, check

    given = dataset
    check_source_head(specs, weights)
    dataset, classes, parts = joined(specs, given, weights)
    before, after = blueprint(parts)
    match = check(parts, weights, before)
    spec, size = weights.input or before.input, getattr(specs.backbone, "image_size", None)
    spec = spec.scaled(size) if size else spec
    spec = replace(spec, range=dataset.range if dataset else spec.range)
    on_bad = getattr(specs.data, "on_bad", "error")
    if given and (left := resizable(given, spec, on_bad)) is not given:
        dataset, _, _ = joined(specs, left, weights)
    if dataset and "train" in dataset.splits and specs.stages != ("embed",):
        pretrained = weights.state is not None
        training = _what_trains(specs, parts, after, dataset, pretrained, not_exact)
        fitted = (training.specs, training.parts, after, dataset, training.phases, spec.size)
        planned = plan_calibration(*fitted)
        decisions = (*training.decisions, *planned.decisions())
        taught_by = plan_teacher(training.specs, dataset, classes)
        training = training._replace(decisions=decisions, calibration=planned, teacher=taught_by)
    else:
        training = _Training(specs, parts, None, NO_LAYOUT, (), (), {})
    load, optimizer_state = _load_report(parts, classes, weights, match, before.heads)
    asked = "audit" in specs.stages
    card = Card(
        # With what the builder added by itself, so that the card alone rebuilds the network.
        backbone={**specs.facts["backbone"], **({"args": before.args} if before.args else {})},
        head=weights.head
        if parts.head_from_source and weights.head
        else training.specs.facts["head"],
        classes=classes,
        input=spec,
        source=_source_facts(specs, weights, match, parts),
        experiment=specs.experiment,
        splits=_splits(training, dataset, weights),
        compat=weights.compat,
        adapters=training.parts.adapters,
    )
    return Plan(
        asked=specs,
        dataset=dataset,
        card=card,
        state=match.state,
        optimizer_state=optimizer_state,
        load=load,
        source_head=source_head(weights, match, before, len(classes)) if asked else None,
        **training._asdict(),
    )


class _Training(NamedTuple):
    """What a plan says of what trains; without training images nothing does."""

    specs: Specs
    parts: Parts
    network: Network | None
    layout: Layout
    phases: tuple[Phase, ...]
    decisions: tuple[auto.Decision, ...]
    features: Plain
    calibration: CalibrationPlan = NO_CALIBRATION
    teacher: TeacherPlan | None = None


def _what_trains(
    specs: Specs,
    parts: Parts,
    network: Network,
    dataset: Dataset,
    pretrained: bool,
    not_exact: str,
) -> _Training:
    """What trains when, with its adapters, and every automatic choice. ``network`` is that after
    the head swap."""
    design = layout(network.module, network.heads)
    if added := specs.freeze.adapters(design):
        adapters.put(network.module, added)
        design = design.adapted(added["weights"], [*dict(network.module.named_parameters())])
        parts = replace(parts, adapters=added)
    if isinstance(specs.head, Knn | Prototype):
        return _what_is_filled(specs, parts, dataset)
    decisions = auto.decide(specs, design, dataset.splits["train"], pretrained, not_exact)
    specs = auto.apply(specs, decisions)
    if watches := auto.watching(specs, *watched(specs)):
        decisions, specs = [*decisions, *watches], auto.apply(specs, watches)
    phases = specs.freeze.phases(design, specs.trainer.epochs)
    if specs.trainer.head_start == "solved":
        phases = specs.freeze.after_solved(phases)
    features = _expected_features(specs, dataset, phases, network)
    return _Training(specs, parts, network, design, phases, tuple(decisions), features)


def _what_is_filled(specs: Specs, parts: Parts, dataset: Dataset) -> _Training:
    """The same of a head that holds training features: nothing trains."""
    from xfer.models.network import blueprint

    train = dataset.splits["train"]
    held = {"images": len(train)} if isinstance(specs.head, Knn) else {}
    head = replace(specs.head, multilabel=specs.task.several, **held)  # type: ignore[type-var]
    specs, parts = replace(specs, head=head), replace(parts, head=head)
    network = blueprint(parts)[1]
    design = layout(network.module, network.heads)
    counts = specs.task.counts(train.labels, len(dataset.classes))
    decisions, phase = auto.decide_filled(specs, design, len(train), counts)
    specs = auto.apply(specs, decisions)
    features = _expected_features(specs, dataset, (phase,), network)
    # Nothing is optimised: that there are no steps is in the plan's line of steps.
    chosen = tuple(decision for decision in decisions if decision.key != "optim")
    return _Training(specs, parts, network, design, (phase,), chosen, features)


def _load_report(
    parts: Parts,
    classes: tuple[str, ...],
    weights: Weights,
    match: Match,
    heads: tuple[str, ...],
) -> tuple[Plain, OptimizerBuffers | None]:
    """What ``load_report.json`` holds, and the optimizer state to continue with; ``heads`` are the
    classifiers before the head swap."""
    from xfer.weights.content import account, mark_continued
    from xfer.weights.optimizer_state import continued

    load = account(weights, match, heads) if weights.state is not None else {}
    if parts.rows and weights.classes:
        names = weights.classes
        load["head"] = {
            name: [names[i] for i in members]
            for name, members in zip(classes, parts.rows, strict=True)
        }
    if weights.optimizer is None:
        return load, None
    optimizer_state, dropped = continued(
        weights.optimizer, weights, match, () if parts.head_from_source else heads
    )
    mark_continued(load, optimizer_state)
    load["optimizer"] = {
        "algorithm": optimizer_state.algorithm,
        "continued": len(optimizer_state.buffers),
        "dropped": dropped,
    }
    return load, optimizer_state


def _splits(training: _Training, dataset: Dataset | None, weights: Weights) -> Mapping[str, str]:
    """The sha256 of the images that the network is trained and chosen on, by split: of weights
    that stay as they came, what their file names."""
    specs, phases, splits = training.specs, training.phases, weights.splits
    if "fit" in specs.stages:
        splits = {name: s.sha256 for name, s in dataset.splits.items()} if dataset else {}
    if not phases:
        return splits
    # The validation images choose one of several epochs, when a phase begins, or a temperature.
    policy, by_steps = specs.checkpoint, not specs.optim.solves
    several = policy.start_epoch + policy.interval <= specs.trainer.epochs
    waits = any(phase.patience is not None for phase in phases)
    # The final model after a cross-validation is trained as long as the folds say.
    folded = dataset is not None and dataset.splits["train"].folds is not None
    if training.calibration.fitted_on == "val" or (by_steps and not folded and specs.task.chooses):
        return splits
    if by_steps and not folded and policy.monitor.startswith("val_") and (several or waits):
        return splits
    return {name: sha256 for name, sha256 in splits.items() if name != "val"}


def _source_facts(specs: Specs, weights: Weights, match: Match, parts: Parts) -> Plain:
    """What ``result.json`` says of the source, and what fetches and places it again."""
    return {
        "spec": {**specs.facts["source"], **weights.pinned},
        "kind": weights.kind,
        "origin": weights.origin,
        "sha256": weights.sha256,
        "coverage": match.coverage if weights.state is not None else None,
        "loaded": len(match.of("loaded", "renamed", "adapted")),
        "dropped": len(match.of("dropped head", "left out")),
        "missing": len(match.missing),
        "unexpected": 0,
        "kept": parts.head_from_source,
        "classes": parts.source_classes,
        "rows": [list(row) for row in parts.rows],
    }


def _expected_features(
    specs: Specs, dataset: Dataset, phases: Sequence[Phase], network: Network
) -> Plain:
    """What features at the heads would take, where they are asked for and only heads train at
    first; what an inner cut would take is known when the fit has proved one."""
    from xfer.models.network import width_at_heads

    options = specs.features
    if options.use == "never":
        return {}
    if not all(row.head or row.frozen for row in phases[0].rows):
        return {"cut": "the last frozen input that the fit can prove"}
    width = width_at_heads(network)
    if width is None:
        return {"cut": "the input of the head"}
    count = options.views_of(specs.augment.random, specs.trainer.epochs) or 1
    images = count * len(dataset.splits["train"]) + len(dataset.splits.get("val", ()))
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
        typed = sorted(k for k in specs.explicit if k == group or k.startswith(f"{group}."))
        if typed and not _agrees(specs.facts[group], facts):
            kind = str(facts["_target_"]).rpartition(".")[2]
            name = f" '{facts['name']}'" if "name" in facts else ""
            what = f"contradicts {path}, which holds {kind}{name}"
            raise ConfigError(typed[0], what, "drop it", 85)
    if dataset:
        dataset = resizable(dataset, card.input, getattr(specs.data, "on_bad", "error"))
        if str(card.head["_target_"]).endswith(".Keep"):
            dataset = adopt(dataset, Naming(card.classes), card.head.get("aliases") or {})
        if dataset.classes != card.classes:
            raise class_mismatch(dataset.classes, card.classes, str(path))
    with of_a_card(best_checkpoint(path)):
        parts, _ = pieces(card, specs.make)
    return Plan(specs, specs, dataset, card, parts)


def _agrees(asked: Plain, held: Plain) -> bool:
    """Whether a checkpoint holds what is asked for; it may hold more arguments."""
    return all(
        _agrees(value, held.get(key) or {}) if isinstance(value, dict) else held.get(key) == value
        for key, value in asked.items()
    )


def _check_training(plan: Plan) -> None:
    from xfer.evaluation.metrics import names
    from xfer.models.network import empty

    specs, policy, epochs = plan.specs, plan.specs.checkpoint, plan.specs.trainer.epochs
    specs.loss.weights(plan.train_counts)
    classes = len(plan.card.classes)
    specs.task.guessing(specs.loss, plan.split("train").labels, classes)
    known = names(classes, specs.task.rows(specs.metrics))
    if policy.monitor not in known:
        what, fix = f"no metric is called '{policy.monitor}'", closest(policy.monitor, known)
        raise ConfigError("checkpoint.monitor", what, fix, 86)
    # A BatchNorm would have one value to train on where its map is one pixel; larger maps have
    # more, and an odd image at the end of an epoch is never alone.
    if specs.data and specs.data.batch_size == 1 and plan.layout.batch_norms:
        rows, size = [phase.rows for phase in plan.phases], plan.card.input.size
        if name := lone_norm(empty(plan.parts), rows, specs.freeze.batch_norm, size):
            what = f"is 1, and the BatchNorm {name} cannot train on one value a channel"
            raise ConfigError("data.batch_size", what, "type data.batch_size=2", 68)
    if policy.start_epoch > epochs:
        what = f"{policy.start_epoch} is after the last epoch {epochs}"
        raise ConfigError("checkpoint.start_epoch", what, "lower it", 87)
