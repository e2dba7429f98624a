from __future__ import annotations

import math
from typing import Any

import pytest

from xfer.config.checkpoint import CheckpointPolicy
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError
from xfer.plan.make import make_plan


@pytest.mark.parametrize(
    ("mode", "tie", "epoch"),
    [
        *(("max", "loss", 4), ("max", "first", 2), ("max", "latest", 6)),
        *(("min", "loss", 1), ("min", "first", 1), ("min", "latest", 5)),
    ],
)
def test_of_equal_epochs_the_best_is_that_of_least_loss_the_first_or_the_latest(
    mode: str, tie: str, epoch: int
) -> None:
    monitor = "val_ece" if mode == "min" else "val_acc"
    policy = CheckpointPolicy(monitor=monitor, mode=mode, tie=tie)  # type: ignore[arg-type]
    losses = [0.4, 0.8, 0.1, 0.3, 0.6, 0.3]
    best = chosen(policy, [0.5, 0.9, 0.7, 0.9, 0.5, 0.9], losses)
    assert best == epoch
    # What is chosen on training images alone is not chosen on others after all.
    assert chosen(CheckpointPolicy(monitor="train_loss", mode="min"), [0.5, 0.5], [0.2, 0.1]) == 1


def chosen(policy: CheckpointPolicy, values: list[float], losses: list[Any]) -> int:
    best: dict[str, Any] | None = None
    for number, (value, loss) in enumerate(zip(values, losses, strict=True), start=1):
        row = {"epoch": number, policy.monitor: value, "val_loss": loss}
        if policy.improves(row, best):
            best = row
    return int(best["epoch"]) if best else 0


def test_nan_is_never_the_best_and_never_keeps_its_place() -> None:
    known, nan = {"val_acc": 0.1, "val_loss": 0.1}, {"val_acc": math.nan, "val_loss": math.nan}
    for policy in (CheckpointPolicy(), CheckpointPolicy(tie="latest", monitor="val_loss")):
        assert not policy.improves(nan, None) and not policy.improves(nan, known)


@pytest.mark.parametrize(
    ("monitor", "end"), [("val_acc", "max"), ("val_loss", "min"), ("train_loss", "min")]
)
def test_the_mode_follows_from_the_monitor_and_the_plan_says_so(monitor: str, end: str) -> None:
    words = ["experiment=digits_sgd", f"checkpoint.monitor={monitor}"]
    plan = make_plan(compose_specs(words))
    (said,) = (row for row in plan.facts["auto"] if row["key"] == "checkpoint.mode")
    assert (said["value"], plan.specs.checkpoint.mode) == (end, end)
    # What is to be typed to fix it is heeded, and no choice of the plan's any more.
    plan = make_plan(compose_specs([*words, f"checkpoint.mode={end}"]))
    assert not [row for row in plan.facts["auto"] if row["key"] == "checkpoint.mode"]


def test_epochs_are_looked_at_from_the_start_at_intervals() -> None:
    policy = CheckpointPolicy(start_epoch=3, interval=2)
    assert [epoch for epoch in range(1, 9) if policy.looks_at(epoch)] == [3, 5, 7]
    assert all(CheckpointPolicy().looks_at(epoch) for epoch in range(1, 5))


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val_loss", "max"), ("val_ece", "max"), ("val_acc", "min")]
)
def test_the_wrong_end_of_a_metric_is_refused(monitor: str, mode: str) -> None:
    with pytest.raises(ConfigError, match=r"E272: checkpoint\.mode: is "):
        compose_specs([f"checkpoint.monitor={monitor}", f"checkpoint.mode={mode}"])


@pytest.mark.parametrize("prefix", ["", "a/b", "..\\x", "a=b", "best", "last"])
def test_a_prefix_that_makes_no_file_of_its_own_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.prefix"):
        CheckpointPolicy(prefix=prefix)
