"""Which device a run computes on, and its name."""

from __future__ import annotations

import platform

import torch


def device_of(accelerator: str) -> torch.device:
    """Where to run: what ``accelerator`` says, or the best there is."""
    if accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    return torch.device("mps" if accelerator == "mps" else "cpu")


def arithmetic_of(device: torch.device) -> str:
    """What its kernels are chosen by: the GPU's product name, or the processor's instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def device_name(device: torch.device) -> str:
    """The GPU's product name, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
