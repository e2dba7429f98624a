"""Whether a run can train on its devices and its files will fit, before anything is paid for; and
the folder that its plan is written into: made, or refused where it is taken."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np

from xfer.config.specs import Specs
from xfer.config.verbs import override, quoted
from xfer.core.errors import (
    CombinationError,
    ConfigError,
    HeadError,
    OutputError,
    RanksError,
    plural,
)
from xfer.core.files import output_errors, write_json, write_text, yaml_text
from xfer.core.run_folder import BESIDE
from xfer.core.types import Plain
from xfer.core.world import check_world, refuse_launched
from xfer.freeze import ever
from xfer.plan.plan import Plan

_SHARED = {"fit", "evaluate", "predict"}
"""Stages of which every rank does a part."""


def check_devices(plan: Plan, training: bool) -> None:
    """Raise ConfigError for devices or ranks that are not there or, where there is ``training`` by
    steps, more than the images of each split can feed."""
    specs, trainer = plan.specs, plan.specs.trainer
    shares = bool(_SHARED & {*specs.stages})
    if not (training or shares):
        return
    check_world(trainer.nodes, trainer.devices, specs.command, shares)
    if training:
        _check_together(plan)
    if trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and trainer.devices > 1):
        check_gpus(trainer.accelerator, trainer.devices)
    if trainer.ranks == 1:
        return
    if trainer.accelerator == "mps":
        raise ConfigError("trainer.devices", "Apple's GPU is one device", "use 1", 67)
    by_steps = training and not specs.optim.solves
    splits = plan.dataset.splits if plan.dataset and by_steps else {}
    # Batch normalisation cannot train on one image; a rank without any would wait for the others.
    for split, least in (("train", 2), ("val", 1)):
        count = len(splits.get(split, ()))
        if 0 < count < least * trainer.ranks:
            what = f"{trainer.ranks} devices cannot share the {count} images of {split}"
            fix = f"use {max(1, count // least)} at most"
            raise CombinationError("trainer.devices", what, fix, 3)


def _check_begun(plan: Plan, begun: Plain) -> None:
    """Raise RanksError where what others have begun by steps cannot be gone on with."""
    from xfer.data.sampler import RankShare, batches

    specs, train, first = plan.specs, plan.split("train"), plan.specs.begun_ranks
    shares = [RankShare(0, ranks, first) for ranks in range(specs.trainer.ranks, 0, -1)]
    size = first * (specs.data.batch_size if specs.data else 0)
    last = len(train) - size * (batches(len(train), size // first, first) - 1)
    smallest = min(last, max(size, 2 * first))
    back = f"type trainer.devices={begun['devices']} trainer.nodes={begun['nodes']}"
    what = f"goes on with what {plural(first, 'rank')} began: "
    if plan.folded:
        what += "each fold is a run of its own, and those that are left would have other batches"
        raise RanksError("trainer.devices", what, back, 2)
    if specs.task.several and shares[0].pieces > 1 and bool(np.less(train.labels, 0).any()):
        what += "they compute several parts of a batch in turn, and how many of its labels are "
        what += "known must be known before"
        raise RanksError("trainer.devices", what, back, 1)
    # Batch normalisation cannot train on one image; one process alone can go on with anything.
    fit = [s.ranks for s in shares if s.parts == first or 2 * s.parts <= smallest]
    if fit[0] != specs.trainer.ranks:
        what += f"the smallest batch of an epoch has {plural(smallest, 'image')}, which "
        what += f"{specs.trainer.ranks} cannot share in parts of two"
        fix = f"type trainer.devices={fit[0]} trainer.nodes=1"
        raise RanksError("trainer.devices", what, fix, 0)


def _check_together(plan: Plan) -> None:
    """Raise ConfigError for what ranks cannot do together."""
    specs, trainer = plan.specs, plan.specs.trainer
    if plan.folded and not specs.optim.solves:
        doing, fix = "each fold is another run", "type data.folds=null, or start one process"
        refuse_launched("data.folds", doing, fix)
    if trainer.on_oom == "halve" and trainer.ranks > 1:
        what, fix = "halve works on one device only", "type trainer.on_oom=error"
        raise CombinationError("trainer.on_oom", what, fix, 1)
    if trainer.shards:
        _check_shards(plan)
    if specs.begun and not specs.optim.solves:
        _check_begun(plan, specs.begun)


def _check_shards(plan: Plan) -> None:
    """Raise CombinationError for what cannot train where the ranks divide the network."""
    trainer = plan.specs.trainer
    optimizer, features = plan.optimizer_state is not None, plan.specs.features.use == "require"
    reasons = (
        (trainer.ranks == 1, "one device has nobody to divide with", "trainer.devices=2"),
        (bool(plan.layout.adapters), "freeze trains adapters", "freeze=head_only or freeze=none"),
        (trainer.averages > 0, "weights are averaged", "trainer.ema_decay=0"),
        (trainer.compile, "the network is compiled", "trainer.compile=false"),
        (trainer.numbers == "16-mixed", "16-mixed scales", "trainer.precision=bf16-mixed"),
        (optimizer, "the optimizer continues from a file", "source.optimizer=ignore"),
        (features, "features must be cached", "features=auto"),
    )
    for wrong, why, fix in reasons:
        if wrong:
            fix = f"type {fix}, or trainer.strategy=ddp"
            raise CombinationError("trainer.strategy", f"is fsdp, and {why}", fix, 28)


def check_votes(plan: Plan) -> None:
    """Raise HeadError for what a network that counts votes does not do: heat maps, as it has no
    gradient; and with several labels files of 8 bits, which the gate would refuse after the fit."""
    specs, head = plan.specs, plan.card.head
    if not str(head["_target_"]).endswith(".Knn"):
        return
    if specs.predict_maps:
        what = "heat maps are made of gradients, and a knn head counts votes, which have none"
        fix = "drop predict.maps, or predict with a run of head=prototype or head=linear"
        raise HeadError("predict.maps", what, fix, 1)
    rounds = any(getattr(writer, "trial", "") == "score" for writer in specs.export.writers)
    gate = specs.export.gate
    asked = "export" in specs.stages and gate.max_drop <= type(gate)().max_drop
    if rounds and asked and specs.task.several:
        what = (
            "8 bits make other images the nearest, and with several labels probabilities are "
            f"compared, of which a vote of the knn head is 1/{head['k'] + 1}"
        )
        fix = "type export.max_drop=0.05, or leave int8 out, or type head=prototype"
        raise HeadError("export", what, fix, 3)


def check_gpus(accelerator: str, devices: int) -> None:
    """Raise ConfigError where this machine has fewer GPUs than ``devices``, or none at all."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "gpu" and not there:
        fix = "type trainer.accelerator=cpu"
        raise ConfigError("trainer.accelerator", "there is no GPU here", fix, 88)
    if 0 < there < devices:
        gpus = "is 1 GPU" if there == 1 else f"are {there} GPUs"
        fix = f"use {there} at most, or trainer.accelerator=cpu"
        raise ConfigError("trainer.devices", f"is {devices}, and there {gpus} here", fix, 69)


