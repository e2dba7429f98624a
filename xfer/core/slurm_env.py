"""What Slurm says to a process about its job: which task it is, of how many."""

from __future__ import annotations

import os

from xfer.core.errors import ConfigError


def slurm_task() -> tuple[int, int] | None:
    """Number and count where Slurm has started several tasks of this run at once (``srun``)."""
    count = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    number = os.environ.get("SLURM_PROCID", "0")
    if count == "1" or not (count.isdigit() and number.isdigit()):
        return None
    return int(number), int(count)


def check_tasks(devices: int) -> None:
    """Raise ConfigError where Slurm has started another number of tasks than devices."""
    task = slurm_task()
    if task and task[1] != devices:
        raise ConfigError(
            "trainer.devices",
            f"is {devices}, and Slurm has started {task[1]} tasks on "
            f"{os.environ.get('SLURM_STEP_NUM_NODES', '1')} node(s)",
            "ask Slurm for one node and one task a device (--nodes=1 --ntasks-per-node), "
            "or for one task",
            23,
        )
