"""What a plan chooses, or says, where less memory is left than a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import folders

from xfer.config.hydra import compose_specs
from xfer.plan.auto import apply
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan

KEYS = ["data.workers", "data.eval_batch_size", "features.batch_size", "export.images"]
STEPS = ["optim=adamw", "trainer.max_epochs=1"]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A plan of SqueezeNet on a folder, made with so many bytes of memory left."""
    root = folders(tmp_path, {"a": 8, "b": 8})
    options = ["experiment=default", f"data.root={root}", "data.leakage=ignore"]
    options += ["backbone=squeezenet1_0", "source=none", "backbone.image_size=224"]

    def plan(free: int, *typed: str) -> Plan:
        monkeypatch.setattr("xfer.plan.make.available", lambda: free)
        return make_plan(compose_specs([*options, "trainer.accelerator=cpu", *typed]))

    return plan


def chosen(plan: Plan) -> dict[str, int]:
    return {d.key: d.value for d in plan.decisions if "of memory are left" in d.why}


def said(plan: Plan) -> list[str]:
    return [remark for remark in plan.facts["remarks"] if "of memory" in remark]


def test_where_memory_suffices_nothing_is_chosen_and_nothing_said(planned) -> None:
    plan = planned(4_000_000_000)
    assert not chosen(plan) and not said(plan)
    assert plan.specs.data.eval_batch_size == 64 and plan.specs.data.workers == 2


def test_in_a_gigabyte_batches_are_small_and_nobody_else_decodes(planned) -> None:
    plan = planned(625_000_000)
    assert chosen(plan) == dict(zip(KEYS, (0, 16, 16, 16), strict=True))
    assert not said(plan), "what was chosen fits"
    data, gate = plan.specs.data, plan.specs.export.gate
    assert (data.workers, data.eval_batch_size, gate.images) == (0, 16, 16)
    assert plan.specs.features.batch_size == 16
    assert plan.specs.data.batch_size == 24, "what is trained together stays"
    why = next(d.why for d in plan.decisions if d.key == "data.workers")
    assert why == "625 MB of memory are left, and the run would take about 1,611 MB"
    assert [row["key"] for row in plan.facts["auto"]][-4:] == KEYS


def test_another_rank_makes_the_same_of_the_choices(planned) -> None:
    plan = planned(625_000_000)
    again = apply(plan.asked, plan.decisions)
    assert (again.data, again.export, again.features) == (
        *(plan.specs.data, plan.specs.export, plan.specs.features),
    )


def test_several_processes_are_left_as_they_are_and_each_counts(planned) -> None:
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=4"]
    plan = planned(1_700_000_000, *two)
    assert not chosen(plan)
    (remark,) = said(plan)
    assert remark.startswith("the run takes about 3,221 MB")


def test_what_was_typed_stays_and_what_fits_is_named(planned) -> None:
    typed = ["data.workers=1", "data.eval_batch_size=64", "features.batch_size=24"]
    plan = planned(625_000_000, *typed, "export.images=64")
    assert not chosen(plan) and plan.specs.data.workers == 1
    (remark,) = said(plan)
    assert "may kill it" in remark
    told = remark.partition(": type ")[2].split()
    assert {word.partition("=")[0] for word in told} == set(KEYS)
    assert not said(planned(625_000_000, *told))


def test_where_steps_train_what_is_answered_together_is_no_choice(planned) -> None:
    plan = planned(625_000_000, *STEPS, "stages=[fit]")
    assert chosen(plan) == {"data.workers": 0} and plan.specs.data.eval_batch_size == 64
    (remark,) = said(plan)
    assert remark.endswith(": type data.eval_batch_size=16")


def test_where_nothing_helps_that_is_said(planned) -> None:
    plan = planned(100_000_000)
    assert plan.specs.data.eval_batch_size == 4
    (remark,) = said(plan)
    assert remark.endswith("give it more, or a smaller image size")


def test_images_that_are_answered_on_another_device_take_none(planned, monkeypatch) -> None:
    class Cuda:
        type = "cuda"

    monkeypatch.setattr("xfer.core.device.device_of", lambda accelerator: Cuda())
    assert not chosen(planned(850_000_000))
    assert set(chosen(planned(700_000_000))) == {"data.workers"}