_BESIDE = 2_000_000
"""Bytes for tables, figures and the report."""


def check_folder(folder: Path) -> None:
    """Raise OutputError where ``folder`` cannot be made or written."""
    with output_errors(folder):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "no permission" if there.is_dir() else "a file, not a folder"
        fix = "choose run.dir=DIR where you may write"
        raise OutputError(there, f"cannot be written ({why})", fix, 15)


def check_space(plan: Plan, folder: Path) -> None:
    """Raise OutputError where the disk of ``folder`` has no room for the run's checkpoints."""
    needed = needed_bytes(plan) if "fit" in plan.specs.stages else 0
    with output_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"{free:,} bytes are free, the run needs about {needed:,}"
        raise OutputError(folder, what, "free space or choose run.dir=DIR on another disk", 14)


def needed_bytes(plan: Plan) -> int:
    """The last checkpoint, the one before it and the next, with two moments each; the whole best
    one twice, while it is written; as many copies as ``checkpoint.keep`` says. The same for each
    fold that is a separate run."""
    policy, trainer = plan.specs.checkpoint, plan.specs.trainer
    sizes = {name: 4 * math.prod(shape) for name, shape in plan.shapes.items()}
    moving = sum(sizes[name] for name, rates in ever(plan.phases).items() if any(rates))
    last = moving * (4 if trainer.averages else 3)
    copies = policy.keep if policy.every_n_epochs or policy.every_n_steps else 0
    folds = plan.facts["folds"] if not plan.specs.optim.solves else None
    runs = 1 + (folds["folds"] * folds["repeats"] if folds else 0)
    return runs * ((3 + copies) * last + 2 * sum(sizes.values()) + _BESIDE)


def refuse_taken(specs: Specs) -> None:
    """Raise OutputError, before any cost, for a ``run.dir`` that cannot be this run's own."""
    if specs.run_dir is None:
        return
    folder = Path(specs.run_dir).expanduser()
    with output_errors(folder):
        if folder.exists() and any(path.name not in BESIDE for path in folder.iterdir()):
            fix = f"choose another run.dir, or {quoted(override('checkpoint.resume', str(folder)))}"
            raise OutputError(folder, "already holds files", fix, 2)


def make_folder(specs: Specs) -> Path:
    """A folder of this run's own: made, never shared."""
    if specs.run_dir is not None:
        folder = Path(specs.run_dir).expanduser()
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    root = Path("outputs") / specs.experiment
    while True:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = root / f"{stamp}_{secrets.token_hex(3)}"
        with output_errors(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def write_plan(plan: Plan, folder: Path) -> None:
    """Write ``plan.json`` and, where weights were loaded, what became of each tensor."""
    write_json(folder / "plan.json", plan.facts)
    if plan.load:
        write_json(folder / "load_report.json", plan.load)
    write_text(folder / "config.yaml", yaml_text(plan.asked.config))
