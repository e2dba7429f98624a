"""Two real ranks that divide a network among them: what they train, and which files they leave."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from runs import assert_equal, assert_same, finish, kill, only_run, rows, start, wait_for
from safetensors.torch import load_file

from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, ConfigError
from xfer.core.torch_file import load_tensors
from xfer.plan.make import make_plan

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=64", "data.workers=0"]
DIVIDED = [*TWO, "trainer.ema_decay=0", "trainer.max_epochs=2", "trainer.strategy=fsdp"]
PLANNED = ["experiment=digits_sgd", "head=linear", *DIVIDED]


def test_the_plan_says_that_the_network_is_divided() -> None:
    plan = make_plan(compose_specs(PLANNED))
    assert plan.facts["steps"]["strategy"] == "fsdp" and plan.facts["steps"]["devices"] == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.devices=1", "one device has nobody to divide with"),
        ("freeze=lp_ft", "freeze has several phases"),
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
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        for key, tensor in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][key], tensor, rtol=1e-3, atol=1e-4)
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
    exported = [load_file(r / "export" / "model.safetensors") for r in (divided, one)]
    for key, tensor in exported[1].items():
        torch.testing.assert_close(exported[0][key], tensor, rtol=1e-3, atol=1e-4)
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
