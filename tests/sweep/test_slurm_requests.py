"""What is asked of a cluster before anything is submitted; the cluster itself is in tests/slurm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydra_plugins.xfer_slurm import SlurmConf
from hydra_plugins.xfer_slurm._launch import Submitter
from hydra_plugins.xfer_slurm._queue import SlurmQueue
from xfer.config.help import config_dir
from xfer.core import control_groups
from xfer.core.errors import ConfigError, Problems
from xfer.sweep.slurm import NodeKind, Request, check, handed_over, nodes
from xfer.sweep.space import Job

SINFO = """cpu*|64|262144+|(null)
gpu|32+|524288|gpu:a100:4(S:0-1),gpu:t4:2,license:1
old|8|16000|gpu:1
"""
ASKED = Request("gpu", 2, 2, 2, 8, 64)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that answer as Slurm's do; that they do, the real ones show in tests/slurm."""
    for name, answer in (("sinfo", SINFO), ("sbatch", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'X'\n{answer}X\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_sinfo_is_read() -> None:
    assert nodes(SINFO) == [
        NodeKind("cpu", True, 64, 262144, 0),
        NodeKind("gpu", False, 32, 524288, 6),
        NodeKind("old", False, 8, 16000, 1),
    ]


@pytest.mark.usefixtures("cluster")
def test_what_fits_is_not_refused() -> None:
    check(ASKED)
    check(Request(None, 1, 1, 0, 64, 256))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partition": "gpus"}, "there is no partition 'gpus'. Fix: did you mean 'gpu'?"),
        ({"gpus": 7}, "asks for 7 GPUs, and no node of partition 'gpu' has more than 6"),
        ({"cpus_per_task": 17}, "asks for 34 cores, and no node of partition 'gpu' has more than"),
        ({"mem_gb": 600}, "asks for 600 GB, and no node of partition 'gpu' has more than 512"),
        ({"tasks": 1}, "tasks_per_node: is 1, trainer.devices is 2"),
        ({"gpus": 1, "accelerator": "gpu"}, "gpus_per_node: is 1, trainer.devices is 2"),
        ({"partition": None, "gpus": 2}, "no node of partition 'cpu' has more than 0"),
    ],
)
def test_what_the_cluster_could_never_run_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(Request(**{**vars(ASKED), **change}))
    assert said in str(caught.value)


@pytest.mark.usefixtures("cluster")
def test_problems_are_told_together() -> None:
    with pytest.raises(Problems) as caught:
        check(Request("old", 2, 1, 3, 16, 64))
    assert len(str(caught.value).splitlines()) == 4


def test_without_slurm_the_way_around_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no Slurm here"):
        check(ASKED)


def test_every_launcher_is_one_that_the_plugin_gives() -> None:
    found = {
        path.stem: path.read_text() for path in Path(config_dir()).glob("hydra/launcher/*.yaml")
    }
    assert sorted(found) == ["local", "slurm_cpu", "slurm_gpu", "slurm_gpus"]
    for name, text in found.items():
        assert ("  - slots\n" if name == "local" else "  - slurm\n") in text


SBATCH = """#!/bin/sh
echo "Submitted batch job 4$(ls {home} | wc -l)"
cp "$1" {home}/$(date +%s%N)
echo "${{OMP_NUM_THREADS-none}}" > {home}.threads
exit {code}
"""


