"""Random SIGKILLs change nothing, and a loader that forgets its place is found out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("survival.py")


def survival(*options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


# The fast suite has the kills and the control of test_faults.py, which need no luck.
pytestmark = pytest.mark.slow


def test_runs_killed_at_random_end_as_the_one_that_was_not():
    found = survival("--kills", "80", "--runs", "40", "--epochs", "2")
    assert found["kills"] >= 80 and found["runs"] >= 40 and found["different"] == []


def test_ranks_over_shards_that_are_killed_at_random_end_as_those_that_were_not():
    found = survival("--kills", "40", "--epochs", "2", "--shards", "--ranks", "2")
    assert found["kills"] >= 40 and found["different"] == []


def test_a_loader_that_forgets_its_place_is_found_out():
    found = survival("--kills", "8", "--epochs", "2", "--spoilt")
    assert found["different"], "the harness sees no difference where there is one"


def test_five_hundred_kills_change_nothing():
    found = survival("--kills", "500", "--seed", "1", "--report")
    assert found["kills"] >= 500 and found["different"] == []
