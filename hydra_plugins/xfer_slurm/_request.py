"""What the launcher's options ask of the cluster for each job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xfer.config.provenance import override_key
from xfer.core.errors import ConfigError
from xfer.sweep.slurm import Request

_SUBMITIT = ("timeout_min", "cpus_per_task", "mem_gb", "tasks_per_node", "gpus_per_node")


def asked(
    params: dict[str, Any], config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], Request]:
    """The launcher's options as plain values, and what they ask of the cluster. Raises ConfigError
    where the jobs differ in their devices."""
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in params.items()
    }
    return plain, _request(plain, config, job_overrides)


def _request(
    plain: dict[str, Any], config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> Request:
    """What the jobs ask of one node. Raises ConfigError where they differ in their devices."""
    configured = OmegaConf.select(config, "trainer.devices") or 1
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
    devices = int(typed.pop()) if typed else int(configured)
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


def parameters(plain: dict[str, Any], request: Request) -> dict[str, Any]:
    """What submitit gets of ``request`` and the launcher's other options."""
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
