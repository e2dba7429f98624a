from __future__ import annotations

import re
from collections import OrderedDict
from typing import Literal

import pytest
import timm
import timm.layers.grn
import torch
from torch import nn

from xfer.core.errors import ConfigError
from xfer.models.norms import norm_parameters
from xfer.training.optim import AdamW, Sgd, TimmOptim, TorchOptim


def parts() -> tuple[nn.Module, dict[str, tuple[float, ...]]]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    of_part = {"0": (0.0, 0.0), "1": (0.0, 0.1), "2": (0.1, 0.05), "3": (1.0, 0.5)}
    return net, {n: of_part[n[0]] for n, _ in net.named_parameters()}


def test_groups_hold_everything_that_trains_once_and_nothing_frozen() -> None:
    net, multiples = parts()
    found = Sgd(lr=0.5, weight_decay=0.01).groups(net, multiples)
    names = {id(p): n for n, p in net.named_parameters()}
    held = [names[id(p)] for group in found for p in group["params"]]
    assert sorted(held) == sorted(n for n in multiples if any(multiples[n]))
    for group in found:
        for parameter in group["params"]:
            name = names[id(parameter)]
            rates = [group["lr"] * share for share in group["phases"]]
            assert rates == pytest.approx([0.5 * multiple for multiple in multiples[name]])
            assert max(group["phases"]) == 1
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0), name


def decayed(net: nn.Module, decay: Literal["matrices", "no_norms", "all"]) -> set[str]:
    """Names of the parameters in groups with weight decay."""
    spec = Sgd(lr=0.5, weight_decay=0.01, decay=decay)
    names = {id(p): n for n, p in net.named_parameters()}
    found = spec.groups(net, dict.fromkeys(names.values(), (1.0,)))
    assert {group["weight_decay"] for group in found} <= {0.0, 0.01}
    return {names[id(p)] for g in found if g["weight_decay"] > 0 for p in g["params"]}


def test_the_three_ways_to_decay() -> None:
    net, multiples = parts()
    assert decayed(net, "matrices") == {"0.weight", "2.weight", "3.weight"}
    assert decayed(net, "no_norms") == set(multiples) - {"1.weight", "1.bias"}
    assert decayed(net, "all") == set(multiples)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        timm.layers.LayerNorm2d(4),
        timm.layers.RmsNorm(4),
        timm.layers.SimpleNorm2d(4),
        timm.layers.BatchNormAct2d(4),
        timm.layers.GroupNormAct(4, num_groups=2),
        timm.layers.SplitBatchNorm2d(4),
        timm.layers.EvoNorm2dS0(4),
        timm.layers.FilterResponseNormTlu2d(4),
        timm.layers.grn.GlobalResponseNorm(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_kind_of_normalisation_layer_is_found(norm: nn.Module) -> None:
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), inner=nn.Sequential(norm)))
    assert len(list(norm.parameters())) > 0
    assert decayed(net, "no_norms") == {"conv.weight", "conv.bias"}


def test_what_is_inside_a_normalisation_layer_but_no_part_of_it_is_decayed() -> None:
    net = timm.layers.BatchNormAct2d(4, act_layer=nn.PReLU)
    assert norm_parameters(net) == {"weight", "bias"}
    assert decayed(net, "no_norms") == {"act.weight"}


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet18", r"(bn\d|downsample\.1)\."),
        ("vit_tiny_patch16_224", r"norm\d?\."),
        ("convnextv2_atto", r"(norm|grn|downsample\.0|stem\.1)\."),
    ],
)
def test_a_network_of_timm_has_the_norms_that_its_names_say(name: str, norms: str) -> None:
    net = timm.create_model(name)
    expected = {n for n, _ in net.named_parameters() if re.search(norms, n)}
    assert len(expected) > 20 and norm_parameters(net) == expected


@pytest.mark.parametrize(
    "spec",
    [
        Sgd(lr=0.1, weight_decay=0.01, momentum=0.5, nesterov=True),
        AdamW(lr=0.1, weight_decay=0.01, betas=(0.8, 0.9)),
        TorchOptim("RMSprop", lr=0.1, weight_decay=0.01),
        TimmOptim("lamb", lr=0.1, weight_decay=0.01),
    ],
)
def test_an_optimizer_keeps_rate_and_decay_of_its_groups_and_trains(
    spec: Sgd | AdamW | TorchOptim | TimmOptim,
) -> None:
    net, multiples = parts()
    optimizer = spec.build(spec.groups(net, multiples))
    found = sorted((g["lr"], g["weight_decay"]) for g in optimizer.param_groups)
    # The norm's two vectors; the bias and the matrix of a convolution; those of the last layer.
    expected = [(0.01, 0.0), (0.01, 0.0), (0.01, 0.01), (0.1, 0.0), (0.1, 0.01)]
    assert [pair == pytest.approx(want) for pair, want in zip(found, expected, strict=True)] == [
        True
    ] * 5
    before = {n: p.clone() for n, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in multiples if any(multiples[n])}


def test_the_fields_of_sgd_and_adamw_arrive() -> None:
    group = {"params": [nn.Parameter(torch.ones(2, 2))]}
    sgd = Sgd(lr=0.1, momentum=0.5, nesterov=True).build([dict(group)]).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"]) == (0.1, 0.5, True)
    assert AdamW(lr=0.1, betas=(0.8, 0.9)).build([dict(group)]).param_groups[0]["betas"] == (
        0.8,
        0.9,
    )
    args = TorchOptim("SGD", lr=0.1, args={"momentum": 0.3}).build([dict(group)]).param_groups[0]
    assert args["momentum"] == 0.3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TorchOptim("RMSprob", lr=0.1), "did you mean 'RMSprop'"),
        (TorchOptim("Optimizer", lr=0.1), "no optimizer 'Optimizer'"),
        (TorchOptim("LBFGS", lr=0.1), "no optimizer 'LBFGS'"),
        (TimmOptim("lambb", lr=0.1), "did you mean 'lamb'"),
        (TorchOptim("Adam", lr=0.1, args={"speed": 1}), r"optim\.args.*speed"),
        (TimmOptim("lamb", lr=0.1, args={"speed": 1}), r"optim\.args.*speed"),
    ],
)
def test_a_wrong_name_or_argument_is_told_with_the_nearest(
    spec: TorchOptim | TimmOptim, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        spec.build([{"params": [nn.Parameter(torch.ones(2, 2))]}])
