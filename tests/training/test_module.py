"""The training step: what is frozen stays, what trains moves, and a break of that is found."""

import warnings

import pytest
import pytorch_lightning as pl
import torch

from xfer.config.hydra import compose_specs
from xfer.data.loader import ImageDataset, TrainLoader
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.training.module import Classifier


def classifier(*overrides):
    plan = make_plan(compose_specs(["experiment=digits_sgd", *overrides]))
    return Classifier(assemble(plan.parts, plan.state), plan)


def train(module, steps=3):
    plan = module.plan
    pictures = ImageDataset(
        plan.dataset.splits["train"], plan.specs.augment.transform(plan.card.input)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints are silenced in fit, not here
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, TrainLoader(pictures, 32, 0, pin=False, seed=0))


def test_only_the_head_moves_and_the_rest_is_in_inference_mode():
    module = classifier("head=dropout")
    before = {n: t.clone() for n, t in module.net.state_dict().items()}
    train(module)
    moved = [n for n, t in module.net.state_dict().items() if not t.equal(before[n])]
    assert moved == ["fc.weight", "fc.bias"] == list(module.moving())
    module.train()
    assert module.net.fc.training and not module.net.bn1.training


def test_fine_tuning_moves_statistics_too():
    module = classifier("freeze=none")
    before = module.net.bn1.running_mean.clone()
    train(module)
    assert not module.net.bn1.running_mean.equal(before)
    assert module.frozen == set()


def test_the_optimizer_holds_what_trains_and_nothing_else():
    layer4 = r"{match: 'layer4\..*', lr: 0.1}"
    rules = f"freeze.rules=[{{match: head, lr: 1}}, {layer4}, {{match: backbone, lr: 0}}]"
    module = classifier("freeze=rules", rules, "optim.weight_decay=0.01")
    optimizer = module.configure_optimizers()["optimizer"]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    trains = [p for p in module.net.parameters() if p.requires_grad]
    assert {id(p) for p in held} == {id(p) for p in trains} and len(held) == len(trains)
    rates = {round(group["initial_lr"], 6) for group in optimizer.param_groups}
    assert rates == {0.1, 0.01}
    for group in optimizer.param_groups:
        decayed = {p.ndim > 1 for p in group["params"]}
        assert decayed == {group["weight_decay"] > 0}


def test_nan_answers_are_no_score():
    from xfer.core.errors import DivergedError

    module = classifier()
    module._answers = [(torch.full((4, 5), torch.nan), torch.arange(4))]
    module.optimizers = lambda: torch.optim.SGD(module.net.fc.parameters(), lr=0.5)
    module._trainer = type("Trainer", (), {"current_epoch": 0})()
    with pytest.raises(DivergedError, match=r"NaN or Inf in epoch 1, at learning rate 0\.5"):
        module.score()
