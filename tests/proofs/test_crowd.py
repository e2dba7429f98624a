"""Of many runs that are given one folder, one works in it; the others leave it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crowd.py")


def crowd(*options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("runs", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_of_many_runs_on_one_folder_one_works_and_one_that_comes_late_leaves_it_alone(runs):
    found = crowd(str(runs), "--late")
    *codes, late = found["codes"]
    assert sorted(codes) == [0, *[9] * (runs - 1)] and found["state"] == "finished"
    assert late == 9 and found["untouched"]
