"""Ranks of one run as a launcher starts them: by the variables of the environment, or torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import warm
from runs import OPTIONS

# Rank 1 of a run on two devices, forked before that run begins instead of started by it: a third of
# the time. It waits for the environment that it would have had, and ends with rank 0.
FORKED = """
import json, os, signal, subprocess, sys, time
from xfer.training.distributed import launch, rank

theirs, ours = os.pipe()
child = os.fork()
if child == 0:
    os.dup2(theirs, 0)
    os.closerange(3, 1024)
    said = b""
    while not said.endswith(b"\\n"):
        said += os.read(0, 1) or os._exit(0)
    os.environ.clear()
    os.environ.update(json.loads(said))
    sys.path[:] = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.argv = [rank.__file__]
    rank.main()
os.close(theirs)

class Forked:
    def __init__(self, command, stdin, env):
        assert command[-1] == rank.__name__ and env["RANK"] == "1"
        self.pid, self.returncode = child, None
        os.write(ours, json.dumps(env).encode() + b"\\n")

    def poll(self, how=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout):
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self):
        os.close(ours)
        self.poll(0)

class Processes:
    Popen, PIPE, TimeoutExpired = Forked, subprocess.PIPE, subprocess.TimeoutExpired

launch.subprocess = Processes
"""

# Of every rank of every run, wherever it is.
CPU = ["trainer.accelerator=cpu", "data.batch_size=16"]


_reserved: list[socket.socket] = []


def free_port() -> int:
    """A port that the system gives to nobody else while this process lives: it stays bound, so that
    only who asks for this one, and may use an address again as torch does, can listen there."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    _reserved.append(one)
    port: int = one.getsockname()[1]
    return port


def shape(nodes: int, devices: int) -> list[str]:
    return [f"trainer.nodes={nodes}", f"trainer.devices={devices}"]


def start_two(folder: Path, *options: str, start_new_session: bool = False, **env: str) -> warm.Run:
    """A run of the digits on two devices of this machine, both of whose ranks are forked."""
    words, script = [*OPTIONS, *CPU, "trainer.devices=2", *options], FORKED + warm.COMMAND
    return warm.start(folder, *words, script=script, start_new_session=start_new_session, **env)


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
