"""Jobs on a real Slurm of one node, started here: submitted, preempted, out of time, and resumed.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge: ``pytest -n 0 -m slurm``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import assert_same, finish, rows

pytestmark = pytest.mark.slurm

NODE = Path(__file__).with_name("node.sh")

# Slow, and easy on the processor: the jobs must still run when their time is over.
PART = """
import time
from dataclasses import dataclass
from xfer.augment import Standard

@dataclass(frozen=True)
class Slow(Standard):
    def transform(self, spec):
        inner = super().transform(spec)
        def slow(image):
            time.sleep(0.003)
            return inner(image)
        return slow
"""
TASK = [
    *("experiment=digits_freeze", "augment=slow", "head=dropout", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=30", "checkpoint.every_n_steps=5", "checkpoint.keep=2"),
    "stages=[fit,evaluate]",
]
CPU = ["-m", "hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm with four cores and two GPUs that only it believes in."""
    if os.geteuid() or not shutil.which("slurmctld"):
        pytest.skip("needs root, and slurmctld, slurmd, slurm-client and munge")
    home = tmp_path_factory.mktemp("cluster")
    subprocess.run([NODE, "up", home], check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
        yield
        subprocess.run(["scancel", "--user=root"], check=True, timeout=60)
    subprocess.run([NODE, "down", home], check=True, timeout=60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None) -> Path:
    (tmp_path / "parts.py").write_text(PART)
    (tmp_path / "conf" / "augment").mkdir(parents=True)
    (tmp_path / "conf" / "augment" / "slow.yaml").write_text("_target_: parts.Slow\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xfer", "--allow", "parts", "--config-dir", "conf"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def jobs() -> dict[str, dict[str, str]]:
    """What Slurm knows of every job of the latest array, by its index."""
    lines = slurm("scontrol", "show", "job", "-o").splitlines()
    known = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    arrays = [facts for facts in known if facts.get("ArrayTaskId", "").isdigit()]
    latest = max(int(facts["ArrayJobId"]) for facts in arrays)
    return {f["ArrayTaskId"]: f for f in arrays if int(f["ArrayJobId"]) == latest}


def until(condition, process: subprocess.Popen[str]) -> None:
    """Returns when ``condition`` holds; else the process ends with the test."""
    try:
        for _ in range(1200):
            if condition():
                return
            assert process.poll() is None, "the jobs ended before"
            time.sleep(0.2)
        raise AssertionError(f"the jobs never came that far: {jobs()}")
    except BaseException:
        process.kill()
        print(process.communicate()[0])
        raise


def restarts(index: str) -> int:
    return int(jobs()[index]["Restarts"])


def epochs(run: Path) -> int:
    return len(rows(run)) if (run / "metrics.csv").is_file() else 0


def test_jobs_that_are_preempted_or_out_of_time_end_as_if_nothing_had_been(place: Path) -> None:
    sweep = place / "sweep"
    # What the three differ in decides no number, so they must end alike.
    several = ["data.decoded_gb=0.1,0.2,0.3", f"hydra.sweep.dir={sweep}"]
    asked = ["hydra.launcher.timeout_min=30", "hydra.launcher.signal_delay_s=60"]
    alone = begin(place, *TASK, "run.dir=alone")
    work = begin(place, *CPU, *asked, *TASK, *several)
    until(lambda: all(epochs(sweep / n) > 1 for n in "012"), work)
    # Slurm looks at time limits twice a minute; what is left must be less than signal_delay_s.
    minutes, seconds = map(int, jobs()["0"]["RunTime"].split(":")[-2:])
    limit = minutes + 1 + (seconds > 25)
    name = "{ArrayJobId}_{ArrayTaskId}".format(**jobs()["0"])
    slurm("scontrol", "update", f"JobId={name}", f"TimeLimit={limit}")
    until(lambda: restarts("0") == 1, work)
    slurm("scontrol", "update", f"JobId={name}", "TimeLimit=30")
    # Two of the four cores are busy now, and one of them must be given up.
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-c", "3", "-o", "/dev/null", "--wrap"]
    slurm(*urgent, "sleep 2")
    until(lambda: restarts("1") + restarts("2") >= 1, work)
    assert "urgent" in slurm("squeue", "-h", "-t", "all", "-o", "%P")
    finish(work)
    said = "".join(path.read_text() for path in sweep.glob("*/run.log"))
    assert "stopped by SIGUSR2" in said and "stopped by SIGTERM" in said
    finish(alone)
    for number in "012":
        assert json.loads((sweep / number / "status.json").read_text())["state"] == "finished"
        assert_same(sweep / number, place / "alone")


def test_two_tasks_train_one_network(place: Path) -> None:
    two = [*TASK, "augment=standard", "trainer.max_epochs=3", "trainer.devices=2"]
    finish(begin(place, *CPU, *two, "seed=choice(0)", "hydra.sweep.dir=sweep"))
    assert "NumTasks=2 CPUs/Task=1" in slurm("scontrol", "show", "job", "-o")
    finish(begin(place, *two, "seed=0", "run.dir=alone"))
    assert_same(place / "sweep" / "0", place / "alone")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hydra.launcher.partition=usuel", "there is no partition 'usuel'. Fix: did you mean"),
        ("hydra.launcher.gpus_per_node=3", "asks for 3 GPUs, and no node of partition 'usual'"),
    ],
)
def test_what_cannot_run_is_told_before_the_first_job(place: Path, wrong: str, said: str) -> None:
    work = begin(place, *CPU, wrong, *TASK, "seed=0,1")
    output = work.communicate(timeout=120)[0]
    assert work.returncode == 2 and said in output
    assert len(output.splitlines()) == 1
    assert not list(place.rglob(".submitit"))


def test_a_job_that_is_killed_does_not_hide_the_others(place: Path) -> None:
    work = begin(place, *CPU, *TASK, "seed=0,1", "trainer.max_epochs=5", "hydra.sweep.dir=sweep")
    until(lambda: all(epochs(place / "sweep" / n) >= 1 for n in "01"), work)
    slurm("scancel", "--signal=KILL", "{ArrayJobId}_{ArrayTaskId}".format(**jobs()["1"]))
    output = work.communicate(timeout=600)[0]
    assert work.returncode == 1, output
    # Slurm may have asked it to stop before; then it has said so itself.
    assert re.search(r"job 1, exit 1: .*(left no result|stopped by SIG)", output), output
    assert "1 of 2 jobs finished, 1 failed" in output
    state = json.loads((place / "sweep" / "0" / "status.json").read_text())["state"]
    assert state == "finished"
