"""Ranks of one run as a launcher starts them: by the variables of the environment, or torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import warm
from runs import OPTIONS

# Of every rank of every run, wherever it is.
CPU = ["trainer.accelerator=cpu", "data.batch_size=16"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def shape(nodes: int, devices: int) -> list[str]:
    return [f"trainer.nodes={nodes}", f"trainer.devices={devices}"]


def by_variables(
    folder: Path, nodes: int, devices: int, *options: str, script: str = warm.COMMAND, **env: str
) -> list[warm.Run]:
    """All ranks of a run of the digits, rank 0 first; ``script`` is what the last one does."""
    return by_variables_alone(folder, nodes, devices, *OPTIONS, *options, script=script, **env)


def by_variables_alone(
    folder: Path, nodes: int, devices: int, *options: str, script: str = warm.COMMAND, **env: str
) -> list[warm.Run]:
    """The same of a run of which only ``options`` are known."""
    count, port, runs = nodes * devices, str(free_port()), []
    for rank in range(count):
        says = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank % devices)}
        meets = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **says, **env}
        words = [*options, *CPU, *shape(nodes, devices)]
        does = script if rank == count - 1 else warm.COMMAND
        runs.append(warm.start(folder, *words, script=does, **meets))
    return runs


def torchrun(folder: Path, *agent: str, options: list[str]) -> subprocess.Popen[str]:
    """An agent of torchrun in a new session, with its ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "xfer"]
    return subprocess.Popen(
        [*command, *OPTIONS, *CPU, *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
