"""The head's input standardised: the scale of a backbone's output decides nothing, and nothing of
it is in a file."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from runs import finish, kill, only_run, start, wait_for
from torch import nn

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.standardize import Moments, folded, from_plain, to_plain, unfolded
from xfer.core.torch_file import load_tensors
from xfer.models.backbone import Timm
from xfer.models.head import Dropout, Linear, Mlp, Pooled
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.training.feature_moments import deviations
from xfer.training.head_input import Standardized, first_layer, moments
from xfer.training.head_start import prepare_head
from xfer.weights.formats.checkpoint_format import read_snapshot

SHORT = ["trainer.standardize=true", "trainer.max_epochs=3", "stages=[fit,evaluate]"]
FEW = ["data.digits=[5,6,7]", "data.workers=0"]
SHORT += FEW


def outcome(folder: Path) -> tuple[list[str], float]:
    with (folder / "predictions_val.csv").open() as stream:
        answers = [row["prediction"] for row in csv.DictReader(stream)]
    return answers, json.loads((folder / "result.json").read_text())["scores"]["val"]["loss"]


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch):
    """Runs whose backbone's output is multiplied and shifted."""
    build = Timm.build

    def run(times: float, plus: float, *options: str) -> tuple[list[str], float]:
        def built(self, classes=None):
            network = build(self, classes)
            network.module.global_pool.register_forward_hook(lambda *a: a[-1] * times + plus)
            return network

        monkeypatch.setattr(Timm, "build", built)
        return outcome(xfer.run("digits_sgd", [*SHORT, *options]).folder)

    return run


@pytest.mark.parametrize(
    "head",
    [*("mlp", "pooled"), *(pytest.param(h, marks=pytest.mark.slow) for h in ("linear", "dropout"))],
)
def test_a_backbone_that_is_multiplied_or_shifted_trains_to_the_same(scaled, head: str) -> None:
    answers, loss = scaled(1, 0, f"head={head}")
    others, other = scaled(100, 50, f"head={head}")
    assert other == pytest.approx(loss, rel=2e-3)
    assert sum(a != b for a, b in zip(answers, others, strict=True)) <= 1


def test_without_it_the_scale_decides(scaled) -> None:
    """The test above can fail."""
    off = "trainer.standardize=false"
    assert scaled(1, 0, off)[1] != pytest.approx(scaled(100, 0, off)[1], rel=0.1)


def test_the_exact_head_does_not_care_either(scaled, tmp_path, monkeypatch) -> None:
    found = []
    for i, (times, plus) in enumerate(((1, 0), (100, 50))):
        # The features of three networks that go by one name.
        monkeypatch.setenv("XFER_CACHE", str(tmp_path / str(i)))
        exact = ["optim=exact", "optim.lr=auto", "schedule=auto", "features=auto"]
        found.append(scaled(times, plus, *exact, "trainer.max_epochs=auto"))
    (answers, loss), (again, other) = found
    assert other == pytest.approx(loss, rel=1e-3)
    assert again == answers


def test_what_is_folded_gives_the_answers_of_what_trained() -> None:
    torch.manual_seed(0)
    images = torch.randn(40, 3, 6, 6) * 30 + 5
    for net, head in (
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), "1"),
        (nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1), nn.Flatten()), "1"),
    ):
        path = first_layer(net, head)
        assert path == "1"
        before, wanted = net.state_dict(), net(images)
        before = {name: tensor.clone() for name, tensor in before.items()}
        found = moments(net, [path], [(images[:16], 16), (images[16:], 24)], net)
        put = Standardized(net, found)
        assert torch.allclose(net(images), wanted, atol=1e-3)
        seen = []
        net[1].register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0]))
        net(images)
        dims = (0, 2, 3) if seen[0].ndim == 4 else 0
        assert seen[0].mean(dims).abs().max() < 1e-4
        rows = (images.movedim(1, -1) if seen[0].ndim == 4 else images).double()
        rows = rows.reshape(-1, seen[0].shape[1])
        plain = rows.std(0, correction=0)
        # However many positions an image has: of one image they say the same.
        moderated = deviations(rows.mean(0).numpy(), (plain**2).numpy(), len(images))
        ratio = (plain / torch.from_numpy(moderated)).float()
        assert torch.allclose(seen[0].std(dims, correction=0), ratio, atol=1e-3)
        folds = put.folded(net.state_dict())
        assert all(torch.allclose(folds[n], before[n], atol=1e-4) for n in before)
        put.remove()
        assert torch.allclose(net(images), wanted, atol=1e-3)


