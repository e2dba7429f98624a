"""What a launcher says to a process: which rank of a run it is, of how many, and where rank 0 is;
and which cores the process may use.

Slurm (``srun``), ``torchrun`` and plain environment variables all say it in the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from xfer.core.errors import LaunchError

_HERE = "127.0.0.1"
_MEETING = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
_PORTS = range(20_000, 30_000)
"""Where rank 0 of a Slurm step listens unless MASTER_PORT says otherwise: below the ports that
Linux gives to connections, and another one for each step."""


@dataclass(frozen=True)
class World:
    """``ranks`` processes that ``launcher`` has started for one run; this is number ``rank``, and
    number ``local`` on its node. ``nodes`` is how many there are, ``None`` where the launcher does
    not say. All meet at ``address`` and ``port`` under ``name``, which no other start has;
    ``agent`` says that torchrun itself listens there, and rank 0 does not."""

    launcher: str
    rank: int
    ranks: int
    local: int
    nodes: int | None
    address: str
    port: int
    name: str
    agent: bool = False


def launched() -> World | None:
    """The ranks that a launcher has started with this one; ``None`` where this process is alone.

    RANK and WORLD_SIZE, as torchrun sets them, go before Slurm's variables. Raises LaunchError
    where they are no numbers, or say only a part.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return _from_variables(os.environ) if os.environ["WORLD_SIZE"] != "1" else None
    count, number = (os.environ.get(f"SLURM_{key}", "") for key in ("STEP_NUM_TASKS", "PROCID"))
    if count in ("", "1") or not (count.isdigit() and number.isdigit()):
        return None
    return _from_slurm(os.environ, int(number), int(count))


def restarted() -> bool:
    """Whether a launcher has begun this run before: Slurm has queued it again, or torchrun started
    its ranks once more."""
    counts = (f"{launcher}_RESTART_COUNT" for launcher in ("SLURM", "TORCHELASTIC"))
    return any(os.environ.get(count, "0") != "0" for count in counts)


def _from_variables(given: Mapping[str, str]) -> World:
    missing = [name for name in _MEETING if name not in given]
    if missing:
        what = f"is {given['WORLD_SIZE']}, and {' and '.join(missing)} is not set"
        fix = f"type export {missing[0]}={_EXAMPLES[missing[0]]}, or unset WORLD_SIZE"
        raise LaunchError("WORLD_SIZE", what, fix, 0)
    rank, ranks, local, port = (
        _number(given, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    if rank >= ranks:
        what = f"is {rank}, and WORLD_SIZE is {ranks}: ranks count from 0"
        raise LaunchError("RANK", what, f"number the processes 0 to {ranks - 1}", 0)
    by = "torchrun" if "TORCHELASTIC_RUN_ID" in given else "the environment"
    each = given.get("LOCAL_WORLD_SIZE", "")
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return World(
        by,
        *(rank, ranks, local),
        ranks // int(each) if each.isdigit() and int(each) else None,
        *(given["MASTER_ADDR"], port),
        ".".join(given.get(name, "0") for name in names),
        given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


_EXAMPLES = {"MASTER_ADDR": "HOST_OF_RANK_0", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}


def _number(given: Mapping[str, str], name: str) -> int:
    if not given[name].isdigit():
        fix = f"give a number from 0, or type unset {name}"
        raise LaunchError(name, f"is '{given[name]}', which is no number", fix, 0)
    return int(given[name])


def _from_slurm(given: Mapping[str, str], number: int, count: int) -> World:
    nodes = int(given.get("SLURM_STEP_NUM_NODES", "1"))
    parts = ("JOB_ID", "STEP_ID", "RESTART_COUNT")
    name = ".".join(given.get(f"SLURM_{part}", "0") for part in parts)
    port = given.get("MASTER_PORT")
    first = given.get("SLURM_STEP_NODELIST", "")
    address = given.get("MASTER_ADDR") or (_address(first) if nodes > 1 else _HERE)
    return World(
        "Slurm",
        *(number, count),
        int(given.get("SLURM_LOCALID", number)),
        nodes,
        address,
        _number(given, "MASTER_PORT") if port else _PORTS[zlib.crc32(name.encode()) % len(_PORTS)],
        name,
    )


@cache
def _address(nodes: str) -> str:
    """Where the first of a list as ``a[1-3],b`` is reached, which has rank 0: by its name, else as
    Slurm itself reaches it."""
    import socket

    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes, count=1).split(",")[0]
    try:
        socket.getaddrinfo(first, None)
        return first
    except OSError:
        command = ["scontrol", "show", "node", "-o", first]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        reached = re.search(r"\bNodeAddr=(\S+)", said)
        if reached:
            return reached[1]
        what = f"no address is known for the node '{first}'"
        raise LaunchError(
            "MASTER_ADDR", what, "type export MASTER_ADDR=HOST_OF_RANK_0", 0
        ) from None


def check_world(nodes: int, devices: int, command: str, shares: bool) -> None:
    """Raise LaunchError where a launcher has started other ranks than ``nodes`` times ``devices``
    or, for a run that ``shares`` its work on several nodes, where none has. ``command`` is that
    of the run."""
    world, wanted = launched(), nodes * devices
    if world is None:
        if nodes > 1 and shares:
            what = f"is {nodes}, and no launcher has started this process as one of {wanted} ranks"
            raise LaunchError("trainer.nodes", what, f"type {starts(nodes, devices, command)}", 1)
        return
    asked = f"trainer.nodes x trainer.devices is {nodes} x {devices} = {wanted}"
    there = world.nodes or (nodes if world.ranks % nodes == 0 else 1)
    fix = f"type trainer.nodes={there} trainer.devices={max(1, world.ranks // there)}"
    fix += f", or start {wanted} rank{'s' * (wanted != 1)}: {starts(nodes, devices, command)}"
    if world.ranks != wanted:
        if world.launcher == "Slurm":
            what = f"has started {world.ranks} tasks on {there} node{'s' * (there != 1)}"
            raise LaunchError("Slurm", f"{what}, and {asked}", fix, 0)
        raise LaunchError("WORLD_SIZE", f"is {world.ranks}, and {asked}", fix, 0)
    if world.nodes not in (None, nodes):
        what = f"has started the {wanted} ranks on {there} node{'s' * (there != 1)}, and {asked}"
        raise LaunchError(world.launcher, what, fix, 0)
    if world.local >= devices:
        what = f"is {world.local}, and {asked}: on each node they count from 0"
        raise LaunchError("LOCAL_RANK", what, f"number the processes 0 to {devices - 1}", 0)


def starts(nodes: int, devices: int, command: str) -> str:
    """What to type for ``nodes`` times ``devices`` ranks of ``command``, by Slurm or torchrun."""
    script = command.removeprefix("python ")
    srun = f"srun --nodes={nodes} --ntasks-per-node={devices} {command}"
    if nodes == 1:
        return f"{srun}, or torchrun --standalone --nproc-per-node={devices} {script}"
    place = "--rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
    each = f"torchrun --nnodes={nodes} --nproc-per-node={devices} {place} {script}"
    return f"{srun}, or on each node {each}"


def refuse_launched(where: str, doing: str, fix: str) -> None:
    """Raise LaunchError for what each of several ranks would do once more."""
    world = launched()
    if world is not None:
        what = f"{doing}, and {world.launcher} has started {world.ranks} ranks of it"
        raise LaunchError(where, what, fix, 3)
