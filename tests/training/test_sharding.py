"""Two real ranks that divide a network among them: what they train, and which files they leave."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    assert_equal,
    assert_same,
    finish,
    in_an_epoch,
    kill,
    only_run,
    rows,
    start,
    wait_for,
)
from safetensors.torch import load_file

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, ConfigError
from xfer.core.torch_file import load_tensors
from xfer.plan.make import make_plan

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=64", "data.workers=0"]
DIVIDED = [*TWO, "trainer.ema_decay=0", "trainer.max_epochs=2", "trainer.strategy=fsdp"]
PLANNED = ["experiment=digits_sgd", "head=linear", *DIVIDED]
# Tensors thaw, and freeze again. BatchNorm rests: it would see the images of one rank alone.
PHASES = [
    "freeze=rules",
    "freeze.rules=[{match: head, lr: 1}, {match: backbone, lr: 0}]",
    "freeze.later=[{start: 1, rules: [{match: norms, lr: 0}, {match: layer4, lr: 0.5}, "
    "{match: head, lr: 1}, {match: backbone, lr: 0}]}, {start: 2, rules: [{match: norms, lr: 0}, "
    "{match: layer4, lr: 0}, {match: head, lr: 1}, {match: backbone, lr: 0.5}]}]",
]
PHASED = [
    *(*DIVIDED, *PHASES, "trainer.max_epochs=3", "data.batch_size=16", "head=linear"),
    *("stages=[fit,evaluate,export]", "export=safetensors"),
]


@pytest.mark.parametrize("policy", [[], ["freeze=lp_ft"]], ids=["one phase", "two"])
def test_the_plan_says_that_the_network_is_divided(policy: list[str]) -> None:
    plan = make_plan(compose_specs([*PLANNED, *policy]))
    assert plan.facts["steps"]["strategy"] == "fsdp" and plan.facts["steps"]["devices"] == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.devices=1", "one device has nobody to divide with"),
        ("freeze=lora", "freeze trains adapters"),
        ("trainer.ema_decay=0.9", "weights are averaged"),
        ("trainer.compile=true", "the network is compiled"),
        ("features=require", "features must be cached"),
    ],
)
def test_what_cannot_train_so_is_refused_with_what_can(override: str, said: str) -> None:
    with pytest.raises(CombinationError, match=said) as caught:
        make_plan(compose_specs([*PLANNED, override]))
    fixes = re.fullmatch(r"type (\S+)(?: or (\S+))?, or (\S+)", caught.value.fix).groups()
    assert fixes[-1] == "trainer.strategy=ddp"
    make_plan(compose_specs([*PLANNED, override, fixes[0]]))


def test_a_head_that_is_solved_is_not_divided() -> None:
    words = ["experiment=digits_freeze", *TWO, "trainer.strategy=fsdp", "optim=exact"]
    with pytest.raises(ConfigError, match=r"trainer\.strategy asks for training step by step"):
        make_plan(compose_specs(words))


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phased")
    finish(start(folder, *PHASED))
    return only_run(folder)


@pytest.mark.slow
def test_phases_of_a_divided_network_are_those_of_one_process(phased: Path, tmp_path: Path) -> None:
    alone = ["trainer.devices=1", "trainer.strategy=ddp", "data.batch_size=32", "features=never"]
    finish(start(tmp_path, *PHASED, *alone))
    one = only_run(tmp_path)
    for name in ("best", "last"):
        ours, theirs = (load_tensors(r / f"checkpoints/{name}.ckpt") for r in (phased, one))
        assert_close(ours["state_dict"], theirs["state_dict"])
    # Each phase's parameters have a state of their own, of the steps in which they trained.
    ours, theirs = (content["optimizer_states"][0] for content in (ours, theirs))
    assert_equal(ours["param_groups"], theirs["param_groups"], "groups")
    assert len(theirs["state"]) == sum(len(group["params"]) for group in theirs["param_groups"])
    for number, values in theirs["state"].items():
        assert_close(ours["state"][number], values)
    proofs, results = (
        [json.loads((r / name).read_text()) for r in (phased, one)]
        for name in ("freeze_proof.json", "result.json")
    )
    assert proofs[0]["proved"] and len(proofs[0]["phases"]) == 3
    held = [[set(phase["hashes"]) for phase in proof["phases"]] for proof in proofs]
    assert held[0] == held[1] and results[0]["freeze"] == results[1]["freeze"]
    probe, late, early = held[0]
    assert "layer4.0.conv1.weight" in probe & early - late and "conv1.weight" in late - early
    assert_close(*(load_file(r / "export" / "model.safetensors") for r in (phased, one)))


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_divided_run_killed_in_two_of_its_phases_ends_bit_for_bit(
    phased: Path, tmp_path: Path
) -> None:
    for step in (23, 46):
        process = start(tmp_path, *PHASED, "checkpoint.resume=auto")
        wait_for(lambda s=step: in_an_epoch(tmp_path, s), process)
        kill(process)
    output = finish(start(tmp_path, *PHASED, "checkpoint.resume=auto"))
    assert "resumed in epoch 3" in output
    run = only_run(tmp_path)
    assert_same(run, phased)
    ours, theirs = (json.loads((r / "freeze_proof.json").read_text()) for r in (run, phased))
    assert ours == theirs


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    finish(start(folder, *DIVIDED, "stages=[fit,evaluate,export]", "export=safetensors"))
    return only_run(folder)


@pytest.mark.slow
def test_a_divided_network_trains_as_a_whole_one_and_its_files_are_whole(
    divided: Path, tmp_path: Path
) -> None:
    whole = ["trainer.strategy=ddp", "features=never", "stages=[fit,evaluate,export]"]
    finish(start(tmp_path, *DIVIDED, *whole, "export=safetensors"))
    one = only_run(tmp_path)
    for name in ("best", "last"):
        ours, theirs = (load_tensors(r / f"checkpoints/{name}.ckpt") for r in (divided, one))
        assert ours.keys() == theirs.keys()
        assert_close(ours["state_dict"], theirs["state_dict"])
    (ours,), (theirs,) = (
        load_tensors(r / "checkpoints/last.ckpt")["optimizer_states"] for r in (divided, one)
    )
    assert_equal(ours["param_groups"], theirs["param_groups"], "groups")
    shapes = [
        {
            number: {name: tuple(getattr(v, "shape", ())) for name, v in values.items()}
            for number, values in content["state"].items()
        }
        for content in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    for ours_row, row in zip(rows(divided), rows(one), strict=True):
        assert float(ours_row["train_loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-4)
    assert json.loads((divided / "freeze_proof.json").read_text())["proved"]
    assert_close(*(load_file(r / "export" / "model.safetensors") for r in (divided, one)))
    # What was scored in the fit by both is what the whole file answers alone.
    result = json.loads((divided / "result.json").read_text())
    assert result["scores"]["val"]["acc"] == pytest.approx(result["best"]["value"], abs=1e-12)


@pytest.mark.slow
def test_a_divided_run_that_was_killed_ends_bit_for_bit(tmp_path: Path) -> None:
    again = [*DIVIDED, "checkpoint.resume=auto", "checkpoint.every_n_steps=3"]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    first = start(tmp_path / "killed", *again)
    pattern = "outputs/digits_sgd/*/checkpoints/last.ckpt"
    wait_for(lambda: list((tmp_path / "killed").glob(pattern)), first)
    kill(first)
    output = finish(start(tmp_path / "killed", *again))
    assert "resumed in epoch" in output
    finish(start(tmp_path / "whole", *again))
    assert_same(only_run(tmp_path / "killed"), only_run(tmp_path / "whole"))
