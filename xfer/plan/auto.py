"""What a plan decides where the configuration says ``auto``: each value, and why.

A value that was given always wins. One that only steps of gradient descent heed (a rate, epochs,
an average of weights) asks for those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from xfer.core.errors import CombinationError, ConfigError, raise_all
from xfer.core.protocols import HasTeacher, Undecided
from xfer.data.decode_cache import decoded_limit
from xfer.data.folds import chooses, none_held_out
from xfer.freeze import Layout, Phase
from xfer.models.head import Dropout, Keep, Linear, Pooled, Remap

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.types import Samples

FEW = "has one image, or one group, to train on, and none is left to choose a penalty by"
_ANY_EPOCHS = 1_000_000
_SEEN = {"head": 20_000, "backbone": 2_000, "solved": 1_200}
"""Training images that a run sees in all, by what trains and from where."""
_EPOCHS = {"head": (10, 50), "backbone": (5, 20), "solved": (4, 12)}
_OF_STEPS = (
    *("strategy", "accumulate", "clip_norm", "ema_decay", "patience", "compile", "callbacks"),
)
_OF_EPOCHS = ("monitor", "start_epoch", "interval", "every_n_epochs", "every_n_steps")
MIRRORED_WORSE = 0.6, 0.01
"""The share of held-out images that may be answered worse mirrored, and the level at which more
leave flips out. Half are by chance, and some more where images come in pairs that are alike."""
_BATCH = 32  # images a step that the rates below are for
_RATES = {
    "head": (1e-3, "a head on standardised features"),
    "tuned": (1e-3, "a head, slower below it"),
    "whole": (1e-4, "all of a pretrained network at one rate"),
    "new": (1e-3, "a network without pretrained weights"),
}


@dataclass(frozen=True)
class Decision:
    """One value that was left open: the key that fixes it, what was decided, and why."""

    key: str
    value: Any
    why: str


def decide(
    specs: Specs, layout: Layout, train: Samples, pretrained: bool, not_exact: str = ""
) -> list[Decision]:
    """Every choice that ``specs`` leave open, for a network of ``layout`` and the images ``train``.
    ``not_exact`` is why the head cannot be solved after all, once a fit has tried.

    Raises ConfigError for ``optim=exact`` where there is something that it cannot solve.
    """
    images = len(train)
    phases = specs.freeze.phases(layout, _ANY_EPOCHS)
    obstacles = _obstacles(specs, layout, phases)
    if not_exact:
        obstacles = [("the network", not_exact, "optim=adamw")]
    undecided = isinstance(specs.optim, Undecided)
    if specs.optim.solves:
        blind = [none_held_out()] if _blind(specs, train) else []
        raise_all([*(_refusal(*obstacle) for obstacle in obstacles), *blind])
    elif not undecided:
        return _steps(specs, layout, phases, images, pretrained)
    elif not obstacles and _blind(specs, train):
        obstacles = [("each class", FEW, "optim=adamw")]
    if undecided and obstacles:
        key, why, _ = obstacles[0]
        steps = _steps(specs, layout, phases, images, pretrained)
        return [Decision("optim", "adamw", f"{key} {why}"), *steps]
    decisions = []
    if undecided:
        why = "a linear head behind frozen layers is a convex problem: solved, no rate needed"
        decisions.append(Decision("optim", "exact", why))
    decisions += _precision(specs, once=True)
    if isinstance(specs.augment, Undecided):
        why = "one view an image, as it is evaluated; augment=standard solves on random views"
        decisions.append(Decision("augment", "none", why))
    return decisions


def _blind(specs: Specs, train: Samples) -> bool:
    """Whether a head that is solved would find no image held out to choose its penalty by."""
    optim = specs.optim
    exact: Any = optim.becomes("exact", None) if isinstance(optim, Undecided) else optim
    return not (exact.l2 != "auto" or specs.task.several or chooses(train, exact.folds))


def decide_filled(
    specs: Specs, layout: Layout, images: int, counts: Sequence[int]
) -> tuple[list[Decision], Phase]:
    """Every choice that is left open for a head that is filled, not trained, and the one phase, in
    which nothing trains. ``counts`` are, of the training ``images``, those of each class.

    Raises CombinationError for whatever asks to train, or weighs images.
    """
    raise_all(
        [_refusal_of_filled(specs, *row) for row in _against_filling(specs, layout, images, counts)]
    )
    why = f"{_name_of(specs)} holds what the frozen layers make of the training images"
    decisions = [Decision("optim", "exact", why)] if isinstance(specs.optim, Undecided) else []
    decisions += _precision(specs, once=True)
    if isinstance(specs.augment, Undecided):
        decisions.append(Decision("augment", "none", "one view an image, as it is evaluated"))
    return decisions, Phase(layout.rows(0.0, [0.0] * len(layout.stages)), 0, None, "filled")


def _against_filling(
    specs: Specs, layout: Layout, images: int, counts: Sequence[int]
) -> list[tuple[str, str, str]]:
    """Key, why and remedy of everything that a head without training cannot heed."""
    # A policy is asked with a head that could train; one that trains no more is the only one.
    probe = replace(layout, names=(*layout.names, f"{layout.heads[0]}.filled"))
    phases = specs.freeze.phases(probe, _ANY_EPOCHS)
    rows = [row for phase in phases for row in phase.rows]
    more = len(phases) > 1 or any(not (row.head or row.frozen) for row in rows)
    steps = not (specs.optim.solves or isinstance(specs.optim, Undecided))
    smooths = bool(getattr(specs.loss, "label_smoothing", 0))
    weighs = smooths or not _solvable(specs) or specs.loss.weights(counts) is not None
    taught = isinstance(specs.loss, HasTeacher)
    balanced = specs.data is not None and specs.data.sampler == "balanced"
    penalty = "optim.l2" in specs.explicit
    most, k = images - 1, getattr(specs.head, "k", 1)
    reasons = (
        (more, "freeze", "trains more than the head", "freeze=head_only"),
        (bool(layout.adapters), "freeze", "trains adapters", "freeze=head_only"),
        (
            specs.freeze.batch_norm != "eval",
            "freeze.batch_norm",
            "moves statistics",
            "freeze.batch_norm=eval",
        ),
        (steps, "optim", "asks for steps", "optim=auto"),
        (penalty, "optim.l2", "is of a head that is solved", "drop optim.l2"),
        (weighs, "loss", "weighs answers", "loss=cross_entropy"),
        (taught, "loss", "has a teacher", "loss=cross_entropy without loss.teacher"),
        (balanced, "data.sampler", "weighs images", "data.sampler=shuffled"),
        (specs.augment.random, "augment", "asks for random views", "augment=none"),
        (specs.features.use == "never", "features", "are not cached", "features=auto"),
        (
            k > most,
            "head.k",
            f"is {k} and there are {most} others of a training image",
            f"head.k={most}",
        ),
        *(() if steps else _needs_steps(specs)),
    )
    return [(key, why, fix) for wrong, key, why, fix in reasons if wrong]


def _refusal_of_filled(specs: Specs, key: str, why: str, fix: str) -> CombinationError:
    typed = fix if fix.startswith(("drop", "stages")) else f"type {fix}"
    what = f"{_name_of(specs)} trains nothing, and {key} {why}"
    return CombinationError("head", what, f"{typed}, or head=linear", 32)


def _name_of(specs: Specs) -> str:
    return type(specs.head).__name__.lower()


def apply(specs: Specs, decisions: Iterable[Decision]) -> Specs:
    """``specs`` with every decision in its place."""
    for decision in decisions:
        if decision.key == "calibration":  # which may still come to be a vector
            continue
        group, _, key = decision.key.partition(".")
        spec, epochs = getattr(specs, group), specs.trainer.max_epochs
        if group == "export":  # whose keys are those of the gate
            made = replace(spec, gate=replace(spec.gate, **{key: decision.value}))
        elif key:
            made = replace(spec, **{key: decision.value})
        else:
            made = spec.becomes(decision.value, None if epochs == "auto" else epochs)
        specs = replace(specs, **{group: made})
    if not specs.optim.solves:
        return specs
    # Without steps there are no epochs, no rate over time and nothing to begin from.
    trainer = replace(specs.trainer, max_epochs=1, head_start="zero", ema_decay=0.0)
    schedule = specs.schedule
    if isinstance(schedule, Undecided):
        schedule = schedule.becomes("constant", None)
    return replace(specs, trainer=trainer, schedule=schedule)


def steps_per_epoch(specs: Specs, images: int) -> int:
    """Optimizer steps in which all devices together see that many training ``images``."""
    from xfer.data.sampler import batches

    if specs.data is None:
        return 0
    count = batches(images, specs.data.batch_size, specs.begun_ranks)
    return math.ceil(count / specs.trainer.accumulate)


def _steps(
    specs: Specs, layout: Layout, phases: Sequence[Phase], images: int, pretrained: bool
) -> list[Decision]:
    """Rate, epochs, schedule and precision of training step by step."""
    trains_more = any(not (row.head or row.frozen) for phase in phases for row in phase.rows)
    decisions = _head_start(specs, layout, pretrained and trains_more)
    starts = [decision.value for decision in decisions] or [specs.trainer.head_start]
    solved = starts == ["solved"]
    epochs = specs.trainer.max_epochs
    if specs.optim.lr == "auto":
        decisions.append(Decision("optim.lr", *_rate(specs, phases, pretrained)))
    if epochs == "auto":
        part = "solved" if solved else "backbone" if trains_more else "head"
        epochs, why = _epochs(part, phases, images)
        decisions.append(Decision("trainer.max_epochs", epochs, why))
    if isinstance(specs.schedule, Undecided):
        why = "a tenth of the run to rise, then half a cosine to 0"
        decisions.append(Decision("schedule", "cosine", why))
    if isinstance(specs.augment, Undecided):
        kind, why = "standard", "random crops and flips while training"
        share, level = MIRRORED_WORSE
        asks = f"; no flips where over {100 * share:g} % fare worse mirrored (p < {level})"
        if solved:
            kind, why = "light", why + asks * (not specs.task.several)
        decisions.append(Decision("augment", kind, why))
    if specs.data and specs.data.decoded_gb == "auto":
        decisions.append(Decision("data.decoded_gb", *decoded_limit("auto")))
    if specs.trainer.ema_decay == "auto":
        decisions.append(_average(specs, epochs, images, solved))
    once = not trains_more and specs.features.use != "never"
    return [*decisions, *_precision(specs, once)]


def watching(specs: Specs, monitor: str, end: str) -> list[Decision]:
    """That the best epoch is looked for by ``monitor``, where that is not what is configured, and
    at which ``end`` of it."""
    if specs.optim.solves:
        return []
    decisions = []
    if monitor != specs.checkpoint.monitor:
        why = "several labels an image: every one of them being right is rare, and moves in jumps"
        decisions.append(Decision("checkpoint.monitor", monitor, why))
    if specs.checkpoint.mode == "auto":
        why = f"the best {monitor} is its {end}imum"
        decisions.append(Decision("checkpoint.mode", end, why))
    return decisions


def _epochs(part: str, phases: Sequence[Phase], images: int) -> tuple[int, str]:
    (low, high), seen = _EPOCHS[part], _SEEN[part]
    epochs = max(low, min(high, math.ceil(seen / max(1, images))))
    # A phase that begins late is given as long again; one that begins half-way has no start yet.
    starts = (phase.start or 0 for phase in phases)
    late = max((start for start in starts if start < _ANY_EPOCHS // 4), default=0)
    return max(epochs, 2 * late), f"{seen:,} images seen in all, {low} to {high} epochs"


def _head_start(specs: Specs, layout: Layout, tunes: bool) -> list[Decision]:
    """Solved, where more than the head trains and all of it is pretrained (``tunes``). Raises
    ConfigError where that was asked for and is impossible."""
    start, count = specs.trainer.head_start, len(layout.heads)
    reasons = (
        (not isinstance(specs.head, Linear | Pooled | Dropout), "the head is not linear"),
        (count != 1, f"the network has {count} classifiers"),
        (specs.features.use == "never", "features are not cached"),
        (specs.begun_ranks != 1, "there are several devices"),
        (specs.task.several and not _solvable(specs), "the loss is not cross-entropy"),
    )
    obstacle = next((why for wrong, why in reasons if wrong), "")
    if start == "solved" and obstacle:
        fix = "type trainer.head_start=zero"
        raise ConfigError("trainer.head_start", f"cannot be solved: {obstacle}", fix, 62)
    if start != "auto":
        return []
    if tunes and isinstance(specs.optim, Undecided) and not obstacle:
        why = "fine-tuning begins at the best head on the frozen features"
        return [Decision("trainer.head_start", "solved", why)]
    why = "all classes equally likely at first"
    if isinstance(specs.head, Keep):
        why = "not solved: the head begins as the source's"
    elif isinstance(specs.head, Remap):
        why = "not solved: the head begins from the source's rows, a class without one at zero"
    return [Decision("trainer.head_start", "zero", why)]


def _average(specs: Specs, epochs: int, images: int, good: bool) -> Decision:
    """An average over the whole run where its start is ``good`` (Wortsman et al., 2022)."""
    if not good:
        return Decision("trainer.ema_decay", 0.0, "only the last weights count")
    steps = epochs * steps_per_epoch(specs, images)
    why = f"weights are averaged over all {steps} steps, with those of the solved start"
    return Decision("trainer.ema_decay", round(1 - 1 / max(2, steps), 5), why)


def _obstacles(specs: Specs, layout: Layout, phases: Sequence[Phase]) -> list[tuple[str, str, str]]:
    """Key, why and remedy of everything that keeps the head from being solved exactly."""
    rows, classifiers = [row for phase in phases for row in phase.rows], len(layout.heads)
    linear, features = isinstance(specs.head, Linear | Pooled), specs.features
    trains_more = any(not (row.head or row.frozen) for row in rows)
    rated = any(row.head and row.lr != 1 for row in rows)
    moves, cached = specs.freeze.batch_norm != "eval", features.use != "never"
    cross_entropy = _solvable(specs)
    endless = getattr(features, "views", None) == "max" and specs.augment.random
    mixes = specs.augment.mix(2) is not None
    reasons = (
        (not linear, "head", _not_linear(specs), "head=linear"),
        (classifiers != 1, "backbone", f"has {classifiers} classifiers", "optim=adamw"),
        (len(phases) > 1, "freeze", f"has {len(phases)} phases", "freeze=head_only"),
        (bool(layout.adapters), "freeze", "trains adapters", "freeze=head_only"),
        (trains_more, "freeze", "trains more than the head", "freeze=head_only"),
        (rated, "freeze", "gives the head a rate of its own", "freeze=head_only"),
        (moves, "freeze.batch_norm", "moves statistics", "freeze.batch_norm=eval"),
        (not cross_entropy, "loss", "is not cross-entropy", "loss=cross_entropy"),
        (not cached, "features", "are not cached", "features=auto"),
        (endless, "features.views", "asks for a view an epoch", "features.views=4"),
        (mixes, "augment", "mixes images", "augment=standard"),
        *_needs_steps(specs),
    )
    return [(key, why, fix) for wrong, key, why, fix in reasons if wrong]


def _not_linear(specs: Specs) -> str:
    if isinstance(specs.head, Keep | Remap):
        return "begins from the source's rows"
    return "draws random numbers" if isinstance(specs.head, Dropout) else "is not linear"


def _solvable(specs: Specs) -> bool:
    return bool(getattr(specs.loss, "solvable", False))


def _needs_steps(specs: Specs) -> list[tuple[bool, str, str, str]]:
    """What was given that only training step by step heeds."""
    optim, by_step = specs.optim, "asks for training step by step"
    timed = not isinstance(specs.schedule, Undecided)
    epochs = specs.trainer.max_epochs != "auto"
    asked = [
        ("lr_find" in specs.stages, "stages", "look for a rate", "stages without lr_find"),
        (optim.lr != "auto", "optim.lr", "asks for steps at that rate", "optim.lr=auto"),
        (epochs, "trainer.max_epochs", "asks for epochs", "trainer.max_epochs=auto"),
        (timed, "schedule", "asks for steps", "schedule=auto"),
    ]
    if optim.solves or isinstance(optim, Undecided):
        # Of the two the one decays by default, where it comes to be AdamW.
        usual = default_of(optim, "weight_decay")
        fix = f"optim.weight_decay={usual:g}"
        asked.append((optim.weight_decay != usual, "optim.weight_decay", "is of steps", fix))
    for group, keys in (("trainer", _OF_STEPS), ("checkpoint", _OF_EPOCHS)):
        spec = getattr(specs, group)
        for key in keys:
            usual, name = default_of(spec, key), f"{group}.{key}"
            given = getattr(spec, key) not in (usual, 0)
            typed = json.dumps(usual).strip('"')
            asked.append((given, name, by_step, f"{name}={typed}"))
    return asked


def default_of(spec: Any, key: str) -> Any:
    """The value that a key of a spec has where nobody gives one."""
    return next(field.default for field in fields(spec) if field.name == key)


def _refusal(key: str, why: str, fix: str) -> ConfigError:
    what = f"exact solves a linear head on cached features, and {key} {why}"
    other = "" if fix.startswith("optim=") else ", or optim=adamw"
    return ConfigError("optim", what, f"type {fix}{other}", 62)


def _rate(specs: Specs, phases: Sequence[Phase], pretrained: bool) -> tuple[float, str]:
    """The base learning rate, which a multiple of 1 trains at, and the rule that gives it."""
    rates = [row.lr for phase in phases for row in phase.rows if not row.head]
    kind = "head"
    if any(rates):
        kind = ("whole" if max(rates) > 0.5 else "tuned") if pretrained else "new"
    rate, what = _RATES[kind]
    text = f"{rate:g} for {what} with an adaptive optimizer"
    if (times := specs.optim.rate_scale) != 1:
        optim = type(specs.optim).__name__.upper()
        rate, text = rate * times, f"{text}, {times:g} times that for {optim}"
    data, trainer = specs.data, specs.trainer
    batch = (data.batch_size if data else _BATCH) * trainer.accumulate * specs.begun_ranks
    scaled = float(f"{rate * math.sqrt(batch / _BATCH):.2g}")
    return scaled, f"{text}; times the root of {batch}/{_BATCH}, the images of a step"


def _precision(specs: Specs, once: bool) -> list[Decision]:
    """bfloat16 where the hardware computes with it and it pays."""
    if specs.trainer.precision != "auto":
        return []
    from xfer.core.bf16 import verdict

    use, why = verdict(specs.trainer.accelerator, once)
    return [Decision("trainer.precision", "bf16-mixed" if use else "32-true", why)]
