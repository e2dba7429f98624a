"""The Lightning Trainer of a fit, without its banners and with one progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import TQDMProgressBar

from xfer.core.errors import ConfigError
from xfer.training.callbacks.resume_file import AtomicIO
from xfer.training.distributed.group import Team
from xfer.training.distributed.strategy import PhaseDdp, RankEnvironment

if TYPE_CHECKING:
    from xfer.plan.plan import Plan


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
            plugins=[AtomicIO(), RankEnvironment(team)],
            strategy=PhaseDdp() if team.ranks > 1 else "auto",
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
