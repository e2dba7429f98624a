"""A kill before or after any named moment changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import faults
import pytest


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


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return killed()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", faults.POINTS)
def test_a_kill_there_changes_nothing(found: dict[str, str], point: str, when: str):
    assert found[f"{when}_{point}"] == ""


def test_a_loader_that_forgets_its_place_is_found_out():
    assert killed("forward", "--spoilt")["before_forward"]
