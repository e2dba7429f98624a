"""Jobs on a real Slurm of one node, started here: submitted, preempted, out of time, and resumed.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge: ``pytest -n 0 -m slurm``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import assert_same, finish, rows

from xfer.sweep.study import JOURNAL, open_storage

pytestmark = pytest.mark.slurm

BEGUN: list[subprocess.Popen[str]] = []
NODE = Path(__file__).with_name("node.sh")

# Slow, and easy on the processor: the jobs must still run when their time is over.
PART = """
import time
from dataclasses import dataclass
from xfer.data.augment import Standard

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
    *("experiment=digits_sgd", "augment=slow", "head=dropout", "trainer.accelerator=cpu"),
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
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None) -> Iterator[Path]:
    (tmp_path / "parts.py").write_text(PART)
    (tmp_path / "conf" / "augment").mkdir(parents=True)
    (tmp_path / "conf" / "augment" / "slow.yaml").write_text("_target_: parts.Slow\n")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path
    for process in BEGUN:
        if process.poll() is None:
            process.kill()
            process.communicate()
    BEGUN.clear()


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xfer", "--allow", "parts", "--config-dir", "conf"]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    BEGUN.append(process)
    return process


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


@pytest.mark.slow
def test_a_job_that_is_killed_does_not_hide_the_others(place: Path) -> None:
    work = begin(place, *CPU, *TASK, "seed=0,1", "trainer.max_epochs=5", "hydra.sweep.dir=sweep")
    until(lambda: all(epochs(place / "sweep" / n) >= 1 for n in "01"), work)
    slurm("scancel", "--signal=KILL", "{ArrayJobId}_{ArrayTaskId}".format(**jobs()["1"]))
    output = work.communicate(timeout=600)[0]
    assert work.returncode in (1, 143), output
    # Slurm may have asked it to stop before; then it has said so itself.
    assert re.search(r"job 1, exit (1|143): .*(left no result|stopped by SIG)", output), output
    assert re.search(r"1 of 2 jobs finished, (1 failed|0 failed, 1 unfinished)$", output, re.M)
    state = json.loads((place / "sweep" / "0" / "status.json").read_text())["state"]
    assert state == "finished"


