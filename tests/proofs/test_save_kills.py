"""A kill during a save onto another file system tears no file; Lightning's own writer does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm

SCRIPT = Path(__file__).with_name("save_kills.py")


def save_kills(folder: Path, *options: str) -> dict:
    said = warm.program(SCRIPT, folder, *options)
    (found,) = (json.loads(line) for line in said if line.startswith(("{", "null")))
    if found is None:
        pytest.skip("there is one file system only")
    return found


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_during_saves_leave_whole_files(kills, tmp_path):
    found = save_kills(tmp_path, "--kills", str(kills))
    assert found["corrupt"] == [] and found["cut"] >= kills // 5, "too few kills hit a save"


@pytest.mark.slow
def test_a_writer_that_moves_its_file_is_found_out(tmp_path):
    assert save_kills(tmp_path, "--kills", "300", "--stock")["corrupt"], "no torn file is seen"


@pytest.mark.slow
def test_a_thousand_kills_during_saves_leave_whole_files(tmp_path):
    found = save_kills(tmp_path, "--kills", "1000", "--seed", "1")
    assert found["corrupt"] == [] and found["cut"] >= 200
