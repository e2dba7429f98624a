"""From Hydra's jobs to Slurm's, through submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from xfer.cluster import Request, check, is_queued, largest_array
from xfer.errors import ConfigError, XferError
from xfer.places import override_key

_SUBMITIT = ("timeout_min", "cpus_per_task", "mem_gb", "tasks_per_node", "gpus_per_node")
_LOOK_S, _ASK_S = 1.0, 10.0
"""Between two looks at the result's file, and between two questions to the cluster."""


def launch(
    params: dict[str, Any],
    given: dict[str, Any],
    job_overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """See :class:`hydra_plugins.xfer_slurm.SlurmLauncher`."""
    config = given["config"]
    plain, request = asked(params, config, job_overrides)
    try:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    except ImportError as error:
        fix = "install it: pip install 'xfer[slurm]'"
        raise ConfigError("hydra/launcher", f"{error.name} is not installed", fix, 73) from error
    job = SlurmLauncher(submitit_folder=plain["submitit_folder"])
    job.setup(**given)
    Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(
        cluster="slurm",
        folder=plain["submitit_folder"],
        slurm_max_num_timeout=plain["max_num_timeout"],
    )
    executor.update_parameters(name="xfer", **_parameters(plain, request))
    rows = [
        (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
        for number, overrides in enumerate(job_overrides, first)
    ]
    size = largest_array()
    jobs = [
        submitted
        for start in range(0, len(rows), size)
        for submitted in executor.map_array(job, *zip(*rows[start : start + size], strict=True))
    ]
    return [_outcome(submitted) for submitted in jobs]


def asked(
    params: dict[str, Any], config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], Request]:
    """The launcher's options as plain values, and what they ask of the cluster. Raises ConfigError
    where it could never run that."""
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in params.items()
    }
    request = _request(plain, config, job_overrides)
    check(request)
    return plain, request


def _request(
    plain: dict[str, Any], config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> Request:
    """What the jobs ask of one node. Raises ConfigError where they differ in their devices."""
    own = OmegaConf.select(config, "trainer.devices") or 1
    typed = {
        text.partition("=")[2]
        for overrides in job_overrides
        for text in overrides
        if override_key(text) == "trainer.devices"
    }
    if len(typed) > 1:
        raise ConfigError(
            "trainer.devices",
            f"differs between the jobs of one sweep ({', '.join(sorted(typed))})",
            "start a sweep for each",
            23,
        )
    devices = int(typed.pop()) if typed else int(own)
    tasks, gpus = plain["tasks_per_node"], plain["gpus_per_node"]
    return Request(
        partition=plain["partition"],
        devices=devices,
        tasks=devices if tasks is None else tasks,
        gpus=devices if gpus is None else gpus,
        cpus_per_task=plain["cpus_per_task"],
        mem_gb=plain["mem_gb"],
        accelerator=str(OmegaConf.select(config, "trainer.accelerator") or "auto"),
    )


def _parameters(plain: dict[str, Any], request: Request) -> dict[str, Any]:
    values = {**plain, "tasks_per_node": request.tasks, "gpus_per_node": request.gpus or None}
    left_out = {"submitit_folder", "max_num_timeout"}
    return {
        **{key: values[key] for key in _SUBMITIT if values[key] is not None},
        "nodes": 1,
        **{
            f"slurm_{key}": value
            for key, value in values.items()
            if key not in left_out and key not in _SUBMITIT and value not in (None, {})
        },
    }


def _outcome(job: Any) -> JobReturn:
    """Wait for a job; what it returned, or why it returned nothing."""
    first, asked = job.task(0), time.monotonic()
    while not first.paths.result_pickle.exists():
        time.sleep(_LOOK_S)
        if time.monotonic() - asked > _ASK_S:
            asked = time.monotonic()
            if not is_queued(job.job_id) and not _appears(first.paths.result_pickle):
                said = "Slurm has ended it, and it left no result"
                return _failed(job, said)
    try:
        returned: JobReturn = first.result()
    except Exception as error:  # whatever the job's own process could not send as itself
        said = (str(error).strip().splitlines() or ["failed"])[-1]
        return _failed(job, said)
    return returned


def _appears(path: Path) -> bool:
    """Whether a file that may be on its way through a network's file system comes."""
    time.sleep(_ASK_S)
    return path.exists()


def _failed(job: Any, said: str) -> JobReturn:
    found, logged = JobReturn(), job.task(0).paths.stderr
    error = XferError(f"Slurm job {job.job_id}", said, f"see {logged}", 15)
    found.status, found.return_value = JobStatus.FAILED, error
    return found
