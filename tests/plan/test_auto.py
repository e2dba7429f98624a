"""What the plan decides: each choice with its reason, and an override that fixes it."""

from __future__ import annotations

import json

import pytest

from xfer.config.hydra import compose_specs
from xfer.core import bf16
from xfer.core.errors import ConfigError
from xfer.plan import auto
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan
from xfer.plan.table import table
from xfer.training.optim import AdamW, Exact
from xfer.training.schedule import Constant, Cosine

PLAIN = ["experiment=default", "data=digits", "backbone=digits_resnet", "source=digits_0_4"]


@pytest.fixture(autouse=True)
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "_has_instructions", lambda: False)


def planned(*options: str) -> Plan:
    return make_plan(compose_specs([*PLAIN, "stages=[]", *options]))


def chosen(plan: Plan) -> dict[str, object]:
    return {row["key"]: row["value"] for row in plan.facts["auto"]}


def test_the_plain_command_solves_its_head() -> None:
    plan = planned()
    assert isinstance(plan.specs.optim, Exact)
    assert chosen(plan)["optim"] == "exact"


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("optim.lr=0.1", "optim.lr"),
        ("trainer.max_epochs=3", "trainer.max_epochs"),
        ("schedule=cosine", "schedule"),
        ("optim.weight_decay=0.1", "optim.weight_decay"),
        ("head=mlp", "head is not linear"),
        ("head=dropout", "head draws random numbers"),
        ("head=remap data=digits_0_4", "head begins from the source's rows"),
        ("freeze=none", "freeze"),
        ("freeze=lora", "freeze"),
        ("features=never", "features"),
        ("augment=mixed", "augment"),
        ("trainer.patience=3", "trainer.patience"),
        ("checkpoint.every_n_epochs=1", "checkpoint.every_n_epochs"),
        ("stages=[lr_find]", "stages"),
    ],
)
def test_what_only_steps_heed_asks_for_them_and_the_plan_says_which(option: str, key: str) -> None:
    plan = planned(*option.split())
    assert isinstance(plan.specs.optim, AdamW)
    (row,) = (row for row in plan.facts["auto"] if row["key"] == "optim")
    assert row["value"] == "adamw" and f"{row['why']} ".startswith(f"{key} ")


def test_every_choice_is_a_line_and_each_override_is_taken_as_it_is_printed() -> None:
    """Typed back, all choices give the same plan, without one left to make."""
    for options in ((), ("freeze=lp_ft",), ("freeze=lora",), ("head=mlp",)):
        plan = planned(*options)
        shown = table(plan)
        rows = plan.facts["auto"]
        typed = []
        for row in rows:
            value = str(row["value"]).lower() if isinstance(row["value"], bool) else row["value"]
            assert f"{row['key']}={value}: {row['why']}" in shown
            typed.append(f"{row['key']}={value}")
        again = planned(*options, *typed)
        assert set(chosen(again)) <= {"data.decoded_gb"}
        assert again.specs.trainer == plan.specs.trainer or isinstance(plan.specs.optim, Exact)
        assert type(again.specs.optim) is type(plan.specs.optim)
        assert again.phases == plan.phases


def test_explicit_values_win() -> None:
    plan = planned("freeze=none", "optim.lr=0.003", "trainer.max_epochs=7", "augment=strong")
    assert plan.specs.optim.rate == 0.003
    assert plan.specs.trainer.epochs == 7
    assert type(plan.specs.augment).__name__ == "Strong"
    assert not {"optim.lr", "trainer.max_epochs", "augment"} & set(chosen(plan))


def test_steps_have_a_warm_up_a_cosine_and_a_rate_by_rule() -> None:
    plan = planned("freeze=none")
    assert isinstance(plan.specs.schedule, Cosine)
    assert plan.specs.schedule.warmup_epochs == pytest.approx(0.1 * plan.specs.trainer.epochs)
    tuned, whole, new = (
        planned(*options).specs.optim.rate
        for options in (["freeze=lp_ft"], ["freeze=none"], ["freeze=none", "source=none"])
    )
    assert whole < tuned <= new
    big, small = (planned("head=mlp", f"data.batch_size={n}").specs.optim.rate for n in (128, 32))
    assert big == pytest.approx(2 * small, rel=0.02)
    sgd = planned("head=mlp", "optim=sgd", "optim.lr=auto", "data.batch_size=32").specs.optim.rate
    assert sgd == pytest.approx(10 * small)


