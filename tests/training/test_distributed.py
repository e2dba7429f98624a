"""Two real processes train one network: what they share, what one of them alone does, and how a
run of several ends when one of them does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import free_port, start_two
from runs import (
    Process,
    assert_gone,
    assert_same,
    finish,
    in_an_epoch,
    only_run,
    rows,
    start,
    wait_for,
)

from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError
from xfer.core.torch_file import load_tensors
from xfer.plan.make import make_plan

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=16"]
COUNT = "trainer.callbacks=[{_target_: called.Count}]"
PHASED = ["freeze=lp_ft", "freeze.probe_epochs=1", "trainer.max_epochs=2", COUNT]
COLOUR = [
    *("augment=trivial", "augment.rotation=20", "augment.vertical_flip=0.3", "augment.grey=0.2"),
    *("augment.brightness=0.4", "augment.contrast=0.4", "augment.saturation=0.4"),
    "augment.hue=0.1",
]
HEAD = ["freeze=head_only", "head=linear", "trainer.ema_decay=0", "trainer.max_epochs=2", *COLOUR]
# The first rank makes ready for this, which leaves its tensors in another order in memory.
STANDARD = [*HEAD, "trainer.standardize=true"]


CALLED = """
from pathlib import Path

import pytorch_lightning as pl

class Count(pl.Callback):
    steps = 0

    def on_train_batch_end(self, trainer, *_):
        self.steps += 1
        Path(f"rank{trainer.global_rank}").touch()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
"""


def phased(folder: Path, *options: str, begin=start_two, **more: bool) -> Process:
    """A run of two phases on two ranks, each with a callback of the user."""
    (folder / "called.py").write_text(CALLED)
    return begin(folder, *PHASED, *options, XFER_ALLOW="called", **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(phased(folder))
    return only_run(folder)


def ranks_of(process: Process) -> list[int]:
    """The processes that a run has started as further ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [*map(int, children)]


def test_every_validation_image_counts_once(whole):
    result = json.loads((whole / "result.json").read_text())
    assert result["scores"]["val"]["n"] == 179  # odd: two ranks cannot share it evenly
    for row in rows(whole):
        assert float(row["val_acc"]) * 179 == pytest.approx(round(float(row["val_acc"]) * 179))
    # What the ranks found together is what one process finds on the saved weights.
    best = max(float(row["val_acc"]) for row in rows(whole))
    assert result["scores"]["val"]["acc"] == pytest.approx(best, abs=1e-12)
    with (whole / "predictions_val.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 179


def test_phases_freeze_and_train_on_every_rank(whole):
    proof = json.loads((whole / "freeze_proof.json").read_text())
    probe, tune = proof["phases"]
    assert proof["proved"] and probe["proved"] and tune["proved"]
    # The second phase trains what the first had frozen; that the ranks' weights are the same at
    # the end of each phase, the run itself has compared.
    held = {name: hashes["after"] for name, hashes in probe["hashes"].items()}
    assert "conv1.weight" in held and "conv1.weight" not in tune["hashes"]
    state = load_tensors(whole / "checkpoints" / "last.ckpt")["state_dict"]
    assert "net.conv1.weight" in state  # it trains, so it is saved


def test_only_the_first_rank_writes(whole):
    lines = (whole / "run.log").read_text().splitlines()
    assert len([line for line in lines if "epoch 1/2" in line]) == 1
    assert len(rows(whole)) == 2
    plan = json.loads((whole / "plan.json").read_text())
    assert plan["steps"]["devices"] == 2 and plan["steps"]["per_epoch"] == 23


def test_every_rank_has_its_callbacks(whole):
    place = whole.parents[2]
    assert (place / "rank0").exists() and (place / "rank1").exists()
    last = load_tensors(whole / "checkpoints" / "last.ckpt")
    assert last["callbacks"]["Count"] == {"steps": 2 * 23}


def test_a_stop_and_a_kill_change_nothing(whole, tmp_path):
    again = "checkpoint.resume=auto"
    first = phased(tmp_path, again, start_new_session=True)
    wait_for(lambda: in_an_epoch(tmp_path, 0), first)
    ranks = ranks_of(first)
    assert len(ranks) == 1
    os.killpg(first.pid, signal.SIGTERM)  # as a scheduler does: every process of the job
    output = first.communicate(timeout=600)[0]
    assert first.returncode == 143, output
    assert "stopped by SIGTERM" in output
    assert_gone(ranks)
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["state"] == "interrupted"
    second = phased(tmp_path, again)
    wait_for(lambda: in_an_epoch(tmp_path, 23), second)
    ranks = ranks_of(second)
    second.kill()
    second.communicate()
    assert_gone(ranks)
    one = shutil.copytree(only_run(tmp_path), tmp_path / "one")
    finish(phased(tmp_path, again))
    assert_same(only_run(tmp_path), whole)
    assert_goes_on_alone(one, whole)


def assert_goes_on_alone(run: Path, whole: Path) -> None:
    """One device computes both parts of each batch; BatchNorm and dropout: test_other_ranks.py."""
    typed = [*TWO, f"checkpoint.resume={run}", "trainer.devices=1"]
    said = finish(phased(run.parent, *typed, begin=start))
    assert "on each of 2 devices, as it began; now 1 rank, 2 parts of each batch in turn" in said
    ours, theirs = (load_tensors(r / "checkpoints/last.ckpt") for r in (run, whole))
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)
    first, then = json.loads((run / "result.json").read_text())["ranks"]
    assert first == {"after_step": 0, "ranks": 2} and then["ranks"] == 1
    assert then["after_step"] > 23
    # Files count whole batches, whoever writes them.
    of_batches = lambda c: c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]  # noqa: E731
    assert of_batches(ours) == of_batches(theirs)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run(tmp_path):
    run = phased(tmp_path, *TWO, "trainer.max_epochs=50", begin=start)
    wait_for(lambda: in_an_epoch(tmp_path, 0), run)
    (rank,) = ranks_of(run)
    os.kill(rank, signal.SIGKILL)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 8, output
    assert "rank 1" in output and "Traceback" not in output
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["exit"]) == ("failed", 8)
    assert status["last_good_checkpoint"] == "checkpoints/last.ckpt"
    assert_gone([rank])


