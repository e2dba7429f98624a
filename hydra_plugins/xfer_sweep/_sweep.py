"""From Hydra's objects to :func:`xfer.conduct.conduct`, and back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hydra_plugins.xfer_slurm import SlurmLauncher
from hydra_plugins.xfer_sweep import SlotLauncher
from hydra_plugins.xfer_sweep._launch import flags, slots
from hydra_plugins.xfer_sweep._space import parse
from xfer.conduct import Asked, Runner, conduct
from xfer.config import build, prepare_overrides, told
from xfer.errors import JobFailed, XferError
from xfer.places import override_key
from xfer.runners import BatchRunner, SlotRunner, quoted
from xfer.specs import Specs
from xfer.sweep.space import Job

# What is the sweep's own, or each job's.
_OWN = ("sweep", "checkpoint.resume")


def sweep(
    context: HydraContext, config: DictConfig, launcher: Launcher, typed: Sequence[str]
) -> int:
    """Run the sweep that ``config`` and the ``typed`` overrides describe; its exit code."""
    params = OmegaConf.select(config, "sweep.params") or {}
    listed = {str(key): str(value) for key, value in params.items()}
    space, fixed = parse(listed, typed, context.config_loader)
    shared = [text for text in fixed if not _is_own(override_key(text))]

    def composed(overrides: Sequence[str], subdir: str) -> list[str]:
        own = f"hydra.sweep.subdir={subdir}"
        return [*prepare_overrides([*shared, *overrides]), own]

    def compose(overrides: Sequence[str]) -> Specs:
        # The sweep's own options are read with the rest, once, so that mistakes are told together.
        own = [text for text in fixed if text not in shared]
        try:
            cfg = context.config_loader.load_sweep_config(config, composed([*own, *overrides], "0"))
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise told(error) from error
        return build(cfg, cfg.hydra)

    def runner(specs: Specs) -> Runner:
        if isinstance(launcher, SlotLauncher):
            return SlotRunner(
                slots(launcher, specs.trainer.accelerator, specs.trainer.devices),
                launcher.persistent,
                [*flags(config), *shared],
            )
        _ask(launcher, shared)
        size = specs.sweep.batch if specs.sweep.sampler != "grid" else 10**6
        return BatchRunner(launch, size)

    def launch(jobs: Sequence[tuple[Job, Path]]) -> list[tuple[int, str]]:
        rows = []
        for job, folder in jobs:
            own = [f"hydra.sweep.dir={quoted(str(folder.parent))}", "++checkpoint.resume=auto"]
            rows.append([*composed(job.overrides, folder.name), *own])
        return [_outcome(r) for r in launcher.launch(rows, initial_job_idx=jobs[0][0].number)]

    raw = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    named = any(str(text).startswith("hydra.sweep.dir=") for text in raw)  # type: ignore[union-attr]
    words = [str(t) for t in raw if not str(t).startswith("hydra.mode=")]  # type: ignore[union-attr]
    command = shlex.join(["python", "-m", "xfer", "-m", *(t.lstrip("+") for t in typed), *words])
    asked = Asked(space, fixed, command, Path(config.hydra.sweep.dir), named)
    return conduct(asked, compose, runner)


def _ask(launcher: Launcher, shared: Sequence[str]) -> None:
    """Raise XferError where the launcher knows by now that it could not run such jobs."""
    if isinstance(launcher, SlurmLauncher):
        launcher.check(shared)


def _is_own(key: str) -> bool:
    return key in _OWN or key.startswith("sweep.")


def _outcome(done: JobReturn) -> tuple[int, str]:
    if done.status is JobStatus.COMPLETED:
        return 0, ""
    error = done._return_value
    if isinstance(error, JobFailed):
        return int(error.args[0]), str(error.args[1])
    if isinstance(error, XferError):
        return error.exit, str(error)
    return 1, f"{type(error).__name__}: {error}"
