"""Hydra's view of Slurm: a launcher that asks the cluster first. What it asks is in ``xfer``."""

# No postponed annotations: Hydra 1.3 reads these dataclasses before the module has a name.
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SlurmConf:
    """What each job is given. ``tasks_per_node`` and ``gpus_per_node`` are ``trainer.devices``
    when ``null``; ``mem_gb`` is of the node; ``signal_delay_s`` before the time is over the job
    saves and is queued again, ``max_num_timeout`` times at most; ``array_parallelism`` jobs run
    at once; ``setup`` are shell commands before the job; ``additional_parameters`` are
    ``sbatch``'s own."""

    _target_: str = "hydra_plugins.xfer_slurm.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 240
    cpus_per_task: int = 4
    mem_gb: int | None = None
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    array_parallelism: int = 64
    max_num_timeout: int = 20
    signal_delay_s: int = 120
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"


_STORE = ConfigStore.instance()
_STORE.store(group="hydra/launcher", name="slurm", node=SlurmConf, provider="xfer")


class SlurmLauncher(Launcher):
    """One Slurm job for each job, through submitit, once the cluster could take them."""

    def __init__(self, **params: Any) -> None:
        self.params = params
        self.given: dict[str, Any] = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over."""
        self.given = {
            "hydra_context": hydra_context,
            "task_function": task_function,
            "config": config,
        }

    def check(self, rows: Sequence[Sequence[str]]) -> None:
        """Raise ConfigError for what the cluster could never run of jobs with these overrides."""
        from hydra_plugins.xfer_slurm import _launch

        _launch.check(self.params, self.given, rows)

    def queue(self, shared: Sequence[str] = ()) -> Any:
        """The queue that jobs with the overrides ``shared`` are submitted to, and that nobody has
        to wait for: of a sweep of xfer, or of the folds of a run."""
        from hydra_plugins.xfer_slurm import _launch, _queue

        return _queue.SlurmQueue(_launch.Submitter(self.params, self.given), shared)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """For sweepers other than xfer's: submit all, wait, and say of each job what became of it.
        Raises ConfigError before the first one is submitted."""
        from hydra_plugins.xfer_slurm import _launch

        return _launch.launch(self.params, self.given, job_overrides, initial_job_idx)
