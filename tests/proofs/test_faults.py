"""A kill before or after any named moment changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import faults
import pytest

# One of each kind; the others take two minutes more.
QUICK = [
    *("forward", "optimizer_step", "save", "rename_of_the_last_file", "validation_end"),
    *("best_file", "early_stop", "freeze_proof", "export", "feature_chunk"),
]
SLOW = [point for point in faults.POINTS if point not in QUICK]


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


def nothing_differs(points: list[str]) -> None:
    expected = {f"{when}_{point}": "" for point in points for when in ("before", "after")}
    assert killed(*points) == expected


def test_a_kill_at_a_moment_of_each_kind_changes_nothing():
    nothing_differs(QUICK)


@pytest.mark.slow
def test_a_kill_at_any_other_moment_changes_nothing():
    nothing_differs(SLOW)


def test_a_loader_that_forgets_its_place_is_found_out():
    assert killed("forward", "--spoilt")["before_forward"]
