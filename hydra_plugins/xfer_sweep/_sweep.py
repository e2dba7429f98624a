"""From Hydra's objects to :func:`xfer.sweep.scheduler.run_sweep`, and back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hydra_plugins.xfer_slurm._queue import outcome
from hydra_plugins.xfer_sweep._launch import flags, slots
from hydra_plugins.xfer_sweep._space import parse, read
from xfer.config.hydra import as_config_error, build, job_row, prepare_overrides
from xfer.config.provenance import override_key
from xfer.config.specs import Specs
from xfer.config.sweep_spec import SweepSpec
from xfer.sweep.executors.runners import BatchRunner, QueueRunner, SlotRunner
from xfer.sweep.requirements import SweepRequest
from xfer.sweep.scheduler import Runner, run_sweep
from xfer.sweep.space import Job, Parameter, probes

if TYPE_CHECKING:
    from hydra_plugins.xfer_slurm import SlurmLauncher

# What is the sweep's own, or each job's.
_OWN = ("sweep", "checkpoint.resume")


def sweep(
    context: HydraContext, config: DictConfig, launcher: Launcher, typed: Sequence[str]
) -> int:
    """Run the sweep that ``config`` and the ``typed`` overrides describe; its exit code."""
    params = OmegaConf.select(config, "sweep.params") or {}
    listed = {str(key): str(value) for key, value in params.items()}
    space, fixed = parse(listed, typed, context.config_loader)
    jobs = _Jobs(context.config_loader, config, launcher, space, fixed)
    command, named = _command(config, typed)
    folder, values = Path(config.hydra.sweep.dir), partial(read, loader=context.config_loader)
    request = SweepRequest(space, fixed, command, folder, values, named)
    return run_sweep(request, jobs.compose, jobs.runner)


@dataclass
class _Jobs:
    """The jobs of one sweep in Hydra's words."""

    loader: ConfigLoader
    config: DictConfig
    launcher: Launcher
    space: Sequence[Parameter]
    fixed: Sequence[str]

    @property
    def shared(self) -> list[str]:
        """What is the same in all jobs."""
        return [text for text in self.fixed if not _of_sweep(override_key(text))]

    def compose(self, overrides: Sequence[str]) -> Specs:
        """The specs of a job. The sweep's own options are read with the rest, so that mistakes are
        reported together."""
        options = [text for text in self.fixed if _of_sweep(override_key(text))]
        words = prepare_overrides([*self.shared, *options, *overrides])
        try:
            cfg = self.loader.load_sweep_config(self.config, [*words, "hydra.sweep.subdir=0"])
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise as_config_error(error) from error
        return build(cfg)

    def runner(self, specs: Specs) -> Runner:
        """Who runs jobs like that of ``specs``."""
        from hydra_plugins.xfer_sweep import SlotLauncher

        launcher = self.launcher
        if isinstance(launcher, SlotLauncher):
            return SlotRunner(
                slots(launcher, specs.trainer.accelerator, specs.trainer.devices),
                launcher.persistent,
                [*flags(self.config), *self.shared],
            )
        size = _at_once(specs.sweep, launcher)
        if _queues(launcher):
            launcher.check([[*self.shared, *texts] for texts in probes(self.space)])
            return QueueRunner(launcher.queue(self.shared), size)
        return BatchRunner(self.launch, size)

    def launch(self, jobs: Sequence[tuple[Job, Path]]) -> list[tuple[int, str]]:
        """Run jobs through a launcher that blocks."""
        rows = [job_row([*self.shared, *job.overrides], folder) for job, folder in jobs]
        done = self.launcher.launch(rows, initial_job_idx=jobs[0][0].number)
        return [outcome(returned) for returned in done]


def _queues(launcher: Launcher) -> TypeGuard[SlurmLauncher]:
    # Hydra imports its plugins anew when it looks for them, so the class is asked for when needed.
    from hydra_plugins.xfer_slurm import SlurmLauncher

    return isinstance(launcher, SlurmLauncher)


def _at_once(options: SweepSpec, launcher: Launcher) -> int:
    """Jobs that the launcher has at a time: all that are known, fewer where a sampler learns, or
    where the first failure is to end the sweep and the launcher tells of none before all end."""
    if options.sampler == "grid" and (_queues(launcher) or not options.fail_fast):
        return 10**6
    if _queues(launcher):
        return min(options.batch, int(launcher.params["array_parallelism"]))
    return options.batch


def _command(config: DictConfig, typed: Sequence[str]) -> tuple[str, bool]:
    """What was typed, quoted for a shell, and whether it names Hydra's folder of the sweep."""
    raw = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    texts = [str(text) for text in raw]  # type: ignore[union-attr]
    words = [text for text in texts if not text.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "xfer", "-m", *(t.lstrip("+") for t in typed), *words])
    return command, any(text.startswith("hydra.sweep.dir=") for text in texts)


def _of_sweep(key: str) -> bool:
    return key in _OWN or key.startswith("sweep.")
