"""Ranks that a launcher has started: they find each other, share the work, and end as one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from ranks import by_variables, free_port, shape, start_two, torchrun
from runs import assert_same, finish, in_an_epoch, only_run, start, wait_for

from xfer.config.hydra import compose_specs
from xfer.core.errors import LaunchError, OutputError, XferError
from xfer.core.files import file_sha256, write_json
from xfer.core.world import World
from xfer.plan.make import make_plan
from xfer.plan.table import table
from xfer.training.distributed.launch import Others
from xfer.training.distributed.rank import _specs
from xfer.training.distributed.rank_store import here, introduction, rank_wait, store_of
from xfer.training.distributed.rendezvous import _await, refuse_other_versions

HEAD = ["freeze=head_only", "head=linear", "trainer.ema_decay=0", "trainer.max_epochs=2"]
# Views in the order of the epochs, so that what is cached is what is computed.
CACHED = [*HEAD, "features=require", "features.views=2"]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Path:
    """Two ranks by environment variables, one a node, with nothing cached yet."""
    folder = tmp_path_factory.mktemp("nodes")
    for run in by_variables(folder, 2, 1, *CACHED, XFER_CACHE=str(folder / "cache")):
        finish(run)
    return folder


@pytest.fixture
def alone(two_nodes: Path, tmp_path: Path) -> Path:
    """The same on two devices of one machine, with another cache."""
    (tmp_path / "run").mkdir()
    finish(start_two(tmp_path / "run", *CACHED, XFER_CACHE=str(tmp_path / "cache")))
    return only_run(tmp_path / "run")


def test_two_nodes_end_as_two_devices_do(two_nodes: Path, alone: Path) -> None:
    run = only_run(two_nodes)
    assert_same(run, alone)
    plan, result = (json.loads((run / f"{n}.json").read_text()) for n in ("plan", "result"))
    assert plan["steps"]["nodes"] == 2 and plan["steps"]["devices"] == 1
    assert result["features"]["cached"] and result["features"]["exact"]
    # What each rank computed is in one entry, and the parts are gone.
    left = [path.name for path in (two_nodes / "cache" / "features").glob(".*")]
    assert left == [], "parts or witnesses"
    # Only rank 0 has written, and said anything.
    log = (run / "run.log").read_text()
    assert log.count("epoch 1/2") == 1


def test_the_plan_alone_says_how_to_start_it() -> None:
    words = ["experiment=digits_sgd", "trainer.accelerator=cpu", *shape(2, 1)]
    with pytest.raises(LaunchError, match=r"trainer\.nodes: is 2, and no launcher"):
        make_plan(compose_specs(words))
    plan = make_plan(compose_specs([*words, "stages=[]"]))
    (remark,) = [r for r in plan.facts["remarks"] if "trainer.nodes=2" in r]
    assert "srun --nodes=2 --ntasks-per-node=1 python -m xfer" in remark
    assert "(batches of 32 on each of 2 nodes)" in table(plan)


@pytest.fixture
def pair() -> Others:
    """Rank 0 of two, at a real store, with nobody there yet."""
    return Others(here()[0], 2)


def test_a_rank_of_other_versions_is_refused_by_name(pair: Others) -> None:
    theirs = introduction()
    pair.place.put("hello1", theirs)
    refuse_other_versions(pair)
    versions = {**theirs["versions"], "torch": "2.13.0"}
    pair.place.put("hello1", {"host": "node7", "versions": versions})
    with pytest.raises(LaunchError, match=r"rank 1 on node7: has torch 2.13.0, rank 0 ") as caught:
        refuse_other_versions(pair)
    wanted = theirs["versions"]["torch"]
    assert f"type python -m pip install torch=={wanted} there" in caught.value.fix


def test_a_rank_that_does_not_come_is_named_after_the_stated_wait(
    pair: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_RANK_WAIT", "0.3")
    began = time.monotonic()
    with pytest.raises(XferError, match=r"has come within 0\.3 s: rank 1 of 2 did not"):
        _await(pair, "hello", "has come")
    assert time.monotonic() - began < 450, "the usual wait is 900 s"
    monkeypatch.setenv("XFER_RANK_WAIT", "soon")
    with pytest.raises(LaunchError, match="XFER_RANK_WAIT: is 'soon'") as caught:
        rank_wait()
    name, value = re.search(r"export (\w+)=(\d+)", caught.value.fix).groups()
    monkeypatch.setenv(name, value)
    assert rank_wait() == 900


def test_a_rank_that_rank_0_does_not_answer_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFER_RANK_WAIT", "0.2")
    port = free_port()
    lonely = World("the environment", 1, 2, 0, None, "127.0.0.1", port, "0.0")
    monkeypatch.setattr("xfer.training.distributed.rank_store._TRY", timedelta(milliseconds=300))
    with pytest.raises(XferError, match=f"{port}: rank 0 has not answered rank 1"):
        store_of(lonely, 1)


def test_a_port_that_is_taken_is_said_with_another() -> None:
    _, port = here()
    leader = World("the environment", 0, 2, 0, None, "127.0.0.1", port, "0.0")
    with pytest.raises(XferError, match="rank 0 cannot listen there") as caught:
        store_of(leader, 1)
    assert f"type export MASTER_PORT={port + 1}" in caught.value.fix


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """A run folder with its plan."""
    plan = make_plan(
        compose_specs(["experiment=digits_sgd", "trainer.accelerator=cpu", "stages=[]"])
    )
    write_json(tmp_path / "plan.json", plan.facts)
    return tmp_path


def word_of(folder: Path) -> dict[str, object]:
    """What rank 0 says of a run in ``folder``."""
    plan, sha256 = json.loads((folder / "plan.json").read_text()), file_sha256(folder / "plan.json")
    asked = {"config": plan["config"], "experiment": plan["experiment"], "begun": None}
    return {**asked, "folder": str(folder), "plan": sha256, "host": "node1"}


def test_a_plan_that_another_rank_does_not_see_is_refused_by_name(planned: Path) -> None:
    world = World("the environment", 1, 2, 0, None, "127.0.0.1", 1, "0.0")
    word = {**word_of(planned), "witness": None}
    assert _specs(world, word, 0).experiment == "digits_sgd"
    with pytest.raises(OutputError, match="is not the file that rank 0 wrote on node1"):
        _specs(world, {**word, "plan": "0" * 64}, 0)
    with pytest.raises(OutputError, match="is not there, and rank 0 wrote it on node1") as caught:
        _specs(world, {**word, "folder": str(planned / "elsewhere")}, 0)
    assert "type run.dir=DIR" in caught.value.fix


def test_a_store_that_another_rank_does_not_see_is_refused_by_name(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_CACHE", str(planned / "cache"))
    world = World("the environment", 1, 2, 0, None, "127.0.0.1", 1, "0.0")
    plan = json.loads((planned / "plan.json").read_text())
    plan["config"]["features"] = {"_target_": "xfer.training.features.AutoFeatures"}
    write_json(planned / "plan.json", plan)
    word = word_of(planned)
    with pytest.raises(OutputError, match="is not there, and rank 0 wrote it on node1") as caught:
        _specs(world, {**word, "witness": "." + "0" * 64}, 0)
    assert "type features.dir=DIR" in caught.value.fix


# What follows starts three or four ranks, or whole agents of torchrun.

OTHER_TORCH = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "2.13.0" if name == "torch" else real(name)
from xfer.training.distributed import rank_store
rank_store.version = importlib.metadata.version
from xfer.__main__ import main
main()
"""

