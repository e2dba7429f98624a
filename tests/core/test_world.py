"""What a launcher says in the environment: which ranks there are, and what is refused of it."""

from __future__ import annotations

import re
import shlex

import pytest

from xfer.core import world as module
from xfer.core.errors import LaunchError
from xfer.core.world import World, check_world, launched, refuse_launched, restarted

PLAIN = {
    **{"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
    **{"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
}
TORCHRUN = {
    **PLAIN,
    **{"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job"},
    **{"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
}
SLURM = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"},
    "SLURM_STEP_NODELIST": "localhost,other",
}
COMMAND = "python -m xfer data.root=images"


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM, "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch):
    def give(variables: dict[str, str], **more: str) -> None:
        for name, value in {**variables, **more}.items():
            monkeypatch.setenv(name, value)

    return give


def test_a_process_alone_is_no_world(given) -> None:
    assert launched() is None
    given({"RANK": "0", "WORLD_SIZE": "1"})  # torchrun of one process
    assert launched() is None
    given(SLURM, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")
    assert launched() is None


def test_plain_variables(given) -> None:
    given(PLAIN)
    assert launched() == World("the environment", 2, 4, 0, None, "10.0.0.1", 29500, "0.0")


def test_torchrun_says_how_many_nodes_and_which_attempt(given) -> None:
    given(TORCHRUN)
    assert launched() == World("torchrun", 2, 4, 0, 2, "10.0.0.1", 29500, "job.1", agent=True)
    assert restarted()


def test_slurm_gives_every_step_a_port_and_an_explicit_one_goes_before_it(given) -> None:
    given(SLURM)
    first = launched()
    assert first == World("Slurm", 3, 4, 1, 2, "localhost", first.port, "7.0.0")
    given({}, SLURM_STEP_ID="1")
    second = launched()
    assert second.port != first.port and second.name != first.name
    given({}, MASTER_ADDR="10.0.0.9", MASTER_PORT="1234")
    third = launched()
    assert (third.address, third.port) == ("10.0.0.9", 1234)


def test_torchrun_on_each_node_of_a_slurm_job_is_torchrun(given) -> None:
    given({**SLURM, **TORCHRUN})
    assert launched().launcher == "torchrun"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-12,15],cpu1", "gpu07"), ("a,b", "a"), ("x-[3,5]-y", "x-3-y"), ("n1", "n1")],
)
def test_rank_0_is_on_the_first_node_of_the_list(nodes: str, first: str, monkeypatch) -> None:
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: [])
    module._address.cache_clear()
    assert module._address(nodes) == first


@pytest.mark.parametrize(
    ("missing", "where"), [("MASTER_ADDR", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE")]
)
def test_half_of_the_variables_is_refused(missing: str, where: str, given) -> None:
    given({name: value for name, value in PLAIN.items() if name != missing})
    with pytest.raises(LaunchError, match=f"{missing} is not set") as caught:
        launched()
    # What is typed makes the rest whole.
    name, _, value = re.search(r"export (\w+)(=)(\S+),", caught.value.fix).groups()
    given({name: value})
    assert launched().ranks == 4


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_PORT", "http", "'http', which is no number"),
        ("WORLD_SIZE", "four", "no number"),
        ("RANK", "4", "ranks count from 0"),
    ],
)
def test_what_is_no_rank_is_refused(name: str, value: str, said: str, given) -> None:
    given(PLAIN, **{name: value})
    with pytest.raises(LaunchError, match=said) as caught:
        launched()
    assert caught.value.where == name and caught.value.number == 96


@pytest.mark.parametrize(
    ("variables", "more", "asked", "said"),
    [
        (PLAIN, {"WORLD_SIZE": "3"}, (2, 2), "WORLD_SIZE: is 3, and .* 2 x 2 = 4"),
        (PLAIN, {}, (1, 1), "WORLD_SIZE: is 4, and .* 1 x 1 = 1"),
        (SLURM, {}, (1, 2), "Slurm: has started 4 tasks on 2 nodes, and .* 1 x 2 = 2"),
        (SLURM, {}, (1, 4), "Slurm: has started the 4 ranks on 2 nodes"),
        (TORCHRUN, {}, (4, 1), "torchrun: has started the 4 ranks on 2 nodes"),
    ],
)
def test_another_number_of_ranks_is_refused_with_what_fits(
    variables: dict[str, str], more: dict[str, str], asked: tuple[int, int], said: str, given
) -> None:
    given(variables, **more)
    with pytest.raises(LaunchError, match=said) as caught:
        check_world(*asked, COMMAND, True)
    typed = re.search(r"trainer\.nodes=(\d+) trainer\.devices=(\d+)", caught.value.fix)
    nodes, devices = typed.groups()
    check_world(int(nodes), int(devices), COMMAND, True)


def test_local_ranks_count_from_0_on_each_node(given) -> None:
    given(PLAIN, LOCAL_RANK="2")
    with pytest.raises(LaunchError, match="LOCAL_RANK: is 2"):
        check_world(2, 2, COMMAND, True)


def test_several_nodes_without_a_launcher_are_refused_with_the_command(given) -> None:
    check_world(1, 2, COMMAND, True)
    check_world(2, 2, COMMAND, False)  # a plan, which starts nothing
    with pytest.raises(LaunchError, match="no launcher has started") as caught:
        check_world(2, 2, COMMAND, True)
    srun, torchrun = re.fullmatch(r"type (.*), or on each node (.*)", caught.value.fix).groups()
    assert shlex.split(srun)[:3] == ["srun", "--nodes=2", "--ntasks-per-node=2"]
    assert srun.endswith(COMMAND)
    words = shlex.split(torchrun)
    assert words[0] == "torchrun" and words[-3:] == ["-m", "xfer", "data.root=images"]
    assert words[1:3] == ["--nnodes=2", "--nproc-per-node=2"]


def test_what_every_rank_would_do_again_is_refused(given) -> None:
    refuse_launched("command line", "-m is a whole sweep", "start it once")
    given(TORCHRUN)
    with pytest.raises(LaunchError, match="-m is a whole sweep, and torchrun has started 4 ranks"):
        refuse_launched("command line", "-m is a whole sweep", "start it once")
