"""The Lightning Trainer of a fit: without its banners and bars, with the live line, and files
that are never torn and hold nothing but data."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins.io import TorchCheckpointIO

from xfer.core.errors import ConfigError
from xfer.core.live_line import working
from xfer.core.run_folder import LAST, PREVIOUS
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.training.distributed.group import ProcessGroup
from xfer.training.distributed.strategy import PhaseDdp, RankEnvironment
from xfer.training.guarded_logger import GuardedLogger

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

    from xfer.config.specs import Specs
    from xfer.config.trainer import TrainerOptions
    from xfer.core.types import Plain
    from xfer.plan.plan import Plan


def lightning_trainer(
    plan: Plan, folder: Path, timeline: pl.Callback, group: ProcessGroup
) -> pl.Trainer:
    """The Trainer of Lightning that the configuration describes; it writes into ``folder``."""
    options, specs = plan.specs.trainer, plan.specs
    share = group.share._replace(begun=specs.begun_ranks)
    built = specs.logger.build(folder, specs.experiment) if group.leads else None
    logger = GuardedLogger(specs.logger, built) if built is not None else False
    shown = [EpochLine(options.epochs)] if group.leads else []
    # The user's first: the timeline ends each moment by saving, their state as well.
    callbacks = [*new_callbacks(specs), timeline, *shown]
    try:
        return pl.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            precision=options.numbers,
            accumulate_grad_batches=options.accumulate * share.pieces,
            gradient_clip_val=options.clip_norm or None,
            deterministic=options.deterministic,
            logger=logger,
            callbacks=callbacks,
            plugins=[AtomicIO(), RankEnvironment(group, options.devices)],
            strategy=_strategy(options, group),
            inference_mode=not options.shards,  # weights that come and go must be able to train
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        what, fix = str(error).splitlines()[0], "mend accelerator, devices or precision"
        if "callback" in what.lower():
            raise ConfigError("trainer.callbacks", what, "mend that list", 21) from error
        raise ConfigError("trainer", what, fix, 92) from error


def _strategy(options: TrainerOptions, group: ProcessGroup) -> DDPStrategy | str:
    if group.ranks == 1:
        return "auto"
    if not options.shards:
        return PhaseDdp()
    from xfer.training.distributed.sharding import Sharded

    return Sharded()


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoints through :mod:`xfer.core.torch_file`: never torn, never code.

    The last resume file stays as ``previous.ckpt`` when a new one takes its place.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write to the target's own folder, sync, read back, rename."""
        path = Path(path)
        check_plain(checkpoint)
        save_tensors(path, checkpoint, partial(_keep_previous, path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = True) -> Any:
        """Read tensors and plain types only."""
        return load_tensors(Path(path))


def _keep_previous(path: Path) -> None:
    # A kill after this leaves a run without last.ckpt, which is resumed from the previous one.
    if path.name == LAST and path.is_file():
        path.replace(path.with_name(PREVIOUS))


class EpochLine(pl.Callback):
    """The live line of the epoch in progress; the timeline logs the finished one in its place."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._shown = ExitStack()
        self._advance: Callable[[float], object] = float

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the steps."""
        self._show(trainer, "", trainer.num_training_batches)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One step more."""
        self._advance(1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the batches of validation."""
        self._show(trainer, ", validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One batch more."""
        self._advance(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is left of the epoch is to write its files."""
        self._show(trainer, ", saving", None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The finished line stands there."""
        self._shown.close()

    def on_exception(self, *args: Any) -> None:
        """An epoch that does not end has no line."""
        self._shown.close()

    def _show(self, trainer: pl.Trainer, what: str, total: float | None) -> None:
        self._shown.close()
        count = int(total) if total is not None and math.isfinite(total) else None
        doing = f"epoch {trainer.current_epoch + 1}/{self._epochs}{what}"
        self._advance = self._shown.enter_context(working(doing, count))


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advertisements and hints stay out of the run; its errors do not."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for hint in (
            # More workers or a pinned loader are choices of the config, not mistakes.
            ".*does not have many workers.*",
            ".*number of training batches.*logging interval.*",
            # A frozen backbone is in evaluation mode on purpose.
            ".*module.* in eval mode.*",
            # A run outside Slurm on a machine that has it is no mistake either.
            ".*`srun` command is available.*",
            # The final model after a cross-validation has no images left to validate on.
            ".*have no `val_dataloader`.*",
            # Lightning asks torch's pytrees in a way that torch is giving up.
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=hint)
        try:
            yield
        finally:
            logger.setLevel(level)


_LIGHTNINGS = {
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"),
    *("optimizer_states", "lr_schedulers", "hparams_name", "hyper_parameters"),
}


def new_callbacks(specs: Specs) -> list[pl.Callback]:
    """One of each, for one fit. Raises ConfigError."""
    return [make() for make in specs.callbacks]


def check_plain(checkpoint: Plain) -> None:
    """Raise ConfigError where a callback put something into a resume file that could not be read
    out of it again, where nothing but numbers, texts and tensors is."""
    for top in checkpoint.keys() - _LIGHTNINGS:
        if problem := _not_plain(checkpoint[top], str(top)):
            what = f"a resume file cannot hold {problem}"
            fix = "save numbers, texts, lists, dicts and tensors alone"
            raise ConfigError("trainer.callbacks", what, fix, 21)


def _not_plain(value: Any, place: str) -> str:
    """What in ``value`` is more than data, and where; nothing where all of it is data."""
    import torch

    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.Tensor):
        return ""
    if type(value) is torch.nn.Parameter:
        return ""
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        parts = [*value.items()]
        problem = next((p for key in value if (p := _not_plain(key, place))), "")
        return problem or next((p for k, v in parts if (p := _not_plain(v, f"{place}.{k}"))), "")
    if type(value) in (list, tuple, set):
        return next((p for i, v in enumerate(value) if (p := _not_plain(v, f"{place}[{i}]"))), "")
    return f"the {type(value).__name__} at {place}"
