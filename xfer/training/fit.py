"""Training: a Lightning Trainer around the classifier, its best epoch kept as ``best.ckpt``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from xfer.core.device import device_name, device_of
from xfer.core.errors import ConfigError, DataError, OutOfMemory, ResumeError
from xfer.core.log import log
from xfer.core.memory import free, keep_freed
from xfer.core.run_folder import best_checkpoint
from xfer.core.signals import stop
from xfer.core.standardize import Standard, from_plain
from xfer.core.types import Samples
from xfer.data.decode_cache import decoded, decoded_limit, fitted
from xfer.data.loader import EvalLoader, TrainLoader, eval_images, train_images
from xfer.data.preprocess import normalise
from xfer.data.sampler import Share, shared_size
from xfer.models.adapters import merge
from xfer.models.network import assemble, fill
from xfer.plan.lineage import check_best, read_resume
from xfer.plan.resume import START_ANEW
from xfer.training.callbacks.freeze_phase import Phases
from xfer.training.callbacks.progress import History
from xfer.training.callbacks.prune import Pruned, Prunes
from xfer.training.distributed.group import Team
from xfer.training.distributed.rendezvous import followed, led
from xfer.training.features.feed import Feed
from xfer.training.fit_result import FitResult
from xfer.training.head_start import prepare_head
from xfer.training.lightning import lightning_trainer, quiet
from xfer.training.module import Classifier
from xfer.training.oom import out_of_memory, recall, smaller, too_large_error
from xfer.weights.formats.checkpoint_format import Snapshot, write_snapshot

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.plan.plan import Plan


def fit(
    plan: Plan, folder: Path, resume: Path | None = None, prunes: Prunes | None = None
) -> FitResult:
    """Train as planned; go on from the resume file ``resume`` where one is given, and end behind
    the epoch of which ``prunes`` says so.

    Raises DivergedError, DataError, ConfigError, OutputError or, unless smaller batches are asked
    for and fit, OutOfMemory; never finishes without a best checkpoint.
    """
    began = time.perf_counter()
    done = _lead(recall(plan, folder), folder, resume, prunes)
    done.history.close()
    best = done.history.best
    assert best is not None
    path = best_checkpoint(folder)
    _complete(path, check_best(path, plan, best), done.net)
    log.info(
        f"End training, the best {best['metric']} is: {best['value']:.4f}, "
        f"the best epoch is {best['epoch']}"
    )
    feed, phases = done.phases.feed, done.phases
    return FitResult(
        best,
        path,
        done.history.rows,
        time.perf_counter() - began,
        device_name(done.device),
        phases.proved,
        phases.audits,
        feed.facts,
        feed.seconds if feed.facts["cached"] else None,
        feed.last,
    )


def take_part(specs: Specs, folder: Path, number: int) -> None:
    """Train as rank ``number`` (from 1) of the run that rank 0 leads in ``folder``."""
    with followed(specs, folder, number) as (team, plan, resume):
        _train(plan, folder, resume, team)


class _Trained(NamedTuple):
    net: torch.nn.Module
    history: History
    phases: Phases
    device: torch.device


def _lead(plan: Plan, folder: Path, resume: Path | None, prunes: Prunes | None) -> _Trained:
    """Train, in smaller batches where memory runs out and they are asked for."""
    while True:
        try:
            with led(plan, folder, resume) as team:
                return _train(plan, folder, resume, team, prunes)
        except OutOfMemory as error:
            plan, resume = smaller(plan, folder, error), None
        stop.waits = False  # as before the first epoch
        stop.obey()
        free()


def _train(
    plan: Plan, folder: Path, resume: Path | None, team: Team, prunes: Prunes | None = None
) -> _Trained:
    if device_of(plan.specs.trainer.accelerator).type == "cpu":
        keep_freed()
    plan, val = _decoded(plan, team)
    net = assemble(plan.parts, plan.weights)
    standard = _standard(plan, net, resume, team)
    team.broadcast_state(net)
    module = Classifier(net, plan, team, standard)
    history = History(plan, folder, team)
    with quiet():
        feed = Feed(plan, folder, _loaders(plan, val, team), team)
        phases = Phases(plan, folder, history, feed)
        callbacks = [phases, history, Pruned(history, prunes)]
        trainer = lightning_trainer(plan, folder, callbacks, team)
        loaders = feed.train, feed.val
        try:
            full = out_of_memory(
                lambda: trainer.fit(module, *loaders, ckpt_path=resume, weights_only=True)
            )
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if resume is None or history.begun:
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0][:160]
            what = f"does not fit the run that it is of ({said})"
            raise ResumeError(resume, what, START_ANEW, 26) from error
        if full:
            raise too_large_error(module, plan)
    if not history.rows:
        raise DataError("data", "has no batch to train on", "add images", 47)
    if history.best is None:
        metric = plan.specs.checkpoint.monitor
        raise ConfigError(
            "checkpoint.monitor",
            f"no epoch looked at had a {metric}",
            "use val_acc or val_loss",
            91,
        )
    phases.finish(module)
    module.standardized.remove()
    device = trainer.strategy.root_device
    module.cpu()
    free()
    return _Trained(net, history, phases, device)


def _standard(plan: Plan, net: torch.nn.Module, resume: Path | None, team: Team) -> Standard:
    """What the head's input is standardised by: as the run began, where it goes on."""
    if resume is not None:
        return from_plain(read_resume(resume, plan).get("standard"))
    found = prepare_head(plan, net) if team.leads else {}
    net.cpu()
    return team.broadcast(found)


def _decoded(plan: Plan, team: Team) -> tuple[Plan, Samples]:
    """The plan, whose training images are decoded once where they fit, and those of val fitted to
    the network's input once; each rank keeps its own."""
    if plan.dataset is None or plan.specs.data is None:
        raise DataError("data", "is needed to fit", "give data=... or data.root=DIR", 43)
    most = int(decoded_limit(plan.specs.data.decoded_gb)[0] * 1e9 / team.ranks)
    dataset, spec = plan.dataset, plan.card.input
    return replace(plan, dataset=decoded(dataset, most, spec)), fitted(dataset, most, spec)


def _loaders(plan: Plan, fitted_val: Samples, team: Team) -> tuple[TrainLoader, EvalLoader]:
    specs, spec, share = plan.specs, plan.card.input, Share(team.rank, team.ranks)
    assert plan.dataset is not None and specs.data is not None
    splits = plan.dataset.splits
    train = train_images(splits["train"], spec, specs.augment)
    val = eval_images(fitted_val, spec, normalise)
    workers, pin = specs.data.workers, device_of(specs.trainer.accelerator).type == "cuda"
    size = shared_size(len(val), specs.data.eval_batch_size, team.ranks)
    loader = TrainLoader(train, specs.data.batch_size, workers, pin, specs.seed, share)
    loader.order.labels = specs.data.balance(splits["train"].labels)
    return loader, EvalLoader(val, size, workers, pin, share)


def _complete(path: Path, snapshot: Snapshot, net: torch.nn.Module) -> None:
    """Make the best checkpoint whole: what trained and the frozen rest, adapters merged."""
    if snapshot.frozen is not None:  # else it is whole: a run that goes on had come this far
        fill(net, snapshot.state)
        state = merge(net).state_dict()
        whole = Snapshot(snapshot.card.merged(), state, snapshot.progress, run=snapshot.run)
        write_snapshot(path, whole)
