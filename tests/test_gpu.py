"""What only a CUDA device can show, on the digits experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import SHIPPED

import xfer
from xfer.weights.formats.checkpoint_format import read_snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def digits(folder: Path, *overrides: str, epochs: int = 3) -> dict[str, Any]:
    result = xfer.run(
        "digits_finetune",
        [
            "trainer.accelerator=gpu",
            f"trainer.max_epochs={epochs}",
            f"run.dir={folder}",
            *overrides,
        ],
    )
    assert result.facts is not None
    return result.facts


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_precision_learns_and_exports_what_it_learned(tmp_path: Path, precision: str) -> None:
    facts = digits(tmp_path / "run", f"trainer.precision={precision}", epochs=8)
    assert facts["scores"]["val"]["acc"] > 0.8
    assert "NVIDIA" in facts["device"] and facts["precision"] == precision
    assert {row["format"] for row in facts["export"]} >= {"onnx"}
    assert all(row["agree"] == 1 for row in facts["export"])


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own parts
def test_a_compiled_network_saves_under_plain_names(tmp_path: Path) -> None:
    digits(tmp_path / "run", "trainer.compile=true", "export=none")
    names = read_snapshot(tmp_path / "run" / "checkpoints" / "best.ckpt").state
    assert "conv1.weight" in names and not [n for n in names if "_orig_mod" in n]


def test_a_run_that_goes_on_ends_bit_for_bit_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    same = ["trainer.deterministic=true", "export=none", "trainer.ema_decay=0.9"]
    digits(tmp_path / "whole", *same, epochs=4)
    again = tmp_path / "again"
    digits(again, *same, epochs=4)
    # As a kill after the last save would leave it.
    status = again / "status.json"
    status.write_text(json.dumps({"state": "running"}))
    digits(again, *same, f"checkpoint.resume={again}", epochs=4)
    one, other = (
        read_snapshot(tmp_path / name / "checkpoints" / "best.ckpt").state
        for name in ("whole", "again")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_frozen_backbone_stays_bit_equal_on_the_device(tmp_path: Path) -> None:
    facts = digits(tmp_path / "run", "freeze=head_only", "export=none")
    assert facts["params"]["frozen"] > facts["params"]["trainable"]
    start = read_snapshot(SHIPPED).state
    end = read_snapshot(tmp_path / "run" / "checkpoints" / "best.ckpt").state
    assert all(torch.equal(start[n], end[n]) for n in start if not n.startswith("fc."))
