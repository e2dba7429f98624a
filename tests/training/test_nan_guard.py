"""What is NaN or Inf stops the run before a file could hold it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import xfer
from xfer.core.errors import DivergedError
from xfer.core.torch_file import load_tensors
from xfer.training.module import Classifier
from xfer.training.nan_guard import NanGuard, norm

BAD = [math.nan, math.inf, -math.inf]


def told(what: str) -> DivergedError:
    return DivergedError("optim.lr", f"{what} is no number", "lower it", 4)


@pytest.mark.parametrize("value", BAD)
def test_a_value_that_is_no_number_is_told_at_once(value):
    watch = NanGuard()
    watch.note(torch.tensor(1e38), "the loss", told)
    with pytest.raises(DivergedError, match="the loss is no number"):
        watch.note(torch.tensor(value), "the loss", told)
    watch.check()


@pytest.mark.parametrize("value", BAD)
def test_the_norm_shows_one_bad_number_in_any_tensor(value):
    good = [torch.ones(3), torch.ones(2, 2), torch.tensor(5), torch.empty(0)]
    assert torch.isfinite(norm(good)) and norm([]) == 0
    assert not torch.isfinite(norm([*good, torch.tensor([0.0, value])]))


def diverge(tmp_path: Path, *options: str) -> tuple[DivergedError, Path]:
    with pytest.raises(DivergedError) as caught:
        xfer.run("digits_finetune", ["stages=[fit]", f"run.dir={tmp_path / 'run'}", *options])
    assert caught.value.exit == 7
    return caught.value, tmp_path / "run"


def finite(path: Path) -> bool:
    state = load_tensors(path)["state_dict"].values()
    return all(bool(torch.isfinite(t).all()) for t in state if t.is_floating_point())


def test_divergence_names_batch_images_and_learning_rate(tmp_path):
    error, folder = diverge(tmp_path, "optim.lr=9000", "trainer.max_epochs=3")
    assert re.search(r"batch \d+ of 23 of epoch 1 \(digits/\d+, digits", str(error)), error
    assert re.search(r"at learning rate \d+", str(error))
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit"], status["code"]) == ("failed", 7, error.number)
    assert not list((folder / "checkpoints").glob("*.ckpt"))


def loss(original, self, late, batch):
    return original(self, batch) * (math.nan if late and self.training else 1)


def gradient(original, self, late, optimizer):
    if late:
        next(p for p in self.parameters() if p.grad is not None).grad[0] = math.inf
    return original(self, optimizer)


def weight(original, self, late):
    if late:
        # A bias of minus infinity leaves every other answer finite.
        dict(self.net.named_parameters())["fc.bias"].data[0] = -math.inf
    return original(self)


def validation(original, self, late):
    if late:
        self._answers[0] = (self._answers[0][0] * math.nan, self._answers[0][1])
    return original(self)


SPOILT = {
    "loss": ("loss_of", loss, "training loss is NaN or Inf in batch 1 of 23 of epoch 2"),
    "gradient": ("check_gradient", gradient, "gradient is NaN or Inf in batch 1"),
    "weight": ("begin_validation", weight, "NaN or Inf in epoch 2"),
    "validation": ("score", validation, "validation loss is NaN or Inf"),
}


@pytest.mark.parametrize("place", SPOILT)
def test_every_kind_of_bad_number_keeps_the_last_good_files(tmp_path, monkeypatch, place):
    """A number is spoilt in the second epoch, each time somewhere else."""
    name, change, words = SPOILT[place]
    original = getattr(Classifier, name)
    monkeypatch.setattr(
        Classifier, name, lambda self, *args: change(original, self, self.current_epoch == 1, *args)
    )
    error, folder = diverge(tmp_path, "trainer.max_epochs=3")
    assert words in str(error)
    for file in ("best.ckpt", "last.ckpt"):
        path = folder / "checkpoints" / file
        assert finite(path) and load_tensors(path)["xfer"]["progress"]["epoch"] == 1
