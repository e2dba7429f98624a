"""What a plan decides where the configuration says ``auto``: each choice, and why.

A value that was given always wins. One that only steps of gradient descent heed (a rate, epochs,
an average of weights) asks for those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from xfer.core.errors import ConfigError, raise_all
from xfer.core.protocols import Undecided
from xfer.core.types import Plain
from xfer.data.decode_cache import decoded_limit
from xfer.freeze import Layout, Phase
from xfer.models.head import Dropout, Linear, Pooled

if TYPE_CHECKING:
    from xfer.config.specs import Specs

_ANY_EPOCHS = 1_000_000
_SEEN = {"head": 20_000, "backbone": 2_000, "solved": 1_200}
"""Training images that a run sees in all, by what trains and from where."""
_EPOCHS = {"head": (10, 50), "backbone": (5, 20), "solved": (4, 12)}
_OF_STEPS = ("devices", "accumulate", "clip_norm", "ema_decay", "patience", "compile")
_OF_EPOCHS = ("monitor", "start_epoch", "interval", "every_n_epochs", "every_n_steps")
_BATCH = 32  # images a step that the rates below are for
_RATES = {"head": 1e-3, "tuned": 1e-3, "whole": 1e-4, "new": 1e-3}


@dataclass(frozen=True)
class Choice:
    """One automatic choice: the key that fixes it, what was chosen, and why."""

    key: str
    value: Any
    why: str


def decide(
    specs: Specs, layout: Layout, images: int, pretrained: bool, not_exact: str = ""
) -> list[Choice]:
    """Every choice that ``specs`` leave open, for a network of ``layout`` and ``images`` training
    images. ``not_exact`` is why the head cannot be solved after all, once a fit has tried.

    Raises ConfigError for ``optim=exact`` where there is something that it cannot solve.
    """
    phases = specs.freeze.phases(layout, _ANY_EPOCHS)
    obstacles = _obstacles(specs, layout, phases)
    if not_exact:
        obstacles = [("the network", not_exact, "optim=adamw")]
    if specs.optim.solves:
        raise_all([_refusal(*obstacle) for obstacle in obstacles])
        return [*_precision(specs, once=True), *_no_steps(specs)]
    if isinstance(specs.optim, Undecided) and not obstacles:
        why = "a linear head behind frozen layers is a convex problem: solved, no rate needed"
        found = [Choice("optim", "exact", why), *_precision(specs, once=True)]
        return [*found, *_no_steps(specs)]
    found = []
    if isinstance(specs.optim, Undecided):
        key, why, _ = obstacles[0]
        found.append(Choice("optim", "adamw", f"{key} {why}"))
    return [*found, *_steps(specs, layout, phases, images, pretrained)]


def apply(specs: Specs, choices: Iterable[Choice]) -> Specs:
    """``specs`` with every choice in its place."""
    made: Plain = {}
    for choice in choices:
        made |= _applied(replace(specs, **made), choice)
    specs = replace(specs, **made)
    if specs.optim.solves:
        # Without steps there are no epochs, no rate over time and nothing to begin from.
        trainer = replace(specs.trainer, max_epochs=1, head_start="zero", ema_decay=0.0)
        made["trainer"] = trainer
        if isinstance(specs.schedule, Undecided):
            made["schedule"] = specs.schedule.becomes("constant", None)
    facts = {**specs.facts}
    for group in made:
        kind = type(made[group])
        facts[group] = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(made[group])}
    return replace(specs, facts=facts, **made)


def _applied(specs: Specs, choice: Choice) -> Plain:
    group, _, key = choice.key.partition(".")
    if key:
        return {group: replace(getattr(specs, group), **{key: choice.value})}
    epochs = specs.trainer.max_epochs
    made = getattr(specs, group).becomes(choice.value, None if epochs == "auto" else epochs)
    return {group: made}


def _no_steps(specs: Specs) -> list[Choice]:
    """What is left to decide where nothing is trained step by step."""
    if not isinstance(specs.augment, Undecided):
        return []
    why = "one view an image, as it is evaluated; augment=standard solves on random views"
    return [Choice("augment", "none", why)]


def _steps(
    specs: Specs, layout: Layout, phases: Sequence[Phase], images: int, pretrained: bool
) -> list[Choice]:
    """Rate, epochs, schedule and precision of training step by step."""
    tunes = _tunes(phases)
    start = specs.trainer.head_start
    if start == "solved" and (why := _not_solved(specs, layout)):
        fix = "type trainer.head_start=zero"
        raise ConfigError("trainer.head_start", f"cannot be solved: {why}", fix, 62)
    found = [_head_start(specs, layout, pretrained and tunes)] if start == "auto" else []
    solved = start == "solved" or any(choice.value == "solved" for choice in found)
    own, epochs = specs.optim, specs.trainer.max_epochs
    if own.lr == "auto":
        found.append(Choice("optim.lr", *_rate(specs, phases, pretrained)))
    if epochs == "auto":
        part = "solved" if solved else "backbone" if tunes else "head"
        found.append(Choice("trainer.max_epochs", *_epochs(part, phases, images)))
        epochs = int(found[-1].value)
    if isinstance(specs.schedule, Undecided):
        why = "a tenth of the run to rise, then half a cosine to 0"
        found.append(Choice("schedule", "cosine", why))
    if isinstance(specs.augment, Undecided):
        kind = "light" if solved else "standard"
        found.append(Choice("augment", kind, "random crops and flips while training"))
    if specs.data and specs.data.decoded_gb == "auto":
        found.append(Choice("data.decoded_gb", *decoded_limit("auto")))
    if specs.trainer.ema_decay == "auto":
        found.append(_average(specs, epochs, images, solved))
    once = not tunes and specs.features.use != "never"
    return [*found, *_precision(specs, once)]


def _epochs(part: str, phases: Sequence[Phase], images: int) -> tuple[int, str]:
    (low, high), seen = _EPOCHS[part], _SEEN[part]
    epochs = max(low, min(high, math.ceil(seen / max(1, images))))
    # A phase that begins late is given as long again; one that begins half-way has no start yet.
    starts = (phase.start or 0 for phase in phases)
    late = max((start for start in starts if start < _ANY_EPOCHS // 4), default=0)
    return max(epochs, 2 * late), f"{seen:,} images seen in all, {low} to {high} epochs"


def _head_start(specs: Specs, layout: Layout, tunes: bool) -> Choice:
    """Solved, where what is behind the head is pretrained and ``tunes`` as well."""
    if tunes and isinstance(specs.optim, Undecided) and not _not_solved(specs, layout):
        why = "fine-tuning begins at the best head on the frozen features"
        return Choice("trainer.head_start", "solved", why)
    return Choice("trainer.head_start", "zero", "all classes equally likely at first")


def _not_solved(specs: Specs, layout: Layout) -> str:
    """Why a head cannot begin solved; nothing where it can."""
    reasons = (
        (not isinstance(specs.head, Linear | Pooled | Dropout), "the head is not linear"),
        (len(layout.heads) != 1, f"the network has {len(layout.heads)} classifiers"),
        (specs.features.use == "never", "features are not kept"),
        (specs.trainer.devices != 1, "there are several devices"),
    )
    return next((why for wrong, why in reasons if wrong), "")


def _average(specs: Specs, epochs: int, images: int, good: bool) -> Choice:
    """An average over the whole run where its start is ``good`` (Wortsman et al., 2022)."""
    if not good:
        return Choice("trainer.ema_decay", 0.0, "only the last weights count")
    size = specs.data.batch_size * specs.trainer.accumulate if specs.data else _BATCH
    steps = epochs * math.ceil(images / size)
    why = f"weights are averaged over all {steps} steps, with those of the solved start"
    return Choice("trainer.ema_decay", round(1 - 1 / max(2, steps), 5), why)


def _obstacles(specs: Specs, layout: Layout, phases: Sequence[Phase]) -> list[tuple[str, str, str]]:
    """Key, why and remedy of everything that keeps the head from being solved exactly."""
    head, rows = specs.head, [row for phase in phases for row in phase.rows]
    trains = any(not (row.head or row.frozen) for row in rows)
    rated = any(row.head and row.lr != 1 for row in rows)
    mixes, linear = specs.augment.mix(2) is not None, isinstance(head, Linear | Pooled)
    own = specs.features
    kept = own.use != "never"
    moves, classifiers = specs.freeze.batch_norm != "eval", len(layout.heads)
    crossed = getattr(specs.loss, "solvable", False)
    endless = getattr(own, "views", None) == "max" and specs.augment.random
    found = (
        (not linear, "head", "is not linear, or draws random numbers", "head=linear"),
        (classifiers != 1, "backbone", f"has {classifiers} classifiers", "optim=adamw"),
        (len(phases) > 1, "freeze", f"has {len(phases)} phases", "freeze=head_only"),
        (bool(layout.adapters), "freeze", "trains adapters", "freeze=head_only"),
        (trains, "freeze", "trains more than the head", "freeze=head_only"),
        (rated, "freeze", "gives the head a rate of its own", "freeze=head_only"),
        (moves, "freeze.batch_norm", "moves statistics", "freeze.batch_norm=eval"),
        (not crossed, "loss", "is not cross-entropy", "loss=cross_entropy"),
        (not kept, "features", "are not kept", "features=auto"),
        (endless, "features.views", "asks for a view an epoch", "features.views=4"),
        (mixes, "augment", "mixes images", "augment=standard"),
        *_asked(specs),
    )
    return [(key, why, fix) for wrong, key, why, fix in found if wrong]


def _asked(specs: Specs) -> list[tuple[bool, str, str, str]]:
    """What was given that only training step by step heeds."""
    trainer, kept, own = specs.trainer, specs.checkpoint, specs.optim
    epochs, timed = trainer.max_epochs != "auto", not isinstance(specs.schedule, Undecided)
    found = [
        ("lr_find" in specs.stages, "stages", "look for a rate", "stages without lr_find"),
        (own.lr != "auto", "optim.lr", "asks for steps at that rate", "optim.lr=auto"),
        (epochs, "trainer.max_epochs", "asks for epochs", "trainer.max_epochs=auto"),
        (timed, "schedule", "asks for steps", "schedule=auto"),
    ]
    if own.solves or isinstance(own, Undecided):
        # Of the two the one decays by default, where it comes to be AdamW.
        usually = _default(own, "weight_decay")
        decays = own.weight_decay != usually
        fix = f"optim.weight_decay={usually:g}"
        found.append((decays, "optim.weight_decay", "is of steps", fix))
    usual: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("trainer", trainer, _OF_STEPS),
        ("checkpoint", kept, _OF_EPOCHS),
    )
    for group, spec, keys in usual:
        for key in keys:
            value, name = _default(spec, key), f"{group}.{key}"
            given = getattr(spec, key) not in (value, 0)
            fix = f"{name}={str(value).lower()}"
            found.append((given, name, "asks for training step by step", fix))
    return found


def _default(spec: Any, key: str) -> Any:
    return next(field.default for field in fields(spec) if field.name == key)


def _refusal(key: str, why: str, fix: str) -> ConfigError:
    what = f"exact solves a linear head on kept features, and {key} {why}"
    other = "" if fix.startswith("optim=") else ", or optim=adamw"
    return ConfigError("optim", what, f"type {fix}{other}", 62)


def _tunes(phases: Sequence[Phase]) -> bool:
    """Whether anything behind which images must pass again trains: more than the head."""
    return any(not (row.head or row.frozen) for phase in phases for row in phase.rows)


def _rate(specs: Specs, phases: Sequence[Phase], pretrained: bool) -> tuple[float, str]:
    """The base learning rate, which a multiple of 1 trains at, and the rule that gives it."""
    rates = [row.lr for phase in phases for row in phase.rows if not row.head]
    kind = "head"
    if any(rates):
        kind = ("whole" if max(rates) > 0.5 else "tuned") if pretrained else "new"
    rate, what = (
        _RATES[kind],
        {
            "head": "a head on standardised features",
            "tuned": "a head, slower behind it",
            "whole": "all of a pretrained network at one rate",
            "new": "a network without pretrained weights",
        }[kind],
    )
    told = f"{rate:g} for {what} by an adaptive optimizer"
    if (times := specs.optim.rate_scale) != 1:
        rate, told = rate * times, f"{told}, {times:g} times that for {type(specs.optim).__name__}"
    data, trainer = specs.data, specs.trainer
    batch = (data.batch_size if data else _BATCH) * trainer.accumulate * trainer.devices
    scaled = float(f"{rate * math.sqrt(batch / _BATCH):.2g}")
    return scaled, f"{told}; times the root of {batch}/{_BATCH}, the images of a step"


def _precision(specs: Specs, once: bool) -> list[Choice]:
    """bfloat16 where the hardware computes with it and it pays."""
    if specs.trainer.precision != "auto":
        return []
    from xfer.core.bf16 import verdict

    use, why = verdict(specs.trainer.accelerator, once)
    return [Choice("trainer.precision", "bf16-mixed" if use else "32-true", why)]