PART = """
import sys
from dataclasses import dataclass
from xfer.data.augment import Plain
from xfer.core.errors import DataError

@dataclass(frozen=True)
class Broken(Plain):
    seed: int = 0
    def transform(self, spec):
        if sys.argv[0].endswith("rank.py"):
            raise DataError("picture.png", "is broken for rank 1", "mend it", 1)
        return super().transform(spec)
"""


def test_what_another_rank_fails_of_is_what_the_run_says(tmp_path):
    (tmp_path / "parts.py").write_text(PART)
    (tmp_path / "conf" / "augment").mkdir(parents=True)
    (tmp_path / "conf" / "augment" / "broken.yaml").write_text("_target_: parts.Broken\n")
    options = ["--allow", "parts", "--config-dir", "conf", "augment=broken"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    run = start(tmp_path, *TWO, *options, PYTHONPATH=path)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 3, output
    assert "xfer: error E301: picture.png: is broken for rank 1. Fix: mend it" in output
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def head_alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    finish(start(folder, *TWO, *STANDARD))
    return only_run(folder)


def test_two_ranks_train_as_one_with_twice_the_batch(tmp_path):
    both = {"two": TWO, "one": ["data.batch_size=32", "trainer.accelerator=cpu"]}
    for name, shape in both.items():
        (tmp_path / name).mkdir()
        finish(start(tmp_path / name, *shape, *STANDARD))
    two, one = (only_run(tmp_path / name) for name in both)
    ours, theirs = (load_tensors(r / "checkpoints" / "last.ckpt") for r in (two, one))
    for name in ("net.fc.weight", "net.fc.bias"):
        torch.testing.assert_close(
            ours["state_dict"][name], theirs["state_dict"][name], rtol=1e-4, atol=1e-5
        )
    for two_row, row in zip(rows(two), rows(one), strict=True):
        assert two_row["step"] == row["step"] and two_row["val_acc"] == row["val_acc"]
        assert float(two_row["train_loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-5)


@pytest.mark.slow
def test_ranks_train_on_the_features_that_the_first_has_made(head_alone, tmp_path):
    finish(start(tmp_path, *TWO, *STANDARD, "features=require", "features.views=2"))
    run = only_run(tmp_path)
    kept = json.loads((run / "result.json").read_text())["features"]
    assert kept["cached"] and kept["exact"] and not kept["hit"]
    assert rows(run) == rows(head_alone)
    ours, theirs = (load_tensors(r / "checkpoints" / "best.ckpt") for r in (run, head_alone))
    for name, tensor in theirs["state_dict"].items():
        assert ours["state_dict"][name].equal(tensor), name


@pytest.mark.slow
def test_validation_features_come_in_the_batches_that_the_ranks_share(own_cache, tmp_path):
    # One batch would be enough for all images; two ranks share two.
    options = [*TWO, *HEAD, "trainer.max_epochs=1", "data.eval_batch_size=179"]
    for name in ("plain", "kept"):
        (tmp_path / name).mkdir()
    finish(start(tmp_path / "plain", *options, "features=never"))
    finish(start(tmp_path / "kept", *options, "features=require", "features.views=max"))
    plain, kept = (only_run(tmp_path / name) for name in ("plain", "kept"))
    assert_same(kept, plain)
    manifests = (own_cache / "features").glob("*.json")
    keys = [json.loads(path.read_text()).get("key", {}) for path in manifests]
    (val,) = [key for key in keys if key.get("view", 0) is None]
    assert val["chunk"] == 89


@pytest.mark.slow
def test_tasks_that_slurm_started_take_part(head_alone, tmp_path):
    # As srun does: the same command in two processes that know their number.
    tasks = [
        start(
            tmp_path,
            *TWO,
            *STANDARD,
            SLURM_JOB_ID=str(os.getpid()),
            SLURM_STEP_NUM_TASKS="2",
            SLURM_PROCID=str(number),
        )
        for number in (1, 0)
    ]
    for task in tasks:
        finish(task)
    run = only_run(tmp_path)
    assert rows(run) == rows(head_alone)


TWICE = """
import xfer
for seed in (3, 4):
    xfer.run("digits_sgd", [*OPTIONS, f"seed={seed}"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", "variables"])
def test_a_second_run_of_the_same_ranks_has_its_own(tmp_path, launcher):
    short = [*TWO, "trainer.max_epochs=1", "stages=[fit,evaluate]"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if launcher == "slurm":
        env |= {"SLURM_JOB_ID": f"2{os.getpid()}", "SLURM_STEP_NUM_TASKS": "2"}
        keys = ["SLURM_PROCID"]
    else:
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        keys = ["RANK", "LOCAL_RANK"]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TWICE.replace("OPTIONS", repr(short))],
            cwd=tmp_path,
            env={**env, **dict.fromkeys(keys, number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ("1", "0")
    ]
    try:
        outputs = [task.communicate(timeout=600)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
            task.communicate()
    assert [task.returncode for task in tasks] == [0, 0], outputs
    runs = sorted((tmp_path / "outputs" / "digits_sgd").iterdir())
    plans = [json.loads((run / "plan.json").read_text()) for run in runs]
    assert [plan["config"]["seed"] for plan in plans] == [3, 4]
    # The ranks have compared their weights at the end of each.
    assert all(json.loads((run / "freeze_proof.json").read_text())["proved"] for run in runs)


@pytest.mark.slow
def test_other_tasks_end_with_a_first_one_that_cannot_begin(tmp_path):
    wrong = ["trainer.devices=3", "trainer.accelerator=cpu"]
    env = {"SLURM_JOB_ID": f"1{os.getpid()}", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = [start(tmp_path, *wrong, SLURM_PROCID=n, **env) for n in ("1", "0")]
    outputs = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 2], outputs
    assert "Slurm: has started 2 tasks on 1 node, and" in outputs[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.devices=400", "400 devices cannot share"),
        ("trainer.devices=180", "cannot share the 179 images of val"),
        ("trainer.on_oom=halve trainer.devices=2", "halve works on one device only"),
    ],
)
def test_more_devices_than_images_are_told_before_training(override: str, said: str) -> None:
    command = ["experiment=digits_sgd", "trainer.accelerator=cpu", *override.split()]
    with pytest.raises(ConfigError, match=said):
        make_plan(compose_specs(command))


def test_the_command_of_a_rank_needs_no_argument_of_its_own_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xfer.training.distributed.rank", "nowhere", "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 1  # its leader is gone
