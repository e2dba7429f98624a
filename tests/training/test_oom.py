"""A fit that runs out of memory takes smaller batches, if asked to, and stays reproducible."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import warm
from runs import OPTIONS, assert_same, only_run

from xfer.data.sampler import batches

# Memory that holds LIMIT images to train on and SEEN to look at: more of them end as torch ends
# them. At the moment WHEN the process sends itself SIGNAL.
STARVED = """
import os, signal, sys, torch
import xfer.training.fit, xfer.training.oom, xfer.training.module
from xfer.__main__ import main

whole, steps = xfer.training.module.Classifier.loss_of, 0

def reached(moment):
    if moment == "WHEN":
        os.kill(os.getpid(), signal.SIGNAL)

def starved(self, batch):
    global steps
    if len(batch[1]) > LIMIT and self.training:
        reached("the step that fails")
        raise torch.OutOfMemoryError("out of memory")
    steps += 1
    if self.training and steps == 1:
        reached("a smaller one is tried")
    reached(f"step {steps}")
    return whole(self, batch)

def looking(module, inputs):
    if module.__class__.__name__ == "ResNet" and not module.training and len(inputs[0]) > SEEN:
        raise torch.OutOfMemoryError("out of memory")

def before(moment, work):
    def told(*given):
        reached(moment(given[1]))
        return work(*given)
    return told

xfer.training.module.Classifier.loss_of = starved
torch.nn.modules.module.register_module_forward_pre_hook(looking)
xfer.training.oom.write_json = before(
    lambda sizes: f"no checkpoint is left for batches of {sizes['batch_size']}",
    xfer.training.oom.write_json,
)
xfer.training.oom._with = before(
    lambda sizes: f"batches of {sizes['batch_size']} are written down", xfer.training.oom._with
)
sys.argv = ["xfer", *sys.argv[1:]]
main()
"""
HALVE = ["trainer.on_oom=halve", "checkpoint.resume=auto"]


def run(
    folder: Path,
    *extra: str,
    limit: int = 10**6,
    seen: int = 10**6,
    when: str = "",
    sent: str = "SIGKILL",
) -> tuple[int, str]:
    words = {"LIMIT": limit, "SEEN": seen, "WHEN": when, "SIGNAL": sent}
    script = re.sub("|".join(words), lambda found: str(words[found[0]]), STARVED)
    return ended(folder, script, *OPTIONS, "trainer.max_epochs=2", *extra)


def ended(folder: Path, script: str, *options: str) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    process = warm.start(folder, *options, script=script)
    said, _ = process.communicate()
    return process.wait(0), said


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "halved"
    code, said = run(folder, *HALVE, limit=9)
    assert code == 0 and "begins again with batches of 8, 4 a step" in said, said
    return only_run(folder)


def test_what_it_came_to_is_told(halved: Path):
    asked = {"batch_size": 32, "accumulate": 1, "eval_batch_size": 64}
    expected = {"batch_size": 8, "accumulate": 4, "eval_batch_size": 64, "asked": asked}
    assert json.loads((halved / "result.json").read_text())["memory"] == expected
    assert "batches of 8, 4 a step" in (halved / "run.log").read_text()


def test_it_ends_as_the_run_configured_so(halved: Path, tmp_path: Path):
    code, said = run(tmp_path, "data.batch_size=8", "trainer.accumulate=4")
    assert code == 0, said
    assert_same(only_run(tmp_path), halved)


def test_a_kill_after_it_changes_nothing(halved: Path, tmp_path: Path):
    code, _ = run(tmp_path, *HALVE, limit=9, when="step 130")
    assert code == -9
    # Memory is no longer short: the run goes on with the batches that it came to all the same.
    code, said = run(tmp_path, *HALVE)
    assert code == 0, said
    assert_same(only_run(tmp_path), halved)


def test_without_the_option_nothing_is_halved(tmp_path: Path):
    code, said = run(tmp_path, limit=9)
    assert code == 8 and "type data.batch_size=8, which was tried and fits" in said
    assert not list(tmp_path.rglob("memory.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "sent"),
    [
        ("the step that fails", "SIGTERM"),
        ("a smaller one is tried", "SIGTERM"),
        ("batches of 8 are written down", "SIGTERM"),
        ("no checkpoint is left for batches of 8", "SIGKILL"),
    ],
)
def test_a_signal_between_two_attempts_ends_the_run_at_once(
    halved: Path, tmp_path: Path, when: str, sent: str
):
    code, said = run(tmp_path, *HALVE, limit=9, when=when, sent=sent)
    assert code == (143 if sent == "SIGTERM" else -9), said
    # No step of a further attempt was taken.
    assert not list(tmp_path.rglob("last.ckpt")) and not list(tmp_path.rglob("metrics.csv"))
    code, said = run(tmp_path, *HALVE, limit=9)
    assert code == 0, said
    assert_same(only_run(tmp_path), halved)


def test_evaluation_takes_the_batches_that_validation_came_to(tmp_path: Path):
    code, said = run(tmp_path, *HALVE, "trainer.max_epochs=1", seen=20)
    assert code == 0 and "(validation: 16)" in said, said
    sizes = json.loads((only_run(tmp_path) / "memory.json").read_text())
    assert (sizes["batch_size"], sizes["eval_batch_size"]) == (32, 16)
    found = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert found["scores"]["val"]["n"] == 179


# As many MiB more as ROOM, of addresses: torch's own allocator is then refused.
LIMITED = """
import resource, sys, torch
from xfer.__main__ import main
sys.argv = ["xfer", *sys.argv[1:]]
import xfer.training.fit, xfer.evaluation.evaluate
import timm, torchvision, sklearn.datasets, torchmetrics
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (ROOM << 20),) * 2)
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of the address space")
def test_memory_that_truly_ends_is_made_do_with(tmp_path: Path):
    def starve(name: str, *extra: str, room: int = 800) -> tuple[int, str]:
        options = ["experiment=digits_finetune", "stages=[fit,evaluate]", "trainer.max_epochs=1"]
        options += ["backbone.image_size=64", *extra]
        return ended(tmp_path / name, LIMITED.replace("ROOM", str(room)), *options)

    large = ["data.batch_size=700"]
    code, said = starve("default", *large)
    found = re.search(r"E801: data\.batch_size: .*700.*type data\.batch_size=(\d+),", said)
    assert code == 8 and found, said
    code, said = starve("halved", *large, "trainer.on_oom=halve")
    assert code == 0, said
    (halved,) = tmp_path.glob("halved/outputs/*/*")
    sizes = json.loads((halved / "result.json").read_text())["memory"]
    size = sizes["batch_size"]
    assert size * sizes["accumulate"] == 700 and size <= int(found[1])
    # Where memory is plenty, a run of that size ends the same.
    asked = [f"data.batch_size={size}", f"trainer.accumulate={sizes['accumulate']}"]
    code, said = starve("asked", *asked, room=10**5)
    assert code == 0, said
    (whole,) = tmp_path.glob("asked/outputs/*/*")
    assert_same(halved, whole)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_smaller_batches_make_as_many_steps(factor: int, accumulate: int):
    for size in range(2, 12):
        for count in range(2, 200):
            large = -(-batches(count, size * factor) // accumulate)
            small = -(-batches(count, size) // (accumulate * factor))
            assert small == large, (count, size)