SHORT = [*TASK, "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
RANDOM = ["optim.lr=tag(log,interval(0.001,0.5))", "sweep.sampler=random", "sweep.n_trials=3"]


def slurm_of(run: Path) -> str:
    """What Slurm calls the job in a run folder; nothing before it has one."""
    queued = run / "queued.json"
    return (json.loads(queued.read_text())["slurm"] or "") if queued.is_file() else ""


def finished(run: Path) -> bool:
    status = run / "status.json"
    return status.is_file() and json.loads(status.read_text())["state"] == "finished"


def told(sweep: Path) -> list[str]:
    """What Optuna knows of the trials."""
    storage = open_storage(str(sweep / JOURNAL))
    return [t.state.name for t in storage.get_all_trials(storage.get_all_studies()[0]._study_id)]


def submitted() -> int:
    """How many jobs Slurm has been given so far, an array being one."""
    return int(slurm("sbatch", "--parsable", "--hold", "-o", "/dev/null", "--wrap", "true"))


@pytest.mark.slow
def test_a_slow_job_holds_nothing_back_and_a_killed_sweep_finds_its_jobs_again(place: Path) -> None:
    sweep = place / "sweep"
    before = submitted()
    command = [*CPU, *SHORT, "trainer.max_epochs=4", *RANDOM, "sweep.batch=2"]
    work = begin(place, *command)
    until(lambda: epochs(sweep / "0") >= 1, work)
    slow = slurm_of(sweep / "0")
    slurm("scontrol", "suspend", slow)
    # The next begins beside the one that stands still, and Optuna has been told before.
    until(lambda: slurm_of(sweep / "2"), work)
    assert finished(sweep / "1") and not finished(sweep / "0")
    assert told(sweep) == ["RUNNING", "COMPLETE", "RUNNING"]
    work.kill()
    work.communicate()
    last = slurm_of(sweep / "2")
    again = begin(place, *command)
    until(lambda: finished(sweep / "2"), again)
    slurm("scontrol", "resume", slow)
    output = finish(again)
    assert f"in the queue already: job 0 is {slow}, job 2 is {last}" in output
    assert "3 of 3 jobs finished, 0 failed" in output
    assert not re.findall(r"^job \d: optim", output, re.M), "nothing is begun twice"
    assert told(sweep) == ["COMPLETE"] * 3
    # An array of two has two numbers; one alone, and the one that counts.
    assert submitted() - before == 4


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_and_the_same_command_runs_what_was_cancelled(place: Path) -> None:
    sweep = place / "sweep"
    command = [*CPU, *SHORT, "trainer.max_epochs=9", "seed=0,1"]
    command += ["hydra.launcher.array_parallelism=1"]
    work = begin(place, *command)
    until(lambda: epochs(sweep / "0") >= 1, work)
    work.send_signal(signal.SIGINT)
    output = work.communicate(timeout=60)[0]
    names = [slurm_of(sweep / n) for n in "01"]
    assert work.returncode == 130, output
    assert f"in the queue still: job 0 is {names[0]}, job 1 is {names[1]}" in output
    slurm("scancel", names[1])  # it has not begun
    slurm("scontrol", "suspend", names[0])
    again = begin(place, *command)
    until(lambda: slurm_of(sweep / "1") not in ("", names[1]), again)
    slurm("scontrol", "resume", names[0])
    output = finish(again)
    assert f"in the queue already: job 0 is {names[0]}\n" in output
    assert re.findall(r"^job (\d): seed", output, re.M) == ["1"]
    assert slurm_of(sweep / "0") == names[0]
    assert finished(sweep / "0") and finished(sweep / "1")


@pytest.mark.slow
def test_a_failure_takes_the_others_out_of_the_queue_where_that_is_asked_for(place: Path) -> None:
    sweep = place / "sweep"
    several = ["seed=0,1,2", "hydra.launcher.array_parallelism=2", "trainer.max_epochs=30"]
    work = begin(place, *CPU, *SHORT, *several, "sweep.fail_fast=true")
    until(lambda: all(epochs(sweep / n) >= 1 for n in "01"), work)
    slurm("scancel", slurm_of(sweep / "1"))
    output = work.communicate(timeout=300)[0]
    assert work.returncode == 143, output
    assert "0 of 3 jobs finished, 0 failed, 3 unfinished" in output
    states = [json.loads((sweep / n / "status.json").read_text())["state"] for n in "012"]
    assert states == ["interrupted"] * 3
    assert (sweep / "0" / "checkpoints" / "last.ckpt").exists()
    assert not slurm("squeue", "-h", "-r", "--name=xfer", "-t", "PENDING,RUNNING", "-o", "%i")


def test_what_slurm_refuses_is_told_in_one_line(place: Path) -> None:
    refused = "hydra.launcher.additional_parameters={reservation: nosuch}"
    work = begin(place, *CPU, refused, *SHORT, "seed=0,1")
    output = work.communicate(timeout=120)[0]
    assert work.returncode == 2, output
    assert "Slurm refused" in output and "Traceback" not in output


FOLDED = [*TASK, "data.digits=[5,6]", "data.folds=3", "trainer.max_epochs=8", "optim.lr=0.01"]


def cv(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "result.json").read_text())["cv"])


