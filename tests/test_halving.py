"""A fit that runs out of memory takes smaller batches, if asked to, and stays reproducible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import OPTIONS, assert_same, only_run

from xfer.loader import batches

# Memory that holds LIMIT images: more of them end as torch ends them.
STARVED = """
import os, signal, sys, torch
import xfer.model
from xfer.__main__ import main

whole, steps = xfer.model.Classifier.loss_of, 0

def starved(self, batch):
    global steps
    if len(batch[1]) > LIMIT and self.training:
        raise torch.OutOfMemoryError("out of memory")
    steps += 1
    if steps == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, batch)

xfer.model.Classifier.loss_of = starved
sys.argv = ["xfer", *sys.argv[1:]]
main()
"""
HALVE = ["trainer.on_oom=halve", "checkpoint.resume=auto"]


def run(folder: Path, *extra: str, limit: int = 10**6, killed: int = 0) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    script = STARVED.replace("LIMIT", str(limit)).replace("KILLED", str(killed))
    done = subprocess.run(
        [sys.executable, "-c", script, *OPTIONS, "trainer.max_epochs=2", *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


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
    code, _ = run(tmp_path, *HALVE, limit=9, killed=130)
    assert code == -9
    # Memory is no longer short: the run goes on with the batches that it came to all the same.
    code, said = run(tmp_path, *HALVE)
    assert code == 0, said
    assert_same(only_run(tmp_path), halved)


def test_without_the_option_nothing_is_halved(tmp_path: Path):
    code, said = run(tmp_path, limit=9)
    assert code == 8 and "type data.batch_size=8, which was tried and fits" in said
    assert not list(tmp_path.rglob("memory.json"))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_smaller_batches_make_as_many_steps(factor: int, accumulate: int):
    for size in range(2, 12):
        for count in range(2, 200):
            large = -(-batches(count, size * factor) // accumulate)
            small = -(-batches(count, size) // (accumulate * factor))
            assert small == large, (count, size)