OTHER_CACHE = """
import os
import xfer.training.distributed.rank as rank
os.environ["XFER_CACHE"] = "other"
rank._SEEN = 1.0
from xfer.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_run_with_a_rank_of_another_torch_ends_with_its_name(tmp_path: Path) -> None:
    runs = by_variables(tmp_path, 2, 1, *HEAD, script=OTHER_TORCH)
    output = runs[0].communicate(timeout=600)[0]
    assert runs[0].returncode == 2, output
    assert "error E098: rank 1 on" in output and "has torch 2.13.0, rank 0 " in output
    assert runs[1].communicate(timeout=600) and runs[1].returncode == 0


@pytest.mark.slow
def test_a_rank_with_another_cache_is_refused_by_name(tmp_path: Path) -> None:
    runs = by_variables(tmp_path, 2, 1, *CACHED, script=OTHER_CACHE)
    output = runs[0].communicate(timeout=600)[0]
    assert runs[0].returncode == 9, output
    assert "error E907" in output and "type features.dir=DIR" in output
    runs[1].communicate(timeout=600)


@pytest.mark.slow
def test_three_ranks_by_torchrun_are_three_devices(tmp_path: Path) -> None:
    for name in ("torchrun", "alone"):
        (tmp_path / name).mkdir()
    agent = torchrun(
        tmp_path / "torchrun", "--standalone", "--nproc-per-node=3", options=[*HEAD, *shape(1, 3)]
    )
    finish(agent)
    words = ["trainer.accelerator=cpu", "data.batch_size=16", "trainer.devices=3"]
    finish(start(tmp_path / "alone", *words, *HEAD))
    assert_same(only_run(tmp_path / "torchrun"), only_run(tmp_path / "alone"))


@pytest.mark.slow
def test_four_ranks_on_two_nodes_are_four_devices(tmp_path: Path) -> None:
    for name in ("nodes", "alone"):
        (tmp_path / name).mkdir()
    env = {"XFER_CACHE": str(tmp_path / "cache")}
    for run in by_variables(tmp_path / "nodes", 2, 2, *CACHED, **env):
        finish(run)
    words = ["trainer.accelerator=cpu", "data.batch_size=16", "trainer.devices=4"]
    finish(start(tmp_path / "alone", *words, *CACHED, XFER_CACHE=str(tmp_path / "other")))
    assert_same(only_run(tmp_path / "nodes"), only_run(tmp_path / "alone"))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_by_name_and_begun_again_it_ends_bit_for_bit(
    tmp_path: Path,
) -> None:
    words = ["trainer.max_epochs=3", "freeze=lp_ft", "freeze.probe_epochs=1"]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    for run in by_variables(tmp_path / "whole", 3, 1, *words):
        finish(run)
    again = [*words, "checkpoint.resume=auto"]
    runs = by_variables(tmp_path / "killed", 3, 1, *again)
    wait_for(lambda: in_an_epoch(tmp_path / "killed", 0), runs[0])
    runs[2].kill()
    output = runs[0].communicate(timeout=600)[0]
    assert runs[0].returncode == 1, output
    assert "error E124: trainer.nodes: rank 2 on" in output and "Traceback" not in output
    assert runs[1].communicate(timeout=600) and runs[1].returncode == 1
    for run in by_variables(tmp_path / "killed", 3, 1, *again):
        finish(run)
    assert_same(only_run(tmp_path / "killed"), only_run(tmp_path / "whole"))
    # And so where the node of rank 0 is killed: the others end, and say so.
    runs = by_variables(tmp_path / "killed", 3, 1, *words, "run.dir=second")
    second = tmp_path / "killed" / "second" / "checkpoints" / "last.ckpt"
    wait_for(second.exists, runs[0])
    runs[0].kill()
    for run in runs[1:]:
        output = run.communicate(timeout=600)[0]
        assert run.returncode == 1 and "rank 0 is gone" in output, output
    for run in by_variables(
        tmp_path / "killed", 3, 1, *words, "run.dir=second", "checkpoint.resume=auto"
    ):
        finish(run)
    assert_same(tmp_path / "killed" / "second", only_run(tmp_path / "whole"))


@pytest.mark.slow
def test_torchrun_begins_a_killed_run_again_which_ends_bit_for_bit(tmp_path: Path) -> None:
    """Two agents, a node each; a rank of the second is killed, and both start their ranks anew."""
    words = [*shape(2, 1), "trainer.max_epochs=4", "run.dir=run"]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    agents = []
    place = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    agent = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", place, "--max-restarts=2"]
    agents = [torchrun(tmp_path / "killed", *agent, options=words) for _ in range(2)]
    last = tmp_path / "killed" / "run" / "checkpoints" / "last.ckpt"
    try:
        wait_for(last.exists, agents[0])
        (rank,) = children(agents[1].pid)
        os.kill(rank, signal.SIGKILL)
        outputs = [agent.communicate(timeout=600)[0] for agent in agents]
    finally:
        for each in agents:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert "resumed in epoch" in outputs[0] + outputs[1]
    for run in by_variables(tmp_path / "whole", 2, 1, *words[2:]):
        finish(run)
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


def children(process: int) -> list[int]:
    """The ranks that an agent has started."""
    started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [c for c in map(int, started) if b"xfer" in Path(f"/proc/{c}/cmdline").read_bytes()]
