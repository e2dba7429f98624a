"""Fine-tuning asks its images whether they may be flipped and cropped, and heeds the answers."""

import json

import numpy as np
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
from xfer.data.augment import Plain, Standard
from xfer.plan.make import make_plan
from xfer.training.asked_views import cropping, heeding

SOLVED = ["freeze=lp_ft", "features=auto", "trainer.head_start=solved"]


def found(run, question="mirroring"):
    return json.loads((run / "result.json").read_text())[question]


@pytest.mark.slow
def test_digits_are_neither_flipped_nor_cropped_and_a_run_that_is_killed_knows_it(tmp_path):
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
    finish(start(places["typed"], *SOLVED, "augment=none", **cache))
    whole, killed, typed = (only_run(place) for place in places.values())
    verdict = found(whole)
    assert verdict["flips"] is False and verdict["p"] < 0.01
    assert verdict["worse"] > 0.6 * verdict["n"] and verdict["mirrored_acc"] < verdict["acc"]
    line = f"mirrored, {verdict['worse']} of {verdict['n']} held-out images are answered worse"
    assert line in said and "no flips; augment=light flips" in said
    crops = found(whole, "cropping")
    assert crops["crops"] is False and crops["p"] < 0.01 and crops["acc"] == verdict["acc"]
    line = f"cropped, {crops['lost']} of {crops['n']} held-out images are right no longer"
    assert line in said and "no crops, no flips; augment=light has both" in said
    assert_same(killed, whole)
    assert found(killed) == verdict and found(killed, "cropping") == crops
    # It trains as a run does that was told to take images as they are, and that asks nothing.
    assert found(typed) is None and found(typed, "cropping") is None
    assert rows(typed) == rows(whole)
    ours, theirs = (load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in (whole, typed))
    assert_equal(ours, theirs, "state_dict")


@pytest.mark.parametrize(("digits", "flips"), [("[0,8]", True), ("[5,6,7]", False)])
def test_only_what_is_its_own_mirror_image_may_be_flipped(digits, flips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*SOLVED, "augment=auto", "trainer.max_epochs=2", "stages=[fit]", "data.workers=0"]
    result = xfer.run("digits_sgd", [*short, f"data.digits={digits}"])
    assert result.facts["mirroring"]["flips"] is flips
    assert result.facts["cropping"]["crops"] is False
    said = "they may be flipped" if flips else "no flips; augment=light flips"
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


def asked(n, lost, gained):
    """Which of ``n`` images are right as they are, and which as crops."""
    right, still = np.ones((2, n), np.bool_)
    still[:lost] = False
    right[n - gained :] = False
    return right, still


@pytest.mark.parametrize(
    ("n", "lost", "gained", "crops"),
    [
        (250, 64, 4, False),  # digits
        (244, 10, 3, True),  # photographs
        (250, 29, 4, True),  # exactly the margin
        (250, 30, 4, False),
        (20, 6, 0, True),  # three tenths, which chance explains: p is 1 in 64
        (20, 7, 0, False),
        (10_000, 900, 0, True),  # certain, and little
        (50, 0, 50, True),
        (50, 0, 0, True),
    ],
)
def test_crops_are_left_out_where_surely_a_tenth_fewer_are_answered_right(n, lost, gained, crops):
    found = cropping(*asked(n, lost, gained))
    assert found["crops"] is crops
    assert (found["n"], found["lost"], found["gained"]) == (n, lost, gained)
    assert found["acc"] - found["cropped_acc"] == pytest.approx((lost - gained) / n)


@pytest.mark.parametrize(
    ("flips", "crops", "becomes"),
    [
        (True, True, Standard(scale=(0.4, 1.0))),
        (False, True, Standard(scale=(0.4, 1.0), flip=0.0)),
        (True, False, Plain()),
        (False, False, Plain()),
    ],
)
def test_what_was_found_is_heeded(flips, crops, becomes):
    plan = make_plan(compose_specs(["experiment=digits_sgd", *SOLVED, "augment=auto"]))
    found = {"mirroring": {"flips": flips}, "cropping": {"crops": crops}}
    assert heeding(plan, found).specs.augment == becomes
    assert heeding(plan, {}) is plan
