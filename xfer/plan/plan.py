"""The plan of a run: every fact that is known before anything is paid for, as ``plan.json`` has it.

A plan is built once, by :func:`xfer.plan.make.make_plan`. A fit that must change it (smaller
batches, decoded images) makes another one with :func:`dataclasses.replace`; ``facts`` follows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from xfer.core.control_groups import THREADS, busy_cores, processors_left
from xfer.core.types import Card, Dataset, Network, Plain, Samples
from xfer.core.world import starts
from xfer.data.folds import fold_facts
from xfer.data.shared_memory import SHARED, free_bytes, has_locks
from xfer.data.tta import tta_facts
from xfer.freeze import Layout, Phase, ever
from xfer.plan.auto import FEW, Decision, steps_per_epoch
from xfer.plan.calibration_plan import NO_CALIBRATION, CalibrationPlan
from xfer.plan.certificate_images import certificate_facts
from xfer.plan.memory_plan import memory_remarks
from xfer.plan.resume import fingerprint
from xfer.plan.teacher_plan import TeacherPlan, teacher_remarks

if TYPE_CHECKING:
    import torch

    from xfer.config.specs import Specs
    from xfer.core.types import StateDict
    from xfer.models.network import Parts
    from xfer.weights.content import OptimizerBuffers

NO_LAYOUT = Layout((), (), (), ())
_LISTED = 1000  # leaks in plan.json


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the work: ``specs`` is ``asked`` with every ``auto`` decided
    as ``decisions`` say, ``load`` what ``load_report.json`` holds.

    ``state`` are the source's tensors by the network's names, ``optimizer_state`` what of its
    optimizer is continued. Where something trains: ``network`` (on the meta device, its head
    swapped and its adapters in place), what it is made of (``layout``), what trains when
    (``phases``), and what its ``features`` would take, what ``calibration`` comes after it, and
    the ``teacher`` that it learns from. ``source_head`` are weight and bias of the classifier that
    an audit asks, see :func:`xfer.plan.classes.source_head`. ``final_epochs`` is when a fit ends
    that the folds of a cross-validation have said the length of: before its schedule does.
    ``memory`` are the bytes that were left when the plan was made.
    """

    asked: Specs
    specs: Specs
    dataset: Dataset | None
    card: Card
    parts: Parts
    state: StateDict = field(default_factory=dict)
    optimizer_state: OptimizerBuffers | None = None
    load: Plain = field(default_factory=dict)
    network: Network | None = None
    layout: Layout = NO_LAYOUT
    phases: tuple[Phase, ...] = ()
    decisions: tuple[Decision, ...] = ()
    features: Plain = field(default_factory=dict)
    calibration: CalibrationPlan = NO_CALIBRATION
    teacher: TeacherPlan | None = None
    source_head: tuple[torch.Tensor, torch.Tensor] | None = None
    final_epochs: int | None = None
    memory: float = math.inf

    @property
    def epochs(self) -> int:
        """How many epochs there are at most."""
        return self.final_epochs or self.specs.trainer.epochs

    def split(self, name: str) -> Samples:
        """The images of one split; none of a split that there is not."""
        if self.dataset is None or name not in self.dataset.splits:
            raise ValueError(f"a plan without a split '{name}' was asked for it")
        return self.dataset.splits[name]

    @property
    def folded(self) -> bool:
        """Whether the run is a cross-validation, and no single fold of one."""
        train = self.dataset.splits.get("train") if self.dataset else None
        return train is not None and train.folds is not None

    @property
    def train_counts(self) -> list[int]:
        """Training images a class, in class order."""
        return self.specs.task.counts(self.split("train").labels, len(self.card.classes))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return steps_per_epoch(self.specs, len(self.split("train")))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.specs.trainer.epochs

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter by its name, where something trains."""
        named = self.network.module.named_parameters() if self.network else ()
        return {name: tuple(parameter.shape) for name, parameter in named}

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Parameters in all, trainable and frozen, in numbers."""
        sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        frozen = sum(sizes[name] for name, rates in ever(self.phases).items() if not any(rates))
        total = sum(sizes.values())
        return {"total": total, "trainable": total - frozen, "frozen": frozen}

    @cached_property
    def facts(self) -> Plain:
        """Every derived fact, JSON-like: what ``plan.json`` holds."""
        specs, card, dataset = self.specs, self.card, self.dataset
        return {
            "experiment": specs.experiment,
            "seed": specs.seed,
            "stages": list(specs.stages),
            "overrides": list(specs.overrides),
            "config_dirs": list(specs.config_dirs),
            **({"task": specs.facts["task"]} if specs.task.several else {}),
            "classes": list(card.classes),
            "splits": _split_facts(dataset, specs) if dataset else {},
            "folds": fold_facts(dataset, specs.data) if dataset and specs.data else None,
            "remarks": [
                *memory_remarks(specs, card.input.size, self.memory),
                *(dataset.remarks if dataset else ()),
                *_not_listed(dataset),
                *_too_long(self),
                *_one_view(self),
                *_too_few(self),
                *_to_start(self),
                *_fewer_processors(),
                *_taking_turns(self),
                *_little_shared(self),
                *teacher_remarks(self.teacher, dataset),
            ],
            "leakage": [list(leak) for leak in dataset.leaks[:_LISTED]] if dataset else [],
            "backbone": dict(card.backbone),
            "source": {**card.source, **({"compat": card.compat} if card.compat else {})},
            "head": dict(card.head),
            "input": card.input.to_plain(),
            "augment": specs.facts["augment"],
            "tta": tta_facts(specs.tta),
            "calibration": self.calibration.to_plain(),
            "certificate": certificate_facts(specs, dataset, card, self.parts, self.layout),
            "teacher": self.teacher
            and self.teacher.to_plain(dataset, follows=specs.augment.random),
            "freeze": specs.facts["freeze"],
            "features": {**specs.facts["features"], **self.features},
            "auto": [asdict(decision) for decision in self.decisions],
            **_training_facts(self),
            "fingerprint": fingerprint(self.asked.config, self.asked.begun),
            **({"begun": self.asked.begun} if self.asked.begun else {}),
            "config": self.asked.config,
        }


