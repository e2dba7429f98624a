"""One run on a real Slurm of two nodes, two slurmd on this machine: started, killed, requeued.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge: ``pytest -n 0 -m slurm``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranks import CPU, shape
from runs import OPTIONS, assert_same, finish, start

pytestmark = pytest.mark.slurm

NODE = Path(__file__).with_name("node.sh")
NODES = ("one", "two")
# Long enough to be killed in the middle.
TASK = [*OPTIONS, *CPU, "trainer.max_epochs=8"]

SCRIPT = """#!/bin/bash
#SBATCH --job-name=xfer --nodes=2 --ntasks-per-node={devices} --cpus-per-task=1
#SBATCH --requeue --open-mode=append --output=output
srun --kill-on-bad-exit=1 {python} -m xfer {words} run.dir=run
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of two nodes, with names that are no hosts."""
    if os.geteuid() or not shutil.which("slurmctld"):
        pytest.skip("needs root, and slurmctld, slurmd, slurm-client and munge")
    home = tmp_path_factory.mktemp("cluster")
    subprocess.run([NODE, "up", home, *NODES], check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield home
        subprocess.run(["scancel", "--user=root"], check=True, timeout=60)
    subprocess.run([NODE, "down", home], check=True, timeout=60)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def submit(folder: Path, devices: int, *words: str) -> str:
    text = SCRIPT.format(devices=devices, python=sys.executable, words=" ".join(words))
    (folder / "job.sh").write_text(text)
    command = ["sbatch", "--parsable", f"--chdir={folder}", str(folder / "job.sh")]
    return slurm(*command).strip()


def state(job: str) -> str:
    line = slurm("scontrol", "show", "job", "-o", job)
    return line.partition("JobState=")[2].split()[0]


def until(condition: Callable[[], bool], job: str, folder: Path) -> None:
    for _ in range(900):
        if condition():
            return
        assert state(job) not in ("FAILED", "CANCELLED", "NODE_FAIL"), said(folder)
        time.sleep(0.2)
    raise AssertionError(f"job {job} never came that far: {state(job)}\n{said(folder)}")


def said(folder: Path) -> str:
    path = folder / "output"
    return path.read_text() if path.exists() else "nothing"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two devices, without Slurm."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, *TASK[len(OPTIONS) :], "trainer.devices=2", "run.dir=run"))
    return folder / "run"


def test_two_nodes_end_as_two_devices_do(cluster: Path, whole: Path, tmp_path: Path) -> None:
    job = submit(tmp_path, 1, *TASK, *shape(2, 1))
    until(lambda: state(job) == "COMPLETED", job, tmp_path)
    assert "NodeList=one,two" in slurm("scontrol", "show", "job", "-o", job).replace(
        "NodeList=(null)", ""
    )
    assert_same(tmp_path / "run", whole)


def ranks_on(node: str) -> list[int]:
    """The processes of xfer that Slurm has started on a node."""
    ranks = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in words and b"xfer" in command:
            ranks.append(int(folder.name))
    return ranks


@pytest.mark.slow
def test_a_node_that_is_killed_and_comes_back_changes_nothing(
    cluster: Path, whole: Path, tmp_path: Path
) -> None:
    job = submit(tmp_path, 1, *TASK, *shape(2, 1))
    until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists, job, tmp_path)
    # Everything on it at once, as when its power fails.
    daemon = int((cluster / "pid" / "slurmd_two").read_text())
    ranks = [rank for rank in ranks_on("two") if rank not in ranks_on("one")]
    assert ranks
    for process in (daemon, *ranks):
        os.kill(process, signal.SIGKILL)
    slurm("scontrol", "update", "NodeName=two", "State=DOWN", "Reason=killed")
    time.sleep(1)
    # Its registration brings it back (ReturnToService); to ask for that too would race with it.
    subprocess.run(["slurmd", "-N", "two"], check=True, timeout=60)
    until(lambda: state(job) == "COMPLETED", job, tmp_path)
    output = said(tmp_path)
    assert "Restarts=1" in slurm("scontrol", "show", "job", "-o", job)
    assert "resumed in epoch" in output, output
    assert_same(tmp_path / "run", whole)


def test_other_tasks_than_ranks_are_refused_by_name(cluster: Path, tmp_path: Path) -> None:
    job = submit(tmp_path, 1, *TASK, *shape(1, 2))
    for _ in range(300):
        if state(job) in ("FAILED", "COMPLETED"):
            break
        time.sleep(0.2)
    assert state(job) == "FAILED"
    output = said(tmp_path)
    assert "error E096: Slurm: has started the 2 ranks on 2 nodes, and" in output
    assert "type trainer.nodes=2 trainer.devices=1" in output
    assert not (tmp_path / "run").exists()