class Cluster:
    """Slurm's programs in ``folder``: what sbatch takes is in ``home``, though it may leave with
    ``code``, and squeue has what is in ``queue``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, code: int = 0):
        pytest.importorskip("submitit")
        programs = folder / "bin"
        self.home, self.queue, self.sweep = folder / "home", folder / "queue", folder / "sweep"
        for place in (programs, self.home):
            place.mkdir()
        answers = {"scontrol": f"echo '{limit}'", "squeue": f"cat {self.queue}", "srun": ""}
        texts = {name: f"#!/bin/sh\n{answer}\n" for name, answer in answers.items()}
        for name, text in {**texts, "sbatch": SBATCH.format(home=self.home, code=code)}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def submitter(self) -> Submitter:
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(self.sweep)}}})
        given = {"hydra_context": None, "task_function": None, "config": config}
        own = {key: value for key, value in vars(SlurmConf()).items() if key != "_target_"}
        return Submitter({**own, "submitit_folder": f"{self.sweep}/.submitit"}, given)


@pytest.mark.parametrize(
    ("limit", "sizes"), [("MaxArraySize            = 3", [2, 2, 1]), ("", [5])]
)
def test_an_array_is_no_larger_than_the_cluster_takes(
    limit: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, monkeypatch, limit)
    submitter = cluster.submitter()
    submitter.submit([(number, [f"seed={number}"]) for number in range(3, 8)], cluster.sweep)
    scripts = [path.read_text() for path in sorted(cluster.home.iterdir())]
    asked = [re.findall(r"^#SBATCH --array=0-(\d+)%", text, re.M) for text in scripts]
    assert [int(found[0]) + 1 if found else 1 for found in asked] == sizes
    names = [f"4{array}_{at}" for array, size in enumerate(sizes) for at in range(size)]
    shown = [job.job_id for _, job in sorted(submitter.jobs.items())]
    assert shown == ([*names[:-1], "42"] if limit else names)
    assert sorted(submitter.jobs) == [3, 4, 5, 6, 7]


def test_jobs_that_sbatch_did_not_tell_of_are_found_by_their_script_and_get_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("submitit.core.utils")
    cluster = Cluster(tmp_path, monkeypatch, "", code=1)
    jobs = [(Job(number, (f"seed={number}",), {}), tmp_path / str(number)) for number in (5, 3)]
    for _, folder in jobs:
        folder.mkdir()
    with pytest.raises(ConfigError, match="Slurm refused"):
        SlurmQueue(cluster.submitter()).submit(jobs)
    (script,) = tmp_path.glob(".submitit/*/.*.sh")
    first, second, queue = "39_0|/there/a.sh\n39_1|(null)\n", f"40_0|{script}\n", cluster.queue
    queue.write_text(first)
    again = SlurmQueue(cluster.submitter())
    assert not any(again.rejoin(job.number, folder) for job, folder in jobs)
    queue.write_text(f"{first}40_1|{script}\n{second}")
    again = SlurmQueue(cluster.submitter())
    assert all(again.rejoin(job.number, folder) for job, folder in jobs)
    assert again.names == {5: "40_0", 3: "40_1"}
    for job, folder in jobs:
        assert handed_over(folder)["slurm"] == again.names[job.number]
        call = utils.DelayedSubmission.load(again.submitter.jobs[job.number].paths.submitted_pickle)
        assert call.args[2] == job.number and f"++seed={job.number}" in call.args[0]


def test_ctrl_c_while_sbatch_works_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches all that the terminal started, sbatch as well."""
    Cluster(tmp_path, monkeypatch, "")
    programs = tmp_path / "bin"
    for name, text in (("sinfo", f"cat <<'X'\n{SINFO}X\n"), ("sbatch", "kill -INT 0; sleep 60\n")):
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    typed = ["-m", "experiment=digits_freeze", "hydra/launcher=slurm_cpu", "seed=0,1"]
    run = subprocess.run(
        [sys.executable, "-m", "xfer", *typed],
        cwd=tmp_path,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 130, run.stderr
    assert "Slurm refused" not in run.stderr and "Traceback" not in run.stderr


def test_a_job_is_not_told_how_many_processors_its_login_node_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_groups, "processors_left", lambda *_: 2.0)
    monkeypatch.delenv(control_groups.THREADS, raising=False)
    cluster = Cluster(tmp_path, monkeypatch, "")
    for typed in (None, "3"):
        if typed:
            monkeypatch.setenv(control_groups.THREADS, typed)
        control_groups.compute_on_busy_cores()
        assert os.environ[control_groups.THREADS] == (typed or str(control_groups.busy_cores()))
        cluster.submitter().submit([(0, ["seed=0"])], cluster.sweep)
        assert (tmp_path / "home.threads").read_text() == f"{typed or 'none'}\n"
