"""Hydra's view of xfer's sweeps: a sweeper and a launcher. What they do is in ``xfer``."""

# No postponed annotations: Hydra 1.3 reads these dataclasses before the module has a name.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write


@dataclass
class SweeperConf:
    """Its options are the group ``sweep``."""

    _target_: str = "hydra_plugins.xfer_sweep.XferSweeper"


@dataclass
class SlotsConf:
    """``slots``: how many (``null``: every GPU's share, or one); ``jobs_per_gpu``; ``persistent``:
    a slot imports torch once and forks for every job."""

    _target_: str = "hydra_plugins.xfer_sweep.SlotLauncher"
    slots: int | None = None
    jobs_per_gpu: int = 1
    persistent: bool = False


_STORE = ConfigStore.instance()
_STORE.store(group="hydra/sweeper", name="xfer", node=SweeperConf, provider="xfer")
_STORE.store(group="hydra/launcher", name="slots", node=SlotsConf, provider="xfer")


class SlotLauncher(Launcher):
    """One process a job, one job a slot of this machine."""

    config: DictConfig  # from setup, which Hydra calls first

    def __init__(self, slots: int | None, jobs_per_gpu: int, persistent: bool) -> None:
        self.slots, self.jobs_per_gpu, self.persistent = slots, jobs_per_gpu, persistent

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over."""
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """For sweepers other than xfer's."""
        from hydra_plugins.xfer_sweep import _launch

        return _launch.launch(self, self.config, job_overrides, initial_job_idx)


class XferSweeper(Sweeper):
    """What the group ``sweep`` says, through :mod:`xfer.sweep.scheduler`."""

    # From setup, which Hydra calls first.
    context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over, and make the launcher."""
        from hydra.core.plugins import Plugins

        if folder := OmegaConf.select(config, "sweep.dir"):
            # Launchers put files of their own there, and look here for it.
            with read_write(config.hydra):
                config.hydra.sweep.dir = str(folder)
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """The whole sweep. Ends the program with the code of the first job that failed."""
        from hydra_plugins.xfer_sweep import _sweep

        if code := _sweep.sweep(self.context, self.config, self.launcher, arguments):
            raise SystemExit(code)