def test_fine_tuning_begins_at_the_solved_head_and_the_probe_of_lp_ft_is_done() -> None:
    plan = planned("freeze=lp_ft")
    assert chosen(plan)["trainer.head_start"] == "solved"
    assert [phase.name for phase in plan.phases] == ["fine-tune"]
    assert plan.phases[0].start == 0
    kept = planned("freeze=lp_ft", "freeze.probe_epochs=2", "trainer.max_epochs=4")
    assert [phase.name for phase in kept.phases] == ["linear probe", "fine-tune"]
    assert chosen(planned("freeze=none", "source=none"))["trainer.head_start"] == "zero"
    assert chosen(planned("freeze=lp_ft", "optim=sgd"))["trainer.head_start"] == "zero"


def test_the_steps_of_the_average_are_those_of_the_run() -> None:
    """717 images of which four are a batch: the last one alone makes no step."""
    plan = planned("freeze=lp_ft", "data.batch_size=4")
    (row,) = (row for row in plan.facts["auto"] if row["key"] == "trainer.ema_decay")
    assert f"over all {plan.total_steps} steps" in row["why"]
    assert row["value"] == round(1 - 1 / plan.total_steps, 5)


def test_the_tutorials_keep_their_own_values() -> None:
    for name in ("digits_sgd", "digits_finetune"):
        plan = make_plan(compose_specs([f"experiment={name}"]))
        own = {"trainer.head_start", "trainer.ema_decay", "data.decoded_gb", "checkpoint.mode"}
        assert set(chosen(plan)) <= own
        assert plan.specs.trainer.averages == 0
        assert chosen(plan)["trainer.head_start"] == "zero"
        assert plan.specs.trainer.standardize is False
        assert plan.specs.trainer.numbers == "32-true"


def test_the_choices_are_facts_of_the_plan_and_make_the_same_specs_elsewhere() -> None:
    """As a rank does it, which has the plan's facts and specs of its own."""
    specs = compose_specs([*PLAIN, "stages=[]", "freeze=none"])
    plan = make_plan(specs)
    rows = json.loads(json.dumps(plan.facts["auto"]))
    again = auto.apply(specs, [auto.Decision(**row) for row in rows])
    assert (again.optim, again.schedule, again.trainer, again.augment) == (
        *(plan.specs.optim, plan.specs.schedule, plan.specs.trainer, plan.specs.augment),
    )
    assert isinstance(auto.apply(compose_specs([*PLAIN]), []).schedule, object)
    assert isinstance(planned().specs.schedule, Constant)


def test_bfloat16_is_decided_by_instructions_and_a_comparison(
    monkeypatch, tmp_path, caplog
) -> None:
    assert bf16.verdict("cpu", once=False) == (
        False, "the processor has no bfloat16 instructions",
    )  # fmt: skip
    monkeypatch.setattr(bf16, "_has_instructions", lambda: True)
    monkeypatch.setenv("XFER_CACHE", str(tmp_path))
    for gain, use in ((1.05, False), (2.0, True)):
        monkeypatch.setattr(bf16, "_compared", lambda gain=gain: gain)
        (tmp_path / "bf16.json").unlink(missing_ok=True)
        assert bf16.verdict("cpu", once=False)[0] is use
    # Compared once: a run that is begun again decides as before.
    monkeypatch.setattr(bf16, "_compared", lambda: 1 / 0)
    assert bf16.verdict("cpu", once=False)[0] is True
    assert bf16.verdict("cpu", once=True)[0] is False
    (tmp_path / "bf16.json").write_text("no json")
    monkeypatch.setattr(bf16, "_compared", lambda: 1.0)
    assert bf16.verdict("cpu", once=False)[0] is False
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "bf16.json" / "in_a_file"))
    assert bf16.verdict("cpu", once=False)[0] is False
    assert "not remembered" in caplog.text
    plan = planned("freeze=none")
    assert chosen(plan)["trainer.precision"] == "32-true"
    assert "trainer.precision" not in chosen(planned("freeze=none", "trainer.precision=bf16-mixed"))


@pytest.mark.parametrize("option", ["head=mlp", "features=never", "trainer.devices=2"])
def test_a_head_that_cannot_begin_solved_is_refused_and_the_remedy_works(option: str) -> None:
    typed = ["freeze=none", "trainer.accelerator=cpu", option]
    with pytest.raises(ConfigError, match=r"Fix: type trainer\.head_start=zero"):
        planned(*typed, "trainer.head_start=solved")
    assert planned(*typed, "trainer.head_start=zero").specs.trainer.head_start == "zero"
