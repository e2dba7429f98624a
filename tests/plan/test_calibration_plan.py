"""What the plan says of a calibration, what it refuses, and that each remedy works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pictures import folders

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, Problems
from xfer.plan.make import make_plan
from xfer.plan.resume import fingerprint
from xfer.plan.table import brief, table

DIGITS = ["experiment=digits_freeze", "stages=[]"]
SQUEEZENET = ["backbone=squeezenet1_0", "source=none", "data.workers=0", "data.leakage=ignore"]


def planned(*typed: str):
    return make_plan(compose_specs([*DIGITS, *typed]))


def test_auto_is_in_the_plan_with_its_reason() -> None:
    plan = planned()
    row = next(row for row in plan.facts["auto"] if row["key"] == "calibration")
    assert row["value"] == "temperature" and "717 training images" in row["why"]
    assert "vector where" in row["why"]
    assert plan.calibration.layers == ("fc",)
    assert "calibration=temperature" in brief(plan) and "calibration=temperature: " in table(plan)
    assert "vector" not in str(planned("loss=balanced").calibration.decisions()[0].why)
    for typed in (["calibration=none"], ["optim=adamw"]):
        assert not [r for r in planned(*typed).facts["auto"] if r["key"] == "calibration"]
    assert "none: the network is trained step by step" in table(planned("optim=adamw"))


def test_what_is_asked_for_is_in_the_plan_too() -> None:
    steps = ["optim=adamw", "calibration=vector"]
    for text in (brief(planned(*steps)), table(planned(*steps))):
        assert "vector, fitted on the 179 validation images: val then is no longer unseen" in text
    once = ["optim=adamw", "trainer.max_epochs=1", "stages=[fit]"]
    assert "val" not in planned(*once).card.splits
    assert "val" in planned(*once, "calibration=temperature").card.splits
    solved = planned("calibration=temperature")
    assert (solved.calibration.fitted_on, solved.calibration.n) == ("cv", 717)


def test_the_default_leaves_the_fingerprint_as_it_was() -> None:
    config = compose_specs(DIGITS).config
    without = {key: value for key, value in config.items() if key != "calibration"}
    assert fingerprint(config) == fingerprint(without)
    assert fingerprint(config | {"calibration": "none"}) != fingerprint(without)


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        (["checkpoint.path=x.ckpt", "stages=[evaluate]", "calibration=vector"], 13),
        (["calibration=vector", "loss=balanced"], 16),
        (["calibration=vector", "data.sampler=balanced", "optim=adamw"], 16),
    ],
)
def test_what_does_not_go_together_is_refused_and_the_remedy_works(typed, number: int) -> None:
    with pytest.raises((CombinationError, Problems), match=f"E{number:03d}: calibration") as caught:
        make_plan(compose_specs([*DIGITS, *typed]))
    if number == 16:
        (fix,) = re.findall(r"Fix: type (\S+)$", str(caught.value))
        assert make_plan(compose_specs([*DIGITS, *typed, fix])).calibration.method == "temperature"


def test_few_images_are_refused_when_asked_for_and_left_out_otherwise(tmp_path: Path) -> None:
    root = tmp_path / "few"
    folders(root / "train", {"a": 13, "b": 12})
    folders(root / "val", {"a": 3, "b": 2})
    typed = [f"data.root={root}", *SQUEEZENET, "stages=[]"]

    def of(*more: str):
        return make_plan(compose_specs([*typed, *more]))

    assert "25 held-out training images are too few" in of().calibration.why
    assert of("calibration=temperature").calibration.n == 25
    with pytest.raises(CombinationError, match="E014: calibration: temperature is fitted on the 5"):
        of("calibration=temperature", "optim=adamw")
    assert of("calibration=none", "optim=adamw").calibration.method == "none"


def test_vector_asks_for_ten_of_each_class(tmp_path: Path) -> None:
    root = tmp_path / "few"
    folders(root / "train", {"a": 13, "b": 9})
    folders(root / "val", {"a": 3, "b": 2})
    typed = [f"data.root={root}", *SQUEEZENET, "stages=[]"]
    with pytest.raises(CombinationError, match="'b' has 9 among the held-out training") as caught:
        make_plan(compose_specs([*typed, "calibration=vector"]))
    assert "Fix: type calibration=temperature" in str(caught.value)
    make_plan(compose_specs([*typed, "calibration=temperature"]))


def test_a_head_that_cannot_take_it_is_refused() -> None:
    steps = ["optim=adamw", "calibration=temperature"]
    for head in ("mlp", "dropout", "pooled"):
        assert planned(*steps, f"head={head}").calibration.fitted_on == "val"
