from __future__ import annotations

import pytest
import torch
from test_backbone import BACKBONES
from torch import nn
from torch.nn import functional as F

from xfer.backbone import Timm, Torchvision
from xfer.errors import ConfigError
from xfer.freeze import Freeze, Rule, apply, hold
from xfer.head import Linear
from xfer.network import Parts, assemble, frozen_names
from xfer.types import Backbone
from xfer.weights import Weights

NAMES = ["stem.weight", "layer1.0.weight", "layer1.0.bias", "layer10.0.weight", "fc.weight"]
HEAD_ONLY = Freeze((Rule("head", 1), Rule("backbone", 0)))
NETS: dict[str, tuple[Backbone, int]] = {
    "resnet": (BACKBONES["digits_resnet"], 32),
    "mobilenetv3": (Timm("mobilenetv3_small_100", args={"drop_rate": 0.5}), 32),
    "vit": (
        Timm(
            "deit_tiny_distilled_patch16_224",
            args={"depth": 2, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
            image_size=32,
        ),
        32,
    ),
    "squeezenet": (Torchvision("squeezenet1_0"), 64),
}


def table(*rules: tuple[str, float]) -> dict[str, float]:
    rows = Freeze(tuple(Rule(*rule) for rule in rules)).table(NAMES, ["fc"])
    assert [row.name for row in rows] == NAMES
    return {row.name: row.lr for row in rows}


def test_the_first_rule_that_matches_a_whole_name_wins() -> None:
    found = table(("head", 1), (r"layer1\..*weight", 0.1), (r"layer1\..*", 0.2), ("backbone", 0))
    assert found == dict(zip(NAMES, [0, 0.1, 0.2, 0, 1], strict=True))


def test_only_the_head_is_the_head() -> None:
    rows = HEAD_ONLY.table(["fc.weight", "fc2.weight", "x.fc.weight"], ["fc"])
    assert [(row.head, row.frozen) for row in rows] == [(True, False), (False, True), (False, True)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("head", 1), ("layr1", 1), ("backbone", 0)], r"rules\[1\].*did you mean 'layer1"),
        ([(".*", 1), ("head", 0.1)], r"rules\[1\].*'head' matches no parameter that an earlier"),
        ([("head", 1)], r"no rule covers 'stem\.weight'.*backbone, lr: 0"),
        ([("head", 0), ("backbone", 0)], "nothing to train"),
        ([("layer(", 1)], r"rules\[0\].*no pattern"),
        ([], "empty"),
    ],
)
def test_a_list_that_cannot_be_meant_is_an_error_with_a_remedy(
    rules: list[tuple[str, float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        table(*rules)


def ready(name: str) -> tuple[nn.Module, tuple[str, ...], int]:
    backbone, size = NETS[name]
    net = assemble(Parts(backbone, Linear(), 2), Weights("none", None))
    heads = backbone.build().heads
    rows = HEAD_ONLY.table([n for n, _ in net.named_parameters()], heads)
    apply(net, rows)
    return net, tuple(f"{head}." for head in heads), size


@pytest.mark.parametrize("name", NETS)
def test_training_the_head_moves_nothing_else_bit_for_bit(name: str) -> None:
    net, heads, size = ready(name)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        net.train()
        hold(net)
        F.cross_entropy(net(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if n.startswith(heads)}
    assert all(p.grad is None for n, p in net.named_parameters() if not n.startswith(heads))


@pytest.mark.parametrize("name", ["resnet", "vit", "mobilenetv3"])
def test_a_held_network_gives_a_head_the_features_of_inference(name: str) -> None:
    net, heads, size = ready(name)
    seen: list[torch.Tensor] = []
    if name == "mobilenetv3":
        net.drop_rate = 0.0  # the head's own dropout, a function of the network itself
    net.get_submodule(heads[0][:-1]).register_forward_hook(lambda _, x, __: seen.append(x[0]))
    x = torch.randn(2, 3, size, size)
    net.eval()(x)
    net.train()
    hold(net)
    net(x)
    assert torch.equal(*seen)


def test_dropout_before_a_frozen_layer_is_off_and_before_the_head_is_on() -> None:
    with torch.device("meta"):
        net = Torchvision("vgg11").build().module
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("classifier.6."))
    hold(net.train())
    assert not net.classifier[2].training and net.classifier[5].training
    squeeze, _, _ = ready("squeezenet")
    hold(squeeze.train())
    assert squeeze.classifier[0].training and not squeeze.features.training


def test_part_of_a_network_trains_while_its_frozen_part_keeps_its_statistics() -> None:
    net, _, _ = ready("resnet")
    rows = Freeze((Rule("head", 1), Rule(r"layer4\..*", 0.1), Rule("backbone", 0))).table(
        [n for n, _ in net.named_parameters()], ["fc"]
    )
    apply(net, rows)
    hold(net.train())
    assert net.layer4[0].bn1.training and not net.layer3[0].bn1.training and not net.bn1.training
    frozen = frozen_names(net, rows)
    assert {"bn1.running_mean", "layer3.0.bn1.num_batches_tracked", "conv1.weight"} <= frozen
    assert not {n for n in frozen if n.startswith(("layer4.", "fc."))}


def test_a_wholly_trainable_network_is_held_nowhere() -> None:
    net, _, _ = ready("resnet")
    net.requires_grad_(True)
    hold(net.train())
    assert all(module.training for module in net.modules())
