from __future__ import annotations

from itertools import product

import pytest
import torch
from backbones import BACKBONES
from networks import awake
from torch import nn

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone, Head
from xfer.core.types import InputSpec, Network
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Dropout, Keep, Linear, Mlp, Pooled, swap
from xfer.models.network import Parts
from xfer.models.network import from_weights as fresh
from xfer.weights.content import Weights

NONE = Weights("none", None)
HEADS: dict[str, Head] = {
    "linear": Linear(),
    "dropout": Dropout(0.3),
    "mlp": Mlp(hidden=8),
    "pooled": Pooled(),
}
FAMILIES: dict[str, tuple[Backbone, int]] = {
    "resnet": (BACKBONES["digits_resnet"], 32),
    "vit": (Timm("deit_tiny_distilled_patch16_224", args={"depth": 2}, image_size=32), 32),
    "squeezenet": (Torchvision("squeezenet1_0"), 64),
    "swin": (Timm("swin_tiny_patch4_window7_224", args={"depths": (1, 1, 1, 1)}), 224),
    "levit": (Timm("levit_128s"), 224),
    "googlenet": (Torchvision("googlenet"), 64),
}
# Small enough to run for real; the rest of the backbones is checked by shape.
REAL: dict[str, tuple[Backbone, int]] = {
    "mobilenetv3_small_100": (Timm("mobilenetv3_small_100"), 64),
    "mnasnet0_5": (Torchvision("mnasnet0_5"), 64),
    "regnet_y_400mf": (Torchvision("regnet_y_400mf"), 64),
    "mobilenet_v2": (Torchvision("mobilenet_v2"), 64),
    "efficientnet_b0": (Torchvision("efficientnet_b0"), 64),
    "densenet121": (Torchvision("densenet121"), 64),
    "dinov2": (
        Timm("vit_small_patch14_dinov2.lvd142m", args={"depth": 1}, image_size=28),
        28,
    ),
}
HEAVY: dict[str, tuple[Backbone, int]] = {
    "vit_b_16": (Torchvision("vit_b_16", image_size=32), 32),
    "inception_v3": (Torchvision("inception_v3"), 96),
    "vgg11": (Torchvision("vgg11"), 32),
    "swin_t": (Torchvision("swin_t"), 32),
    "maxvit_t": (Torchvision("maxvit_t"), 224),
    "convnext_tiny": (Torchvision("convnext_tiny"), 32),
    "resnet50": (Timm("resnet50"), 32),
    "timm convnext_tiny": (Timm("convnext_tiny"), 32),
}


def assemble(parts: Parts, weights: Weights) -> nn.Module:
    """A network whose head is no longer zero."""
    return awake(fresh(parts, weights))


def check_output(backbone: Backbone, size: int, head: Head, classes: int = 2) -> nn.Module:
    net = assemble(Parts(backbone, head, classes), NONE)
    for mode in (True, False):
        out = net.train(mode)(torch.randn(2, 3, size, size))
        assert type(out) is torch.Tensor and out.shape == (2, classes)
        assert torch.isfinite(out).all()
    return net


@pytest.mark.parametrize(("family", "head"), list(product(FAMILIES, HEADS)))
def test_every_head_gives_class_logits_in_both_modes(family: str, head: str) -> None:
    check_output(*FAMILIES[family], HEADS[head])


@pytest.mark.parametrize("name", REAL)
def test_a_linear_head_gives_class_logits_in_both_modes(name: str) -> None:
    check_output(*REAL[name], Linear())


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_a_linear_head_on_a_heavy_backbone_gives_class_logits(name: str) -> None:
    check_output(*HEAVY[name], Linear())


@pytest.mark.parametrize("family", ["resnet", "squeezenet"])
def test_a_dropout_head_drops_while_training_under_plain_names(family: str) -> None:
    backbone, _ = FAMILIES[family]
    net = assemble(Parts(backbone, Dropout(0.5), 2), NONE)
    plain = assemble(Parts(backbone, Linear(), 2), NONE)
    assert list(net.state_dict()) == list(plain.state_dict())
    (path,) = backbone.build().heads
    layer = net.get_submodule(path)
    x = torch.ones(4, layer.weight.shape[1], *([1, 1] if family == "squeezenet" else []))
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))


@pytest.mark.parametrize("head", HEADS)
def test_squeezenet_can_answer_below_zero(head: str) -> None:
    net = assemble(Parts(Torchvision("squeezenet1_0"), HEADS[head], 5), NONE).eval()
    x = torch.randn(8, 3, 64, 64)
    assert (net(x) < 0).any()
    assert not any(isinstance(m, nn.ReLU) for m in list(net.classifier.children())[2:])


@pytest.mark.parametrize("head", [Linear(), Dropout(0.5)])
def test_squeezenets_tensors_still_load_in_plain_torchvision(head: Head) -> None:
    from torchvision import models

    net = assemble(Parts(Torchvision("squeezenet1_0"), head, 3), NONE).eval()
    plain = models.squeezenet1_0(num_classes=3).eval()
    plain.load_state_dict(net.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        # What is left of the difference is the activation behind plain torchvision's classifier.
        maps = net.classifier[1](net.features(x)).relu().mean((2, 3))
        torch.testing.assert_close(plain(x), maps)


@pytest.mark.parametrize("family", ["swin", "googlenet", "resnet"])
def test_a_linear_heads_tensors_compute_the_same_in_the_library(family: str) -> None:
    import timm
    from torchvision import models

    backbone, size = FAMILIES[family]
    net = assemble(Parts(backbone, Linear(), 3), NONE).eval()
    if backbone.library == "timm":
        plain = timm.create_model(backbone.name, num_classes=3, **backbone.args)
    else:
        plain = models.googlenet(
            num_classes=3, aux_logits=False, init_weights=False, transform_input=True
        )
    plain.load_state_dict(net.state_dict(), strict=True)
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(plain.eval()(x), net(x))


def test_the_pooled_head_is_the_mean_over_positions_and_one_dense_layer() -> None:
    net = assemble(Parts(Torchvision("squeezenet1_0"), Pooled(), 2), NONE).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = net.features(x).mean((2, 3))
        torch.testing.assert_close(net(x), net.classifier[1].dense(features))


def test_a_new_head_depends_on_the_seed_and_the_backbone_does_not_depend_on_the_head() -> None:
    backbone, _ = FAMILIES["resnet"]
    one, same, other = (
        fresh(Parts(backbone, Mlp(), 2, seed), NONE).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["fc.0.weight"], other["fc.0.weight"])
    linear = fresh(Parts(backbone, Linear(), 2, 1), NONE).state_dict()
    assert all(torch.equal(one[n], linear[n]) for n in one if not n.startswith("fc."))


def test_assembling_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    fresh(Parts(FAMILIES["resnet"][0], Linear(), 2), NONE)
    assert torch.equal(before, torch.random.get_rng_state())


def test_keep_changes_nothing() -> None:
    network = Torchvision("squeezenet1_0").build(4)
    old = network.module.classifier[1]
    swap(network, Keep(), 4)
    assert network.module.classifier[1] is old
    assert isinstance(network.module.classifier[2], nn.ReLU)


def test_a_classifier_of_another_kind_is_refused() -> None:
    spec = InputSpec((8, 8), 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    network = Network(nn.Sequential(nn.Flatten(), nn.Bilinear(2, 2, 2)), ("1",), spec)
    with pytest.raises(ConfigError, match="Bilinear"):
        swap(network, Linear(), 2)