class Cosine(nn.Linear):
    """Computes otherwise than the layer that it is derived from."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = nn.functional.normalize(self.weight, dim=1)
        return nn.functional.linear(nn.functional.normalize(images, dim=1), weight)


@pytest.mark.parametrize("layer", [nn.Linear(4, 2, bias=False), Cosine(4, 2), nn.Identity()])
def test_a_layer_that_nothing_can_be_folded_into_is_left_alone(layer: nn.Module) -> None:
    net = nn.ModuleDict({"head": nn.Sequential(layer, nn.Linear(2, 2))})
    expected = "head.1" if isinstance(layer, nn.Identity) else None
    assert first_layer(net, "head") == expected


@pytest.mark.parametrize("old", [nn.Linear(8, 9), nn.Conv2d(8, 9, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("head", [Linear(), Dropout(), Mlp(), Pooled()])
def test_the_input_of_every_head_that_is_trained_can_be_standardised(
    head: Linear | Dropout | Mlp | Pooled, old: nn.Module
) -> None:
    assert first_layer(nn.ModuleDict({"head": head.build(old, 3)}), "head")


def test_a_head_without_a_bias_is_trained_on_raw_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XFER_ALLOW", "mine")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Bare:\n"
        "    def build(self, old, classes):\n        from torch import nn\n\n"
        "        return nn.Linear(old.in_features, classes, bias=False)\n"
    )
    options = ["head._target_=mine.Bare", "optim=sgd", "optim.lr=0.1", "trainer.max_epochs=1"]
    options += ["data.digits=[5,6]"]
    result = xfer.run("digits_freeze", [*options, "stages=[fit]"])
    out = capsys.readouterr().out
    assert "the head's input is not standardised: the first layer of 'fc'" in out
    state = read_snapshot(result.folder / "checkpoints" / "best.ckpt").state
    assert "fc.bias" not in state and state["fc.weight"].abs().sum() > 0


def test_a_trace_in_one_of_few_images_does_not_put_the_next_one_far_away() -> None:
    few = torch.rand(10, 40, generator=torch.Generator().manual_seed(0))
    few[:, 0] = 0
    few[3, 0] = 1e-4
    net = nn.Sequential(nn.Linear(40, 2))
    found = moments(net, ["0"], [(few, 10)], net)["0"]
    assert (few[:, 1:].std(0) / found.std[1:]).std() < 0.2
    assert 1 / found.std[0] < 8, "a deviation of its own would be 3e-5"


def test_a_feature_that_is_constant_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    found = moments(net, ["0"], [(torch.tensor([[1.0, 190.0, 0.0], [3.0, 190.0, 0.0]]), 2)], net)
    assert found["0"].std.tolist() == [1.0, 1.0, 1.0]
    assert found["0"].mean.tolist() == [2.0, 190.0, 0.0]


@pytest.mark.parametrize("head", ["linear", "pooled"])
def test_of_cached_features_they_are_those_of_the_images_to_the_last_bit(head: str) -> None:
    """Whatever the batches that are evaluated, of 7 images or of all."""
    found = []
    for typed in (
        ["features=never", "data.eval_batch_size=7"],
        ["features=require", "data.eval_batch_size=1000"],
    ):
        words = ["experiment=digits_sgd", "trainer=cpu", f"head={head}", *SHORT, *typed]
        plan = make_plan(compose_specs(words))
        found.append(prepare_head(plan, assemble(plan.parts, plan.state)))
    (images,), (cached,) = (of.values() for of, _ in found)
    assert images.std.equal(cached.std) and images.mean.equal(cached.mean)


def test_folding_and_unfolding_are_inverse_and_go_through_a_file() -> None:
    state = {"fc.weight": torch.randn(3, 5), "fc.bias": torch.randn(3), "other": torch.ones(2)}
    standard = {"fc": Moments(torch.randn(5), torch.rand(5) + 0.5)}
    again = unfolded(folded(state, standard), from_plain(to_plain(standard)))
    assert all(torch.allclose(again[name], state[name], atol=1e-5) for name in state)
    assert from_plain(None) == {}


def test_best_and_copies_hold_weights_for_raw_input() -> None:
    """A copy of an epoch is a resume file, and evaluates as the best checkpoint does."""
    run = xfer.run("digits_sgd", [*SHORT, "checkpoint.every_n_epochs=1"]).folder
    best = json.loads((run / "result.json").read_text())["best"]["epoch"]
    copy = run / "checkpoints" / f"checkpoint_epoch{best}.ckpt"
    raw = load_tensors(copy)["state_dict"]["net.fc.weight"]
    held = read_snapshot(copy).state["fc.weight"]
    assert not torch.allclose(raw, held)
    assert torch.allclose(held, read_snapshot(run / "checkpoints" / "best.ckpt").state["fc.weight"])
    again = xfer.run("digits_sgd", ["stages=[evaluate]", f"checkpoint.path={copy}", *FEW]).folder
    assert outcome(again)[1] == pytest.approx(outcome(run)[1], rel=1e-5)
    assert math.isfinite(outcome(run)[1])


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_a_whole_one(tmp_path: Path) -> None:
    options = ["trainer.standardize=true", "trainer.precision=32-true", "head=linear"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    finish(start(whole, *options))
    process = start(cut, *options)
    wait_for(lambda: list(cut.glob("outputs/digits_sgd/*/metrics.csv")), process)
    kill(process)
    finish(start(cut, *options, "checkpoint.resume=auto"))
    ours, theirs = (
        load_tensors(only_run(f) / "checkpoints" / "best.ckpt")["state_dict"] for f in (cut, whole)
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)
