"""Fine-tuning asks its images whether they may be flipped, and heeds the answer."""

import json

import pytest
from runs import (
    assert_equal,
    assert_same,
    finish,
    kill,
    only_run,
    rows,
    start,
    wait_for,
)

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.torch_file import load_tensors
from xfer.plan.make import make_plan

SOLVED = ["freeze=lp_ft", "features=auto", "trainer.head_start=solved"]


def found(run):
    return json.loads((run / "result.json").read_text())["mirroring"]


@pytest.mark.slow
def test_digits_are_not_flipped_and_a_run_that_is_killed_knows_it(tmp_path):
    places = {name: tmp_path / name for name in ("whole", "killed", "typed")}
    for place in places.values():
        place.mkdir()
    cache = {"XFER_CACHE": str(tmp_path / "cache")}
    options = [*SOLVED, "augment=auto", "checkpoint.resume=auto"]
    said = finish(start(places["whole"], *options, **cache))
    process = start(places["killed"], *options, **cache)
    wait_for(lambda: any(places["killed"].rglob("last.ckpt")), process)
    kill(process)
    assert "resumed in epoch 1" in finish(start(places["killed"], *options, **cache))
    finish(start(places["typed"], *SOLVED, "augment=light", "augment.flip=0", **cache))
    whole, killed, typed = (only_run(place) for place in places.values())
    verdict = found(whole)
    assert verdict["flips"] is False and verdict["p"] < 0.01
    assert verdict["worse"] > 0.6 * verdict["n"] and verdict["mirrored_acc"] < verdict["acc"]
    line = f"mirrored, {verdict['worse']} of {verdict['n']} held-out images are answered worse"
    assert line in said and "no flips; augment=light flips" in said
    assert_same(killed, whole)
    assert found(killed) == verdict
    # It trains as a run does that was told to leave the flips out, and that asks nothing.
    assert found(typed) is None and rows(typed) == rows(whole)
    ours, theirs = (load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in (whole, typed))
    assert_equal(ours, theirs, "state_dict")


@pytest.mark.parametrize(("digits", "flips"), [("[0,8]", True), ("[5,6,7]", False)])
def test_what_is_its_own_mirror_image_is_flipped_and_nothing_else(
    digits, flips, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    short = [*SOLVED, "augment=auto", "trainer.max_epochs=2", "stages=[fit]", "data.workers=0"]
    result = xfer.run("digits_sgd", [*short, f"data.digits={digits}"])
    assert result.facts["mirroring"]["flips"] is flips
    said = "images are flipped" if flips else "no flips; augment=light flips"
    assert said in (result.folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["augment=auto"], True),
        (["augment=light"], False),
        (["augment=auto", "trainer.head_start=zero"], False),
    ],
)
def test_the_plan_says_so_only_where_images_are_asked(words, told):
    plan = make_plan(compose_specs(["experiment=digits_sgd", *SOLVED, *words]))
    whys = [row["why"] for row in plan.facts["auto"] if row["key"] == "augment"]
    assert any("no flips where over 60 % fare worse mirrored" in why for why in whys) is told
