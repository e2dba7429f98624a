"""What is asked of a cluster before anything is submitted; the cluster itself is in tests/slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from xfer.cluster import Node, Request, check, nodes
from xfer.errors import ConfigError, Problems
from xfer.help import config_dir

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
        Node("cpu", True, 64, 262144, 0),
        Node("gpu", False, 32, 524288, 6),
        Node("old", False, 8, 16000, 1),
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
    found = sorted(Path(config_dir()).glob("hydra/launcher/*.yaml"))
    assert [path.stem for path in found] == ["slurm_cpu", "slurm_gpu", "slurm_gpus"]
    for path in found:
        assert "  - slurm\n" in path.read_text()
