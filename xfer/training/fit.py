"""Training: a Lightning Trainer around the classifier, its best epoch kept as ``best.ckpt``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from xfer.core.custom_parts import custom_part_error
from xfer.core.device import device_name, device_of
from xfer.core.errors import ConfigError, DataError, OutOfMemory, ResumeError
from xfer.core.log import log
from xfer.core.memory import free, keep_freed, new_garbage_alone
from xfer.core.run_folder import best_checkpoint
from xfer.core.signals import stop
from xfer.core.standardize import Standard, from_plain
from xfer.core.types import Plain, Samples
from xfer.data.decode_cache import decoded, decoded_limit, fitted
from xfer.data.loader import EvalLoader, TrainLoader, eval_images, train_images
from xfer.data.preprocess import normalise
from xfer.data.sampler import shared_size
from xfer.models.adapters import merge
from xfer.models.network import assemble, fill
from xfer.plan.lineage import check_best, read_resume
from xfer.plan.resume import START_ANEW
from xfer.training.calibrate import calibrate_best
from xfer.training.callbacks.freeze_phase import Phases
from xfer.training.callbacks.progress import History
from xfer.training.callbacks.timeline import Timeline
from xfer.training.certificate_fit import certify_best
from xfer.training.distributed.group import ProcessGroup
from xfer.training.distributed.rendezvous import NOBODY, Lead, SentPlan
from xfer.training.features.feature_switch import FeatureSwitch
from xfer.training.fit_result import FitResult
from xfer.training.head_start import prepare_head
from xfer.training.lightning import lightning_trainer, quiet
from xfer.training.mirroring import heeding
from xfer.training.module import Classifier
from xfer.training.oom import out_of_memory, recall, smaller, too_large_error
from xfer.weights.formats.checkpoint_format import Snapshot, write_snapshot

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.protocols import Data
    from xfer.plan.plan import Plan
    from xfer.training.callbacks.timeline import Prunes, Shows
    from xfer.training.guarded_logger import GuardedLogger


def fit(
    plan: Plan,
    folder: Path,
    resume: Path | None = None,
    prunes: Prunes | None = None,
    shows: Shows | None = None,
    lead: Lead = NOBODY,
) -> FitResult:
    """Train as planned, with the ranks of ``lead``; continue from the resume file ``resume`` where
    one is given, and end after the epoch of which ``prunes`` says so. ``shows`` is called with the
    history after every epoch.

    Where memory runs out, and that is asked for, it begins again in smaller batches. Raises
    DivergedError, DataError, ConfigError, OutputError or OutOfMemory; never finishes without a best
    checkpoint.
    """
    began, plan = time.perf_counter(), recall(plan, folder)
    with new_garbage_alone():
        while True:
            try:
                group = lead.ask(take_part, SentPlan.of(plan), folder.resolve(), resume)
                done = _train(plan, folder, resume, group, prunes, shows)
                break
            except OutOfMemory as error:
                plan, resume = smaller(plan, folder, error), None
            stop.waits = False  # as before the first epoch
            stop.obey()
            free()
        free()  # the Trainer and its optimizer, which hold each other
    done.history.close()
    best, path = done.best, best_checkpoint(folder)
    snapshot = check_best(path, plan, best)
    if snapshot.frozen is not None:  # else it is whole: the run that is resumed had come this far
        _complete(path, snapshot, done.net)
    features = done.phases.features
    card = calibrate_best(plan, path, features.last, lead)
    certify_best(plan, path)
    log.info(
        f"End training, the best {best['metric']} is: {best['value']:.4f}, "
        f"the best epoch is {best['epoch']}"
    )
    return FitResult(
        best,
        path,
        done.history.rows,
        time.perf_counter() - began,
        device_name(done.device),
        done.phases.proved,
        done.phases.audits,
        features.facts,
        features.seconds if features.facts["cached"] else None,
        features.last,
        logger=done.logger,
        calibration=card.calibration,
        mirrored=done.mirrored,
        ranks=done.history.ranks,
    )


def take_part(
    specs: Specs, group: ProcessGroup, sent: SentPlan, folder: Path, resume: Path | None
) -> None:
    """Train as one of the other ranks in the run that rank 0 leads in ``folder``."""
    _train(sent.received(specs), folder, resume, group)
    free()


class _Trained(NamedTuple):
    net: nn.Module
    history: History
    best: Plain
    phases: Phases
    device: torch.device
    logger: GuardedLogger | None
    mirrored: Plain


def _train(
    plan: Plan,
    folder: Path,
    resume: Path | None,
    group: ProcessGroup,
    prunes: Prunes | None = None,
    shows: Shows | None = None,
) -> _Trained:
    if device_of(plan.specs.trainer.accelerator).type == "cpu":
        keep_freed()
    dataset, data = plan.dataset, plan.specs.data
    if dataset is None or data is None:
        raise DataError("data", "is needed to fit", "give data=... or data.root=DIR", 43)
    # Each rank of a node has its part of the memory: images to train on decoded once where they
    # fit, those of val fitted to the network's input once.
    most = int(decoded_limit(data.decoded_gb)[0] * 1e9 / plan.specs.trainer.devices)
    plan = replace(plan, dataset=decoded(dataset, most, plan.card.input))
    val = fitted(dataset, most, plan.card.input)
    net = assemble(plan.parts, plan.state)
    standard, mirrored = _prepared(plan, net, resume, group)
    plan = heeding(plan, mirrored)
    module = Classifier(net, plan, group, standard, mirrored)
    history = History(plan, folder, group)
    with quiet():
        features = FeatureSwitch(plan, folder, _loaders(plan, data, val, group), group)
        phases = Phases(plan, folder, features)
        timeline = Timeline(phases, history, prunes, shows)
        trainer = lightning_trainer(plan, folder, timeline, group)
        try:
            full = out_of_memory(
                lambda: trainer.fit(
                    module, features.train, features.val, ckpt_path=resume, weights_only=True
                )
            )
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if resume is None or timeline.begun or custom_part_error(error):
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0][:160]
            what = f"does not fit the run that it is of ({said})"
            raise ResumeError(resume, what, START_ANEW, 26) from error
        if full:
            raise too_large_error(module, plan, data)
    logger: Any = trainer.logger
    try:
        best = _proved(history, phases, module)
    except BaseException:
        if logger is not None:
            logger.finalize("failed")
        raise
    module.standardized.remove()
    device = trainer.strategy.root_device
    module.trainer = None  # which has the optimizer, and is held by whoever holds the module
    # One that the ranks had divided is as it began: the best checkpoint has what trained.
    shards = plan.specs.trainer.shards
    net = assemble(plan.parts, plan.state) if shards else module.cpu().net
    return _Trained(net, history, best, phases, device, logger, mirrored)


def _proved(history: History, phases: Phases, module: Classifier) -> Plain:
    """The best epoch of a fit that has one, and whose frozen tensors have not moved."""
    if not history.rows:
        raise DataError("data", "has no batch to train on", "add images", 47)
    if history.best is None:
        what = f"no epoch looked at had a {history.policy.monitor}"
        raise ConfigError("checkpoint.monitor", what, "use val_acc or val_loss", 91)
    phases.prove(module)
    return history.best


def _prepared(
    plan: Plan, net: nn.Module, resume: Path | None, group: ProcessGroup
) -> tuple[Standard, Plain]:
    """What the head's input is standardised by, and what mirrored images were answered: as the run
    began, where it is resumed. ``net`` then is the same on every rank."""
    if resume is not None:
        held = read_resume(resume, plan)
        prepared = from_plain(held.get("standard")), held.get("mirroring") or {}
    else:
        prepared = group.broadcast(prepare_head(plan, net) if group.leads else ({}, {}))
        net.cpu()
    group.broadcast_state(net)
    return prepared


def _loaders(
    plan: Plan, data: Data, val: Samples | None, group: ProcessGroup
) -> tuple[TrainLoader, EvalLoader | None]:
    """Those of the training images and, where there are some, of the validation images."""
    specs, spec = plan.specs, plan.card.input
    share = group.share._replace(begun=specs.begun_ranks)
    samples, pin = plan.split("train"), device_of(specs.trainer.accelerator).type == "cuda"
    train = train_images(samples, spec, specs.augment)
    loader = TrainLoader(train, data.batch_size, data.workers, pin, specs.seed, share)
    loader.order.labels = data.balance(samples.labels)
    if val is None:
        return loader, None
    size = shared_size(len(val), data.eval_batch_size, group.ranks)
    return loader, EvalLoader(eval_images(val, spec, normalise), size, data.workers, pin, share)


def _complete(path: Path, snapshot: Snapshot, net: nn.Module) -> None:
    """Make the best checkpoint whole: what trained and the frozen rest, adapters merged."""
    fill(net, snapshot.state)
    state = merge(net).state_dict()
    whole = Snapshot(snapshot.card.merged(), state, snapshot.progress, run=snapshot.run)
    write_snapshot(path, whole)
