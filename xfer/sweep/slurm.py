"""What a Slurm cluster can take, asked of Slurm itself before anything is submitted.

The keys of a request (``partition``, ``mem_gb``, ...) are those of ``hydra_plugins/xfer_slurm``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from xfer.core.errors import ConfigError, XferError, closest, raise_all
from xfer.core.files import read_json
from xfer.core.read_back import checked
from xfer.core.run_folder import QUEUED

_WHERE = "hydra.launcher"


@dataclass(frozen=True)
class Request:
    """What one job asks of one node: ``tasks`` processes of ``cpus_per_task`` cores, ``gpus``
    GPUs and ``mem_gb`` gigabytes; it trains on ``devices`` of ``accelerator``."""

    partition: str | None
    devices: int
    tasks: int
    gpus: int
    cpus_per_task: int
    mem_gb: int | None
    accelerator: str = "auto"


class NodeKind(NamedTuple):
    """The largest of a partition's kinds of nodes: cores, memory in MB, GPUs."""

    partition: str
    default: bool
    cpus: int
    memory: int
    gpus: int


def check(request: Request) -> None:
    """Raise ConfigError, all problems together, for what the cluster could never run."""
    if not shutil.which("sbatch"):
        raise ConfigError(
            "hydra/launcher", "there is no Slurm here (no sbatch)", "use hydra/launcher=slots", 75
        )
    # -a: hidden partitions as well; -e: nodes that differ on lines of their own.
    there = nodes(_output("sinfo", "-a", "-e", "-h", "-o", "%P|%c|%m|%G"))
    problems: list[XferError] = []
    if request.tasks != request.devices:
        what = f"is {request.tasks}, trainer.devices is {request.devices}"
        fix = "drop tasks_per_node: it is one task a device"
        problems.append(ConfigError(f"{_WHERE}.tasks_per_node", what, fix, 23))
    on_gpus = request.accelerator == "gpu" or (request.accelerator == "auto" and request.gpus)
    if on_gpus and request.gpus < request.devices:
        what = f"is {request.gpus}, trainer.devices is {request.devices}"
        fix = "drop gpus_per_node: it is one GPU a device"
        problems.append(ConfigError(f"{_WHERE}.gpus_per_node", what, fix, 23))
    raise_all([*problems, *_unfit(request, there)])


def _unfit(request: Request, there: Sequence[NodeKind]) -> list[XferError]:
    """What no node of the partition has enough of."""
    names, wanted = sorted({node.partition for node in there}), request.partition
    if wanted is not None and wanted not in names:
        what = f"there is no partition '{wanted}'"
        return [ConfigError(f"{_WHERE}.partition", what, closest(wanted, names), 74)]
    kinds = [n for n in there if (n.default if wanted is None else n.partition == wanted)]
    if not kinds:
        fix = f"type {_WHERE}.partition=NAME; {closest('', names)}"
        return [ConfigError(f"{_WHERE}.partition", "the cluster has no default", fix, 74)]
    asked = (
        ("gpus_per_node", request.gpus, max(n.gpus for n in kinds), "GPUs"),
        (
            "cpus_per_task",
            request.tasks * request.cpus_per_task,
            max(n.cpus for n in kinds),
            "cores",
        ),
        ("mem_gb", request.mem_gb or 0, max(n.memory for n in kinds) // 1024, "GB"),
    )
    return [
        ConfigError(
            f"{_WHERE}.{key}",
            f"asks for {count} {unit}, and no node of partition '{kinds[0].partition}' "
            f"has more than {most}",
            "ask for less, or another partition",
            74,
        )
        for key, count, most, unit in asked
        if count > most
    ]


def nodes(text: str) -> list[NodeKind]:
    """The kinds of nodes by partition, of ``sinfo -o "%P|%c|%m|%G"``."""
    kinds = []
    for line in text.splitlines():
        name, cpus, memory, gres = line.split("|")
        gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))
        # sinfo writes 8+ where the nodes of one line differ.
        least = int(cpus.rstrip("+")), int(memory.rstrip("+"))
        kinds.append(NodeKind(name.rstrip("*"), name.endswith("*"), *least, gpus))
    return kinds


def largest_array() -> int:
    """How many jobs one array of this cluster may hold."""
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config"), re.M)
    # The largest index is one less, and indices begin at 0.
    return max(1, int(limit[1]) - 1) if limit else 1000


def queued() -> dict[str, str] | None:
    """The jobs of this user that wait, run or end just now, each with its script; ``None`` where
    Slurm gives no answer, which may be a moment's, or is not there."""
    if not shutil.which("squeue"):
        return None
    # -r: a job of an array under its own name, also while the array waits. -a: hidden partitions.
    command = ["squeue", "--me", "-a", "-h", "-r", "-o", "%i|%o"]
    # What a user likes to see, such as SQUEUE_STATES, must not hide a job.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    lines = [line.strip().partition("|") for line in done.stdout.splitlines()]
    return None if done.returncode else {name: script for name, _, script in lines}


class HandedOver(TypedDict):
    """What ``queued.json`` of a run folder says: the job's name in Slurm, and submitit's files.
    Until sbatch has said the name there is none, but for the ``index`` in an array."""

    slurm: str | None
    files: str
    index: NotRequired[int | None]


def handed_over(folder: Path) -> HandedOver | None:
    """The job of Slurm that a run folder was given to; ``None`` where it never was in a queue."""
    try:
        facts: HandedOver = checked(HandedOver, read_json(folder / QUEUED))
    except (OSError, ValueError):
        return None
    return facts


def name_of(facts: HandedOver, known: Mapping[str, str]) -> str | None:
    """What Slurm calls a job that was handed over; ``None`` where it is not among the ``known``.
    Before it has said so, the job is the one of that index whose script is among those files."""
    if facts["slurm"] is not None:
        return facts["slurm"] if facts["slurm"] in known else None
    index = "" if facts.get("index") is None else f"_{facts['index']}"
    ours = [name for name, script in known.items() if script.startswith(f"{facts['files']}/")]
    return next((name for name in ours if name.endswith(index)), None)


def cancel(jobs: Iterable[str]) -> None:
    """Take jobs out of the queue; those at work are asked to stop, and save their state."""
    subprocess.run(["scancel", "--quiet", *jobs], capture_output=True, check=False)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ConfigError("hydra/launcher", f"{command[0]}: {said}", "see whether Slurm runs", 75)
    return done.stdout