def _not_listed(dataset: Dataset | None) -> list[str]:
    """How many leaks there are, where ``plan.json`` has not all of them."""
    if dataset is None or (count := len(dataset.leaks)) <= _LISTED:
        return []
    return [f"plan.json lists the first {_LISTED:,} of {count:,} pairs of images in two splits"]


def _split_facts(dataset: Dataset, specs: Specs) -> Plain:
    classes, task = dataset.classes, specs.task
    return {
        name: {
            "n": len(samples),
            "sha256": samples.sha256,
            "per_class": dict(zip(classes, task.counts(samples.labels, len(classes)), strict=True)),
            **task.more_counts(samples.labels),
        }
        for name, samples in dataset.splits.items()
    }


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
            f"schedule.warmup_epochs={warmup:g} is no less than trainer.max_epochs={epochs}: the "
            "rate rises to the end and never falls; set it below that"
        )
    n = len(plan.split("train"))
    if specs.data and n < (size := specs.data.batch_size) * specs.begun_ranks:
        each = f" on each of {specs.begun_ranks} devices" if specs.begun_ranks > 1 else ""
        lines.append(
            f"data.batch_size={size}{each} is more than the {n} training images: an epoch is one "
            "step; a smaller data.batch_size gives more of them"
        )
    return lines


def _one_view(plan: Plan) -> list[str]:
    """What is answered in another way than ``tta`` says."""
    if not (plan.folded and plan.specs.optim.solves and plan.specs.tta != "none"):
        return []
    return [f"the folds are answered on one view of each image, without tta={plan.specs.tta}"]


