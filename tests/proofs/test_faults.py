"""A kill before or after any named moment changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import faults
import pytest

# In a step, in a save, in validation, in the best file, after the last epoch, in a feature cache.
QUICK = [
    *("before_forward", "after_rename_of_the_last_file", "before_validation_end"),
    *("after_best_file", "before_freeze_proof", "before_feature_chunk"),
]
MOMENTS = [f"{when}_{point}" for when in ("before", "after") for point in faults.POINTS]


def killed(*options: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, faults.__file__, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_kill_at_a_moment_of_each_kind_changes_nothing_but_for_a_loader_that_forgets_its_place():
    found = killed(*QUICK, "--spoilt=before_forward")
    assert found.pop("spoilt"), "the harness sees no difference where there is one"
    assert found == dict.fromkeys(QUICK, "")


@pytest.mark.slow
def test_a_kill_at_any_other_moment_changes_nothing():
    others = [moment for moment in MOMENTS if moment not in QUICK]
    assert killed(*others) == dict.fromkeys(others, "")
