"""Of many runs that are given one folder, one works in it; the others leave it alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm

SCRIPT = Path(__file__).with_name("crowd.py")


@pytest.mark.parametrize("runs", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_of_many_runs_on_one_folder_one_works_and_one_that_comes_late_leaves_it_alone(
    runs, tmp_path
):
    said = warm.program(SCRIPT, tmp_path, str(runs), "--late")
    (found,) = (json.loads(line) for line in said if line.startswith("{"))
    *codes, late = found["codes"]
    assert sorted(codes) == [0, *[9] * (runs - 1)] and found["state"] == "finished"
    assert late == 9 and found["untouched"]