def _too_few(plan: Plan) -> list[str]:
    """That a head which is usually solved is trained step by step, for want of images."""
    if not any(
        decision.key == "optim" and decision.why.endswith(FEW) for decision in plan.decisions
    ):
        return []
    others = "head=prototype and optim=exact optim.l2=0.1 do without"
    return [f"the head is trained step by step, for each class {FEW}; {others}"]


def _to_start(plan: Plan) -> list[str]:
    """How ranks on several nodes are started, where the plan alone is asked for."""
    trainer = plan.specs.trainer
    if plan.specs.stages or trainer.nodes == 1:
        return []
    how = starts(trainer.nodes, trainer.devices, plan.specs.command)
    return [f"trainer.nodes={trainer.nodes} needs a launcher: {how}"]


def _fewer_processors() -> list[str]:
    """That a container or a job leaves this process fewer processors than the machine has."""
    if (worth := processors_left()) is None:
        return []
    threads = os.environ.get(THREADS)
    how = f"{THREADS}={threads}" if threads else f"set {THREADS} before torch is loaded"
    return [f"the control group leaves {worth:g} of {os.cpu_count()} processors: {how}"]


def _taking_turns(plan: Plan) -> list[str]:
    """That more workers are asked for than this process may use processors."""
    data, cores = plan.specs.data, busy_cores()
    if data is None or data.workers <= cores:
        return []
    many = f"data.workers={data.workers} is more than this process has processors, {cores}"
    return [f"{many}: they take turns, and fewer may be faster"]


def _little_shared(plan: Plan) -> list[str]:
    """That worker processes cannot hand over their batches as they usually do."""
    data, card = plan.specs.data, plan.card
    if data is None or not data.workers:
        return []
    if not has_locks():
        return [f"{SHARED} cannot be used: images are decoded in one process, as data.workers=0"]
    processes = data.workers * plan.specs.trainer.devices
    batches = processes * max(data.batch_size, data.eval_batch_size)
    needed, free = batches * 12 * math.prod(card.input.size), free_bytes()
    if free is None or needed < free:
        return []
    return [
        f"{SHARED} has {free / 1e6:,.0f} MB, and {processes} batches take {needed / 1e6:,.0f}: "
        "what has no room comes through pipes, which is slower; a container: --shm-size=1g"
    ]


def _training_facts(plan: Plan) -> Plain:
    if not plan.phases:
        return {}
    trainer, rates, shapes = plan.specs.trainer, ever(plan.phases), plan.shapes
    stages = {name: stage for stage, names in plan.layout.stages for name in names}
    adapters, by_steps = set(plan.layout.adapters), not plan.specs.optim.solves
    return {
        "parameters": [
            {
                "name": row.name,
                "shape": list(shapes[row.name]),
                "group": "head" if row.head else "adapter" if row.name in adapters else "backbone",
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
        "optimizer": _optimizer_facts(plan) if by_steps else [],
        "params": plan.parameter_counts,
        "steps": {
            "batch_size": plan.specs.data.batch_size if plan.specs.data else None,
            "accumulate": trainer.accumulate,
            "devices": trainer.devices,
            "nodes": trainer.nodes,
            **({"strategy": "fsdp"} if trainer.shards else {}),
            "per_epoch": plan.steps_per_epoch if by_steps else 0,
            "epochs": trainer.epochs if by_steps else 0,
            "total": plan.total_steps if by_steps else 0,
        },
    }


def _optimizer_facts(plan: Plan) -> list[Plain]:
    """The optimizer's groups in each phase: the learning rate before the schedule, the weight
    decay, and how many tensors and numbers a group has."""
    if plan.network is None:
        return []
    groups = plan.specs.optim.groups(plan.network.module, ever(plan.phases))
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
                for group in groups
            ],
        }
        for i, phase in enumerate(plan.phases)
    ]
