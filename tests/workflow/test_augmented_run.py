"""Whole runs with the options and keys of ``augment``: the same bits however they come about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import assert_same, finish, in_an_epoch, kill, only_run, start, wait_for

import xfer

COLOUR = [
    *("augment.rotation=20", "augment.vertical_flip=0.3", "augment.grey=0.2"),
    *("augment.brightness=0.4", "augment.contrast=0.4", "augment.saturation=0.4"),
    "augment.hue=0.1",
]
# What the three have in common needs one of them; the loader is tried with each, in test_augment.
OPTIONS = [
    "augmix",
    pytest.param("trivial", marks=pytest.mark.slow),
    pytest.param("auto_augment", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("augment", OPTIONS)
def test_workers_a_kill_and_a_resume_change_no_bit(augment: str, tmp_path: Path) -> None:
    options = [f"augment={augment}", *COLOUR]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = start(tmp_path / "whole", *options, "data.workers=2")
    first = start(tmp_path / "killed", *options, "checkpoint.resume=auto")
    wait_for(lambda: in_an_epoch(tmp_path / "killed", 0), first)
    kill(first)
    finish(start(tmp_path / "killed", *options, "checkpoint.resume=auto"))
    finish(whole)
    assert_same(only_run(tmp_path / "killed"), only_run(tmp_path / "whole"))


@pytest.mark.parametrize("augment", OPTIONS)
def test_a_head_is_solved_on_views_that_differ(
    augment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["stages=[fit,evaluate]", "data.digits=[5,6]"]
    options = [*few, f"augment={augment}", "features.views=2"]
    one, again = (xfer.run("digits_freeze", options) for _ in range(2))
    other = xfer.run("digits_freeze", [*options, "augment.seed=1"])
    facts = [json.loads((run.folder / "result.json").read_text()) for run in (one, again, other)]
    assert [fact["features"]["views"] for fact in facts] == [2, 2, 2]
    assert [fact["features"]["hit"] for fact in facts] == [False, True, False]
    assert facts[0]["scores"] == facts[1]["scores"] != facts[2]["scores"]
    assert facts[0]["solved"]["cv_loss"] != facts[2]["solved"]["cv_loss"]
    # A head on the evaluation view alone is another one.
    bare = xfer.run("digits_freeze", few)
    assert bare.facts is not None
    assert bare.facts["scores"]["val"]["loss"] != facts[0]["scores"]["val"]["loss"]
