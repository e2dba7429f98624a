"""What a plan decides where the configuration says ``auto``: each choice, and why.

A value that was given always wins. One that only steps of gradient descent heed (a rate, epochs,
an average of weights) asks for those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xfer import augment, features, optim, schedule
from xfer.checkpoint import Checkpoint
from xfer.errors import ConfigError
from xfer.freeze import Layout, Phase
from xfer.head import Dropout, Linear, Pooled
from xfer.loss import CrossEntropy
from xfer.trainer import Trainer
from xfer.types import Plain

if TYPE_CHECKING:
    from xfer.specs import Specs

_ANY_EPOCHS = 1_000_000
_SEEN = {"head": 20_000, "backbone": 2_000}
"""Training images that a run sees in all, where a head or more trains."""
_EPOCHS = {"head": (10, 50), "backbone": (5, 20)}
_BATCH = 32  # images a step that the rates below are for
_RATES = {"head": 1e-3, "tuned": 1e-3, "whole": 1e-4, "new": 1e-3}
_SGD = 10.0  # times the rate of an adaptive optimizer


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
    obstacle = ("head", not_exact) if not_exact else _obstacle(specs, layout, phases)
    if isinstance(specs.optim, optim.Exact):
        if obstacle:
            raise _refusal(*obstacle)
        return [*_precision(specs, head=True), *_no_steps(specs)]
    if isinstance(specs.optim, optim.Auto) and not obstacle:
        why = "a linear head behind frozen layers is a convex problem: solved, no rate needed"
        found = [Choice("optim", "exact", why), *_precision(specs, head=True)]
        return [*found, *_no_steps(specs)]
    found = []
    if isinstance(specs.optim, optim.Auto):
        assert obstacle
        found.append(Choice("optim", "adamw", f"{obstacle[0]}: {obstacle[1]}"))
    return [*found, *_steps(specs, layout, phases, images, pretrained)]


def apply(specs: Specs, choices: Iterable[Choice]) -> Specs:
    """``specs`` with every choice in its place."""
    made: Plain = {}
    for choice in choices:
        made |= _applied(replace(specs, **made), choice)
    specs = replace(specs, **made)
    if isinstance(specs.optim, optim.Exact):
        # Without steps there are no epochs, no rate over time and nothing to begin from.
        trainer = replace(specs.trainer, max_epochs=1, head_start="zero")
        made |= {"trainer": trainer, "schedule": schedule.Constant()}
    facts = {**specs.facts}
    for group in made:
        kind = type(made[group])
        facts[group] = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(made[group])}
    return replace(specs, facts=facts, **made)


def _applied(specs: Specs, choice: Choice) -> Plain:
    group, _, key = choice.key.partition(".")
    if key:
        return {group: replace(getattr(specs, group), **{key: choice.value})}
    if group == "optim" and choice.value == "adamw":
        own = specs.optim
        assert isinstance(own, optim.Auto)
        made = optim.AdamW(lr=own.lr, weight_decay=own.weight_decay, decay=own.decay)
        return {"optim": made}
    kinds: dict[tuple[str, Any], Any] = {
        ("optim", "exact"): optim.Exact,
        ("schedule", "constant"): schedule.Constant,
        ("augment", "none"): augment.Plain,
        ("augment", "standard"): augment.Standard,
    }
    return {group: kinds[group, choice.value]()}


def _no_steps(specs: Specs) -> list[Choice]:
    """What is left to decide where nothing is trained step by step."""
    if not isinstance(specs.augment, augment.Auto):
        return []
    why = "one view an image, as it is evaluated; augment=standard solves on random views"
    return [Choice("augment", "none", why)]


def _steps(
    specs: Specs, layout: Layout, phases: Sequence[Phase], images: int, pretrained: bool
) -> list[Choice]:
    """Rate, epochs, schedule and precision of training step by step."""
    part = "backbone" if _tunes(phases) else "head"
    found = []
    own = specs.optim
    if isinstance(own, optim.Options) and own.lr == "auto":
        rate, why = _rate(specs, phases, pretrained)
        found.append(Choice("optim.lr", rate, why))
    epochs = specs.trainer.max_epochs
    if epochs == "auto":
        low, high = _EPOCHS[part]
        seen = _SEEN[part]
        epochs = max(low, min(high, math.ceil(seen / max(1, images))))
        last = max((phase.start or 0 for phase in phases), default=0)
        # A phase that begins late is given as long again.
        epochs = max(epochs, 2 * last if last < _ANY_EPOCHS // 4 else 0)
        why = f"{seen:,} images seen in all, {low} to {high} epochs"
        found.append(Choice("trainer.max_epochs", epochs, why))
    if isinstance(specs.schedule, schedule.Auto):
        found.append(
            Choice("schedule", "cosine", "a tenth of the run to rise, then half a cosine to 0")
        )
    if isinstance(specs.augment, augment.Auto):
        found.append(Choice("augment", "standard", "random crops and flips while training"))
    if specs.trainer.head_start == "auto":
        found.append(_head_start(specs, layout, pretrained and part == "backbone"))
    return [*found, *_precision(specs, head=part == "head")]


def _head_start(specs: Specs, layout: Layout, tunes: bool) -> Choice:
    """Solved, where what is behind the head is pretrained and ``tunes`` as well."""
    new = isinstance(specs.head, Linear | Pooled | Dropout) and len(layout.heads) == 1
    kept = isinstance(specs.features, features.Auto) and specs.trainer.devices == 1
    if tunes and new and kept and isinstance(specs.optim, optim.Auto):
        why = "fine-tuning begins at the best head on the frozen features"
        return Choice("trainer.head_start", "solved", why)
    return Choice("trainer.head_start", "zero", "all classes equally likely at first")


def _obstacle(specs: Specs, layout: Layout, phases: Sequence[Phase]) -> tuple[str, str] | None:
    """The key, and why the head cannot be solved exactly; ``None`` where it can."""
    head, rows = specs.head, [row for phase in phases for row in phase.rows]
    found = (
        (not isinstance(head, Linear | Pooled), "head", "is not linear, or draws random numbers"),
        (len(layout.heads) != 1, "backbone", f"has {len(layout.heads)} classifiers"),
        (len(phases) > 1, "freeze", f"has {len(phases)} phases"),
        (bool(layout.adapters), "freeze", "trains adapters"),
        (any(not (row.head or row.frozen) for row in rows), "freeze", "trains more than the head"),
        (any(row.head and row.lr != 1 for row in rows), "freeze", "gives the head a rate"),
        (specs.freeze.batch_norm != "eval", "freeze.batch_norm", "moves statistics"),
        (type(specs.loss) is not CrossEntropy, "loss", "is not cross-entropy"),
        (not isinstance(specs.features, features.Auto), "features", "are not kept"),
        (specs.augment.mix(2) is not None, "augment", "mixes images"),
        *_asked(specs),
    )
    return next(((key, why) for wrong, key, why in found if wrong), None)


def _asked(specs: Specs) -> list[tuple[bool, str, str]]:
    """What was given that only training step by step heeds."""
    trainer, kept, found = specs.trainer, specs.checkpoint, []
    found.append(("lr_find" in specs.stages, "stages", "looks for a rate"))
    if isinstance(specs.optim, optim.Auto) and specs.optim.lr != "auto":
        found.append((True, "optim.lr", "asks for steps at that rate"))
    if trainer.max_epochs != "auto":
        found.append((True, "trainer.max_epochs", "asks for epochs"))
    if not isinstance(specs.schedule, schedule.Auto):
        found.append((True, "schedule", "asks for steps"))
    usual = Trainer()
    for key in ("devices", "accumulate", "clip_norm", "ema_decay", "patience", "compile"):
        found.append(
            (getattr(trainer, key) != getattr(usual, key), f"trainer.{key}", "asks for steps")
        )
    own = Checkpoint()
    for key in ("monitor", "start_epoch", "interval", "every_n_epochs", "every_n_steps"):
        found.append(
            (getattr(kept, key) != getattr(own, key), f"checkpoint.{key}", "asks for epochs")
        )
    return found


def _refusal(key: str, why: str) -> ConfigError:
    remedies = {
        "head": "type head=linear, or optim=adamw",
        "freeze": "type freeze=head_only, or optim=adamw",
        "freeze.batch_norm": "type freeze.batch_norm=eval, or optim=adamw",
        "features": "type features=auto, or optim=adamw",
        "augment": "type augment=standard, or optim=adamw",
        "loss": "type loss=cross_entropy, or optim=adamw",
        "backbone": "type optim=adamw",
        "schedule": "type schedule=auto, or optim=adamw",
    }
    fix = remedies.get(key, f"drop {key}, or type optim=adamw")
    return ConfigError("optim", f"exact solves a linear head alone, and {key} {why}", fix, 62)


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
    if isinstance(specs.optim, optim.Sgd):
        rate, told = rate * _SGD, f"{told}, {_SGD:g} times that for SGD"
    data, trainer = specs.data, specs.trainer
    batch = (data.batch_size if data else _BATCH) * trainer.accumulate * trainer.devices
    scaled = float(f"{rate * math.sqrt(batch / _BATCH):.2g}")
    return scaled, f"{told}; times the root of {batch}/{_BATCH}, the images of a step"


def _precision(specs: Specs, head: bool) -> list[Choice]:
    """bfloat16 where the hardware computes with it and it pays."""
    if specs.trainer.precision != "auto":
        return []
    from xfer.bf16 import verdict

    use, why = verdict(specs.trainer.accelerator, once=head)
    return [Choice("trainer.precision", "bf16-mixed" if use else "32-true", why)]
