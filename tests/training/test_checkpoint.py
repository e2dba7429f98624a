from __future__ import annotations

import math

import pytest

from xfer.core.errors import ConfigError
from xfer.training.checkpoint import CheckpointPolicy


@pytest.mark.parametrize(
    ("mode", "tie", "epoch"),
    [("max", "first", 2), ("max", "latest", 4), ("min", "first", 1), ("min", "latest", 5)],
)
def test_the_best_epoch_is_the_first_or_latest_to_reach_the_best_value(
    mode: str, tie: str, epoch: int
) -> None:
    monitor = "val_loss" if mode == "min" else "val_acc"
    policy = CheckpointPolicy(monitor=monitor, mode=mode, tie=tie)  # type: ignore[arg-type]
    best, chosen = None, 0
    for number, value in enumerate([0.5, 0.9, 0.7, 0.9, 0.5], start=1):
        if policy.improves(value, best):
            best, chosen = value, number
    assert chosen == epoch


def test_nan_is_never_the_best_and_never_keeps_its_place() -> None:
    assert not CheckpointPolicy().improves(math.nan, None)
    assert not CheckpointPolicy().improves(math.nan, 0.1)
    assert not CheckpointPolicy(tie="latest", monitor="val_loss", mode="min").improves(
        math.nan, 0.1
    )


def test_epochs_are_looked_at_from_the_start_at_intervals() -> None:
    policy = CheckpointPolicy(start_epoch=3, interval=2)
    assert [epoch for epoch in range(1, 9) if policy.looks_at(epoch)] == [3, 5, 7]
    assert all(CheckpointPolicy().looks_at(epoch) for epoch in range(1, 5))


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val_loss", "max"), ("val_ece", "max"), ("val_acc", "min")]
)
def test_the_wrong_end_of_a_metric_is_refused(monitor: str, mode: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.mode"):
        CheckpointPolicy(monitor=monitor, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "a/b", "..\\x", "a=b", "best", "last"])
def test_a_prefix_that_makes_no_file_of_its_own_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.prefix"):
        CheckpointPolicy(prefix=prefix)