@pytest.mark.slow
def test_folds_outlive_a_run_that_is_killed_and_end_as_those_of_this_machine(place: Path) -> None:
    run, here = place / "run", place / "here"
    folds = [run / "folds" / n for n in "012"]
    queued = [*CPU[1:], *FOLDED, "run.dir=run", "checkpoint.resume=auto"]
    killed = begin(place, *queued)
    until(lambda: all(epochs(fold) >= 1 for fold in folds), killed)
    names = [slurm_of(fold) for fold in folds]
    killed.kill()
    assert "each a job of Slurm (hydra/launcher=slurm_cpu)" in killed.communicate()[0]
    slurm("scontrol", "suspend", ",".join(names))
    again = begin(place, *queued)
    until(lambda: "in the queue already" in (run / "run.log").read_text(), again)
    slurm("scontrol", "resume", names[1])
    slurm("scancel", names[1])
    slurm("scontrol", "resume", f"{names[0]},{names[2]}")
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 143, output
    listed = "fold 0 is {}, fold 1 is {}, fold 2 is {}".format(*names)
    assert f"in the queue already: {listed}\n" in output
    assert "fold 1 has stopped, its state is saved" in output
    assert "1 of 3 folds unfinished\nstopped; with checkpoint.resume=run the same" in output
    assert [finished(fold) for fold in folds] == [True, False, True]
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit"]) == ("interrupted", 143)
    output = finish(begin(place, *queued))
    assert "2 of 3 folds finished already" in output and "3 of 3: accuracy" in output
    now = [slurm_of(fold) for fold in folds]
    assert (now[0], now[2]) == (names[0], names[2]) and now[1] != names[1]
    finish(begin(place, *FOLDED, "run.dir=here", "hydra.launcher.slots=2"))
    for name in ("predictions_oof.csv", "checkpoints/best.ckpt"):
        assert (run / name).read_bytes() == (here / name).read_bytes(), name
    assert cv(run) == cv(here) and rows(run) == rows(here)
    for fold in folds:
        assert_same(fold, here / "folds" / fold.name)


def test_a_fold_that_cannot_be_trained_takes_the_others_out_of_the_queue(place: Path) -> None:
    wrong = ["optim.lr=9000", "freeze=none", "hydra.launcher.array_parallelism=1", "run.dir=run"]
    work = begin(place, *CPU[1:], *FOLDED, *wrong)
    output = work.communicate(timeout=600)[0]
    assert work.returncode == 7, output
    assert re.search(r"^xfer: error E7\d\d: fold \d: ", output, re.M), output
    assert not slurm("squeue", "-h", "-r", "--name=xfer", "-t", "PENDING,RUNNING", "-o", "%i")


SWEEP = [*CPU, *SHORT, "sweep.dir=sweep"]
FOLDS = [*CPU[1:], *FOLDED, "trainer.max_epochs=2", "run.dir=sweep", "checkpoint.resume=auto"]
KILLED, FAILS = "kill -KILL $PPID", "exit 1"
SBATCH = """#!/bin/sh
{sbatch} "$@" || exit
echo >> {calls}
[ $(wc -l < {calls}) -gt 1 ] || {ends}
"""


@pytest.mark.parametrize(
    ("command", "runs", "ends", "waits"),
    [
        ([*SWEEP, "seed=0,1"], ["0", "1"], KILLED, True),
        pytest.param([*SWEEP, "seed=choice(0)"], ["0"], FAILS, True, marks=pytest.mark.slow),
        pytest.param([*SWEEP, "seed=choice(0)"], ["0"], KILLED, False, marks=pytest.mark.slow),
        pytest.param(
            FOLDS, [f"folds/{fold}" for fold in range(3)], KILLED, True, marks=pytest.mark.slow
        ),
    ],
)
def test_jobs_that_slurm_took_and_nobody_heard_of_are_submitted_again_only_where_they_have_ended(
    place: Path, monkeypatch, command: list[str], runs: list[str], ends: str, waits: bool
) -> None:
    calls, program = place / "calls", place / "sbatch"
    program.write_text(SBATCH.format(sbatch=shutil.which("sbatch"), calls=calls, ends=ends))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    work = begin(place, *command)
    output = work.communicate(timeout=120)[0]
    assert work.returncode == (-signal.SIGKILL if ends == KILLED else 2), output
    assert not any(slurm_of(place / "sweep" / run) for run in runs)
    while not waits and slurm("squeue", "-h", "--name=xfer"):
        slurm("scancel", "--name=xfer")
        time.sleep(0.5)
    output = finish(begin(place, *command))
    names = [slurm_of(place / "sweep" / run) for run in runs]
    listed = ", ".join(f"\\w+ {at} is {name}" for at, name in enumerate(names))
    assert bool(re.search(f"^in the queue already: {listed}$", output, re.M)) == waits, output
    assert all(finished(place / "sweep" / run) for run in runs)
    assert calls.read_text() == ("\n" if waits else "\n\n")
