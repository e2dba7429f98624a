"""What a sweep would run and cost, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from xfer.core.log import log, open_log
from xfer.core.settings import Sweep
from xfer.freeze import ever
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan
from xfer.sweep.space import Interval, Job, Parameter, probes
from xfer.training.features import AutoFeatures

if TYPE_CHECKING:
    from xfer.config.specs import Specs

# What no fact of a plan depends on but the rates.
_FREE = ("optim", "schedule", "loss", "logger", "export", "sweep", "run", "checkpoint", "seed")


def outlook(
    space: Sequence[Parameter],
    jobs: Sequence[Job],
    options: Sweep,
    compose: Callable[[Sequence[str]], Specs],
    done: Collection[int] = (),
) -> None:
    """List the jobs, what those that are not ``done`` would compute and what they would share.
    Raises XferError for what a plan finds."""
    open_log(None)
    total = len(jobs) or options.n_trials or 0
    count = max(0, total - len(done))
    for job in jobs:
        log.info(
            f"job {job.number}: {' '.join(job.overrides)}" + ", finished" * (job.number in done)
        )
    if not jobs:
        log.info(f"{total} trials of {options.sampler} over")
        for parameter in space:
            log.info(f"  {parameter.key}: {_range(parameter)}")
    if done:
        log.info(f"{len(done)} of {total} jobs are finished already")
    log.info(f"{count} jobs")
    left = [job.overrides for job in jobs if job.number not in done]
    rows = left if jobs else probes(space) if count else []
    plans: dict[str, Plan] = {}
    if found := [_plan(compose(row), plans) for row in rows]:
        for line in _costs(found, count / len(found)):
            log.info(line)
    log.info("stages=[]: nothing was started")


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, Interval):
        return f"{parameter.low:g} to {parameter.high:g}" + ", log" * parameter.log
    return ", ".join(parameter.texts)


def _plan(specs: Specs, known: dict[str, Plan]) -> tuple[Specs, Plan]:
    kept = {key: value for key, value in specs.config.items() if key not in _FREE}
    text = json.dumps(kept, sort_keys=True, default=str)
    if text not in known:
        known[text] = make_plan(specs)
    return specs, known[text]


def _costs(found: Sequence[tuple[Specs, Plan]], times: float) -> list[str]:
    """``times``: jobs for each one that was planned."""
    figures = {id(plan): _operations(plan) for plan in {id(p): p for _, p in found}.values()}
    alone: list[_Work] = []
    sets: dict[str, _Work] = {}
    whole = 0
    for asked, plan in found:
        ops = figures[id(plan)]
        train, val = (_count(plan, split) for split in ("train", "val"))
        specs = replace(plan.specs, seed=asked.seed)
        epochs = specs.trainer.epochs
        backward = 3 if _trains_backbone(plan) else 1
        full = epochs * (backward * train + val)
        whole += full
        key, size = _shared(specs, plan, train, val)
        if key is None:
            alone.append(_Work(full * times, ops))
        else:
            sets[key] = _Work(size, ops)
    work = [*alone, *sets.values()]
    told = [f"whole network: {sum(w.passes for w in work):,.0f} image passes{_tera(work)}"]
    reuse = f"; without features {whole * times:,.0f}" if sets else "; no job shares features"
    told[0] += reuse
    if sets:
        count = f"{len(sets)} set" + "s" * (len(sets) > 1)
        most = max(w.passes for w in sets.values())
        told.append(f"features: {count} of up to {most:,.0f} images, shared by the jobs")
    told.append("a backward pass counts as two; how fast this machine is, the first job tells")
    return told


class _Work(NamedTuple):
    """Images that pass a network, and the operations of each; ``None`` where they are unknown."""

    passes: float
    ops: int | None


def _count(plan: Plan, split: str) -> int:
    return len(plan.dataset.splits[split]) if plan.dataset else 0


def _trains_backbone(plan: Plan) -> bool:
    heads = {row.name for row in plan.phases[0].rows if row.head}
    return any(any(rates) for name, rates in ever(plan.phases).items() if name not in heads)


def _shared(specs: Specs, plan: Plan, train: int, val: int) -> tuple[str | None, int]:
    """A name for the features of a job, and the images they take; ``None`` without features."""
    options = specs.features
    if not isinstance(options, AutoFeatures) or _trains_backbone(plan):
        return None, 0
    epochs = specs.trainer.epochs
    count = options.views_of(specs.augment.random, epochs)
    what: list[Any] = [plan.card.backbone, plan.card.source, plan.card.input.to_plain()]
    what += [plan.facts["splits"], specs.facts["augment"], specs.trainer.precision, count]
    if count == epochs and options.batch_size is None:
        what.append(specs.seed)  # views in the order of their epoch
    return json.dumps(what, sort_keys=True, default=str), (count or 1) * train + val


def _operations(plan: Plan) -> int | None:
    """Multiplications and additions of one image's forward pass; ``None`` where that cannot be
    counted without values."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from xfer.models.network import blueprint

    network = blueprint(plan.parts)[1].module.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            network(torch.empty((1, 3, *plan.card.input.size), device="meta"))
    except (NotImplementedError, RuntimeError, IndexError, AttributeError):
        return None
    return int(counter.get_total_flops())


def _tera(work: Sequence[_Work]) -> str:
    """Each network's passes by its own operations; nothing where one of them is unknown."""
    known = [w.passes * w.ops for w in work if w.ops]
    return f", about {sum(known) / 1e12:,.3g} Tflop" if len(known) == len(work) else ""
