"""Whether a run can train on the devices that it asks for: found before anything is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xfer.errors import ConfigError
from xfer.ranks import check_tasks

if TYPE_CHECKING:
    from xfer.specs import Specs


def check_devices(specs: Specs, sizes: Mapping[str, int]) -> None:
    """Raise ConfigError for devices that are not there, or more than ``sizes`` (images by split)
    can feed."""
    trainer = specs.trainer
    check_tasks(trainer.devices)
    if trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and trainer.devices > 1):
        check_gpus(trainer.accelerator, trainer.devices)
    if trainer.devices == 1:
        return
    if trainer.accelerator == "mps":
        raise ConfigError("trainer.devices", "Apple's GPU is one device", "use 1", 67)
    # Batch normalisation cannot train on one image; a rank without any would wait for the others.
    for split, least in (("train", 2), ("val", 1)):
        if 0 < sizes.get(split, 0) < least * trainer.devices:
            raise ConfigError(
                "trainer.devices",
                f"{trainer.devices} devices cannot share the {sizes[split]} images of {split}",
                f"use {max(1, sizes[split] // least)} at most",
                68,
            )


def check_gpus(accelerator: str, devices: int) -> None:
    """Raise ConfigError where this machine has fewer GPUs than ``devices``, or none at all."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "gpu" and not there:
        raise ConfigError("trainer.accelerator", "there is no GPU here", "use trainer=cpu", 88)
    if 0 < there < devices:
        raise ConfigError(
            "trainer.devices",
            f"is {devices}, and there is {there} GPU here"
            if there == 1
            else f"is {devices}, and there are {there} GPUs here",
            f"use {there} at most, or trainer.accelerator=cpu",
            69,
        )
