"""A kill during a save onto another file system tears no file; Lightning's own writer does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("save_kills.py")


def save_kills(*options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict | None = json.loads(done.stdout.splitlines()[-1])
    if found is None:
        pytest.skip("there is one file system only")
    return found


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_during_saves_leave_whole_files(kills):
    found = save_kills("--kills", str(kills))
    assert found["corrupt"] == [] and found["cut"] >= kills // 5, "too few kills hit a save"


@pytest.mark.slow
def test_a_writer_that_moves_its_file_is_found_out():
    assert save_kills("--kills", "300", "--stock")["corrupt"], "no torn file is seen"


@pytest.mark.slow
def test_a_thousand_kills_during_saves_leave_whole_files():
    found = save_kills("--kills", "1000", "--seed", "1")
    assert found["corrupt"] == [] and found["cut"] >= 200
