"""A kill before or after any named moment changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import faults
import pytest
import warm

# In a step, between the best file and the save, in a feature cache.
QUICK = ["before_forward", "after_best_file", "before_feature_chunk"]
MOMENTS = [f"{when}_{point}" for when in ("before", "after") for point in faults.POINTS]


def killed(folder: Path, *options: str) -> dict[str, str]:
    said = warm.program(faults.__file__, folder, *options)
    (found,) = (json.loads(line) for line in said if line.startswith("{"))
    return found


def test_a_kill_at_a_moment_of_each_kind_changes_nothing_but_for_a_loader_that_forgets_its_place(
    tmp_path: Path,
):
    found = killed(tmp_path, *QUICK, "--spoilt=before_forward")
    assert found.pop("spoilt"), "the harness sees no difference where there is one"
    assert found == dict.fromkeys(QUICK, "")


@pytest.mark.slow
def test_a_kill_at_any_other_moment_changes_nothing(tmp_path: Path):
    others = [moment for moment in MOMENTS if moment not in QUICK]
    assert killed(tmp_path, *others) == dict.fromkeys(others, "")
