"""Networks of several labels an image that are trained step by step: killed, and on two devices."""

from __future__ import annotations

from pathlib import Path

import labelled
import pytest
import torch
import warm
from runs import assert_same, kill, rows, step_of, wait_for

from xfer.core.errors import WeightsError
from xfer.core.files import read_json
from xfer.core.torch_file import load_tensors

NETWORK = [
    *("experiment=digits_sgd", "data=csv", "data.file=columns.csv", "task=multilabel"),
    *("data.workers=0", "data.leakage=ignore", "trainer.accelerator=cpu", "optim.lr=0.02"),
    *("trainer.max_epochs=2", "stages=[fit,evaluate]"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    named = [(f"images/{name}", labels) for name, labels in labelled.digits(folder / "images", 101)]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.3)
    return folder


def start(place: Path, name: str, *typed: str) -> warm.Run:
    return warm.start(place, *NETWORK, f"run.dir={name}", *typed)


def ran(place: Path, name: str, *typed: str) -> Path:
    run = start(place, name, *typed)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    return place / name


MIXED = ["freeze=none", "augment=mixed", "loss=asymmetric", "trainer.ema_decay=0.9"]


def test_a_kill_changes_nothing(place: Path) -> None:
    """Mixed images, an average of weights and thresholds chosen on val come back as they were."""
    typed = [*MIXED, "data.batch_size=8", "checkpoint.every_n_steps=3"]
    whole = ran(place, "whole", *typed)
    first, file = start(place, "killed", *typed), place / "killed" / "checkpoints" / "last.ckpt"
    steps = read_json(whole / "plan.json")["steps"]["per_epoch"]

    def inside() -> bool:
        try:
            step = step_of(file, file.stat().st_mtime_ns)
        except (WeightsError, FileNotFoundError):
            return False  # not there yet, or just renamed to make room for the next one
        return step % steps != 0

    wait_for(inside, first)
    kill(first)
    assert read_json(place / "killed" / "status.json")["state"] != "finished"
    ran(place, "killed", *typed, "checkpoint.resume=auto")
    assert_same(place / "killed", whole)
    scores = [read_json(place / name / "result.json")["scores"] for name in ("killed", "whole")]
    assert scores[0] == scores[1] and scores[0]["val"]["thresholds_chosen_on"] == "val"


@pytest.mark.slow
def test_two_devices_take_the_step_of_one_with_the_whole_batch(place: Path) -> None:
    """The mean is that of all known labels, of which each has another number."""
    head = ["freeze=head_only", "head=linear", "trainer.ema_decay=0", "optim=sgd"]
    two = ran(place, "two", *head, "trainer.devices=2", "data.batch_size=8")
    one = ran(place, "one", *head, "data.batch_size=16")
    ours, theirs = (load_tensors(r / "checkpoints" / "last.ckpt") for r in (two, one))
    for name in ("net.fc.weight", "net.fc.bias"):
        torch.testing.assert_close(
            ours["state_dict"][name], theirs["state_dict"][name], rtol=1e-4, atol=1e-6
        )
    for two_row, row in zip(rows(two), rows(one), strict=True):
        assert two_row["step"] == row["step"]
        assert float(two_row["val_loss"]) == pytest.approx(float(row["val_loss"]), rel=1e-4)
