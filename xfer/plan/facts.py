"""The plan as facts for ``plan.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.types import Dataset, Plain, Samples
from xfer.freeze import Phase, ever

if TYPE_CHECKING:
    from torch import nn

    from xfer.core.protocols import Optim
    from xfer.plan.plan import Plan


def plan_facts(plan: Plan) -> Plain:
    """Every derived fact of ``plan``, JSON-like."""
    specs, card = plan.specs, plan.card
    facts: Plain = {
        "experiment": specs.experiment,
        "seed": specs.seed,
        "stages": list(specs.stages),
        "overrides": list(specs.overrides),
        "config_dirs": [str(Path(folder).resolve()) for folder in specs.config_dirs],
        "classes": list(card.classes),
        "splits": _split_facts(plan.dataset),
        "remarks": [*(plan.dataset.remarks if plan.dataset else ()), *_too_long(plan)],
        "leakage": [list(leak) for leak in plan.dataset.leaks] if plan.dataset else [],
        "backbone": dict(card.backbone),
        "source": {**card.source, **({"compat": card.compat} if card.compat else {})},
        "head": dict(card.head),
        "input": card.input.to_plain(),
        "freeze": specs.facts["freeze"],
        "features": {**specs.facts["features"], **plan.facts.get("features", {})},
        "auto": plan.facts.get("auto", []),
    }
    if plan.phases:
        facts |= _training_facts(plan)
    return facts


def _split_facts(dataset: Dataset | None) -> Plain:
    if dataset is None:
        return {}
    return {
        name: {
            "n": len(samples),
            "sha256": samples.sha256,
            "per_class": dict(zip(dataset.classes, _counts(samples, dataset), strict=True)),
        }
        for name, samples in dataset.splits.items()
    }


def _counts(samples: Samples, dataset: Dataset) -> list[int]:
    known = samples.labels[samples.labels >= 0]
    counts: list[int] = np.bincount(known, minlength=len(dataset.classes)).tolist()
    return counts


def _too_long(plan: Plan) -> list[str]:
    """What of a fit by steps is longer than that which it is a part of."""
    specs = plan.specs
    planned = not specs.stages or "fit" in specs.stages
    if not planned or not plan.phases or specs.optim.solves:
        return []
    lines, epochs = [], specs.trainer.epochs
    warmup = getattr(specs.schedule, "warmup_epochs", 0)
    if warmup >= epochs:
        lines.append(
            f"schedule.warmup_epochs={warmup:g} is as long as the {epochs} epochs or longer: the "
            "rate rises to the end and never falls; set it below trainer.max_epochs"
        )
    n = len(plan.dataset.splits["train"]) if plan.dataset else 0
    if specs.data and n < (size := specs.data.batch_size) * specs.trainer.devices:
        each = f" on each of {specs.trainer.devices} devices" if specs.trainer.devices > 1 else ""
        lines.append(
            f"data.batch_size={size}{each} is more than the {n} training images: an epoch is one "
            "step; a smaller data.batch_size gives more of them"
        )
    return lines


def _training_facts(plan: Plan) -> Plain:
    trainer, rates = plan.specs.trainer, ever(plan.phases)
    stages = {name: stage for stage, names in plan.layout.stages for name in names}
    own, trains = set(plan.layout.adapters), not plan.specs.optim.solves
    return {
        "parameters": [
            {
                "name": row.name,
                "shape": list(plan.shapes[row.name]),
                "group": "head" if row.head else "adapter" if row.name in own else "backbone",
                "stage": stages.get(row.name),
                "lr": max(rates[row.name]),
                "frozen": not any(rates[row.name]),
                **({"phases": list(rates[row.name])} if len(plan.phases) > 1 else {}),
            }
            for row in plan.phases[0].rows
        ],
        "phases": [
            {"name": phase.name, "start": phase.start, "patience": phase.patience}
            for phase in plan.phases
        ],
        "optimizer": plan.facts["optimizer"],
        "params": count_parameters(plan),
        "steps": {
            "batch_size": plan.specs.data.batch_size if plan.specs.data else None,
            "accumulate": trainer.accumulate,
            "devices": trainer.devices,
            "per_epoch": plan.steps_per_epoch if trains else 0,
            "epochs": trainer.epochs if trains else 0,
            "total": plan.total_steps if trains else 0,
        },
    }


def optimizer_facts(net: nn.Module, phases: Sequence[Phase], options: Optim) -> list[Plain]:
    """The optimizer's groups in each phase, ``net`` on any device: the learning rate before the
    schedule, the weight decay, and how many tensors and numbers a group has. None where the head
    is solved."""
    if options.solves:
        return []
    made = options.groups(net, ever(phases))
    return [
        {
            "phase": phase.name,
            "groups": [
                {
                    "lr": group["lr"] * group["phases"][i],
                    "weight_decay": group["weight_decay"],
                    "tensors": len(group["params"]),
                    "parameters": sum(p.numel() for p in group["params"]),
                }
                for group in made
            ],
        }
        for i, phase in enumerate(phases)
    ]


def count_parameters(plan: Plan) -> dict[str, int]:
    """Parameters in all, trainable and frozen, in numbers."""
    sizes = {name: math.prod(shape) for name, shape in plan.shapes.items()}
    frozen = sum(sizes[name] for name, rates in ever(plan.phases).items() if not any(rates))
    total = sum(sizes.values())
    return {"total": total, "trainable": total - frozen, "frozen": frozen}
