"""Of many runs that are given one folder, one works in it; the others leave it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("crowd.py")


def crowd(*options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def test_of_sixteen_runs_on_one_folder_one_works():
    found = crowd("16")
    assert sorted(found["codes"]) == [0, *[9] * 15] and found["state"] == "finished"


def test_a_run_that_comes_late_leaves_the_finished_one_alone():
    assert crowd("1", "--late") == {"codes": [0, 9], "state": "finished", "untouched": True}
