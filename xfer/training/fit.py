"""Training: a Lightning Trainer around the classifier, its best epoch kept as ``best.ckpt``."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import TQDMProgressBar

from xfer.adapters import merge
from xfer.decoded import decoded, decoded_limit, fitted
from xfer.errors import ConfigError, DataError, OutOfMemory, ResumeError
from xfer.evaluate import device_name, device_of
from xfer.feed import Feed
from xfer.halving import recall, smaller
from xfer.history import AtomicIO, History
from xfer.joint import followed, led
from xfer.lineage import check_best, read_resume
from xfer.loader import EvalLoader, Pictures, Share, TrainLoader, shared_size
from xfer.log import log
from xfer.memory import free, keep_freed, ran_out, too_large
from xfer.model import Classifier
from xfer.network import assemble, fill
from xfer.phases import Phases
from xfer.preprocess import normalise
from xfer.resume import BEST, START_ANEW
from xfer.signals import stop
from xfer.snapshot import Snapshot, write_snapshot
from xfer.standardize import Standard, from_plain
from xfer.stop_early import Pruned, Prunes
from xfer.strategy import Place, Together
from xfer.team import Team
from xfer.training.fitted import Fitted
from xfer.training.head_start import prepare_head
from xfer.types import Samples

if TYPE_CHECKING:
    from xfer.plan import Plan
    from xfer.specs import Specs


def fit(
    plan: Plan, folder: Path, resume: Path | None = None, prunes: Prunes | None = None
) -> Fitted:
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
    path = folder / "checkpoints" / BEST
    _complete(path, check_best(path, plan, best), done.net)
    log.info(
        f"End training, the best {best['metric']} is: {best['value']:.4f}, "
        f"the best epoch is {best['epoch']}"
    )
    feed, phases = done.phases.feed, done.phases
    return Fitted(
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
    team.same(net)
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
        raise DataError("data", "has no batch to train on", "add images", 46)
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
    return team.told(found)


def out_of_memory(work: Callable[[], object]) -> bool:
    """Whether ``work`` ran out of memory. Raises Stopped where a signal is behind its failure."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        # A signal to the whole group also ends the data workers, which the run cannot do without.
        stop.obey()
        if not ran_out(error):
            raise
        # Nothing may hold the error: its frames hold the tensors that filled the memory.
        return True
    return False


def too_large_error(module: Classifier, plan: Plan) -> OutOfMemory:
    """The error that names the batch size which fits, tried with blank images."""
    data, device = plan.specs.data, device_of(plan.specs.trainer.accelerator)
    assert data is not None
    training = module.training
    module.to(device).zero_grad(set_to_none=True)
    # As much as an optimizer of two moments takes.
    moments = [torch.empty_like(p) for _ in range(2) for p in module.parameters()]

    def step(size: int) -> None:
        images = torch.zeros(size, 3, *plan.card.input.size, device=device)
        labels = torch.zeros(size, dtype=torch.int64, device=device)
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, torch.bfloat16, plan.specs.trainer.precision != "32-true"),
        ):
            loss = module.loss_of((images, labels))
        if training:
            loss.backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)

    key, size = (
        ("data.batch_size", data.batch_size)
        if training
        else ("data.eval_batch_size", data.eval_batch_size)
    )
    error = too_large(key, size, step)
    moments.clear()
    return error


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
    splits, augment = plan.dataset.splits, specs.augment
    train = Pictures(splits["train"], augment.transform(spec), augment.seed)
    val = Pictures(fitted_val, lambda image: normalise(image, spec))
    workers, pin = specs.data.workers, device_of(specs.trainer.accelerator).type == "cuda"
    size = shared_size(len(val), specs.data.eval_batch_size, team.ranks)
    loader = TrainLoader(train, specs.data.batch_size, workers, pin, specs.seed, share)
    loader.order.labels = specs.data.balance(splits["train"].labels)
    return loader, EvalLoader(val, size, workers, pin, share)


def lightning_trainer(
    plan: Plan, folder: Path, callbacks: list[pl.Callback], team: Team
) -> pl.Trainer:
    """The Trainer of Lightning that the configuration describes; it writes into ``folder``."""
    options, specs = plan.specs.trainer, plan.specs
    logger = specs.logger.build(folder, specs.experiment) if team.leads else None
    bar = _ProgressBar() if team.leads and _is_terminal() else None
    try:
        return pl.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.numbers,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.clip_norm or None,
            deterministic=options.deterministic,
            logger=logger or False,
            callbacks=[*callbacks, *([bar] if bar else [])],
            plugins=[AtomicIO(), Place(team)],
            strategy=Together() if team.ranks > 1 else "auto",
            enable_checkpointing=False,
            enable_progress_bar=bar is not None,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(
            "trainer", str(error).splitlines()[0], "mend accelerator, devices or precision", 92
        ) from error


def _is_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


class _ProgressBar(TQDMProgressBar):
    """One bar for the epoch in progress; finished epochs have their line."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def get_metrics(self, trainer: Any, pl_module: Any) -> Any:
        return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advertisements and hints stay out of the run; its errors do not."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # More workers or a pinned loader are choices of the config, not mistakes.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings(
            "ignore", message=".*number of training batches.*logging interval.*"
        )
        # A frozen backbone is in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message=".*module.* in eval mode.*")
        # A run outside Slurm on a machine that has it is no mistake either.
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        # Lightning asks torch's pytrees in a way that torch is giving up.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _complete(path: Path, snapshot: Snapshot, net: torch.nn.Module) -> None:
    """Make the best checkpoint whole: what trained and the frozen rest, adapters merged."""
    if snapshot.frozen is not None:  # else it is whole: a run that goes on had come this far
        fill(net, snapshot.state)
        state = merge(net).state_dict()
        whole = Snapshot(snapshot.card.merged(), state, snapshot.progress, run=snapshot.run)
        write_snapshot(path, whole)
