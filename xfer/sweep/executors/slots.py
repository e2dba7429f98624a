"""What one machine offers to jobs: cores for each, or a share of a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from xfer.core.control_groups import usable_cores
from xfer.core.errors import SweepError, plural

KEY = "hydra.launcher.slots"


@dataclass(frozen=True)
class JobSlot:
    """Room for one job at a time: these ``cores`` and, on a machine that has some, this GPU."""

    number: int
    cores: tuple[int, ...]
    gpu: str | None = None

    @property
    def threads(self) -> int:
        """Threads of a job: one a core, or fewer where ``OMP_NUM_THREADS`` says so."""
        asked, most = os.environ.get("OMP_NUM_THREADS", ""), len(self.cores)
        return min(most, int(asked)) if asked.isdigit() and int(asked) else most

    def environment(self) -> dict[str, str]:
        """The environment variables of a job."""
        gpu = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), **gpu}


def divide(count: int | None, per_gpu: int, accelerator: str, devices: int = 1) -> list[JobSlot]:
    """The slots of this machine: ``per_gpu`` on every GPU; without one, ``count`` (default
    1) that divide the cores. Raises SweepError where there is not as much as is asked for, also
    by a job that wants several ``devices``."""
    for key, value in ((KEY, count), ("hydra.launcher.jobs_per_gpu", per_gpu)):
        if value is not None and value < 1:
            raise SweepError(key, f"is {value}", "type 1 or more", 21)
    gpus, cores = visible_gpus() if accelerator in ("auto", "gpu") else [], usable_cores()
    shares = [gpu for gpu in gpus for _ in range(per_gpu)]
    wanted = count or len(shares) or 1
    if shares and devices > 1:
        what = f"is {devices}, but a slot has one GPU"
        fix = "use 1, or a launcher that gives a job several"
        raise SweepError("trainer.devices", what, fix, 18)
    if shares and wanted > len(shares):
        each = f"{plural(len(gpus), 'GPU')} with {plural(per_gpu, 'job')} each"
        what = f"is {wanted}, and there is room for {len(shares)}: {each}"
        raise SweepError(KEY, what, "raise hydra.launcher.jobs_per_gpu, or lower it", 11)
    if wanted > len(cores):
        what = f"{wanted} slots need as many cores, there are {len(cores)}"
        raise SweepError(KEY, what, f"type {KEY}={len(cores)} or fewer", 12)
    edges = [i * len(cores) // wanted for i in range(wanted + 1)]
    return [
        JobSlot(i, tuple(cores[edges[i] : edges[i + 1]]), shares[i] if shares else None)
        for i in range(wanted)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    listed = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [] if done.returncode else [str(at) for at in range(len(listed))]
