"""A scale and a shift of the logits in the weights of the last layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from backbones import BACKBONES
from networks import awake
from torch import nn

from xfer.core.protocols import Backbone, Head
from xfer.core.types import Network
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Dropout, Keep, Linear, Mlp, Pooled, swap
from xfer.models.logit_scale import follows, last_layer, scale_logits

SCALE, SHIFT = np.array([0.31, 1.7, 0.9]), np.array([0.4, -1.1, 0.7])
HEADS = {"linear": Linear(), "dropout": Dropout(0.3), "mlp": Mlp(hidden=8), "pooled": Pooled()}
FAMILIES: dict[str, tuple[Backbone, int]] = {
    "resnet": (BACKBONES["digits_resnet"], 32),
    "squeezenet": (Torchvision("squeezenet1_0"), 64),
    "two heads": (Timm("deit_tiny_distilled_patch16_224", args={"depth": 2}, image_size=32), 32),
}


def built(backbone: Backbone, head: Head, classes: int = 3) -> Network:
    torch.manual_seed(0)
    network = backbone.build(classes if isinstance(head, Keep) else None)
    swap(network, head, classes)
    awake(network.module).eval()
    return network


def layers_of(network: Network) -> list[str]:
    layers = [last_layer(network.module, head, 3) for head in network.heads]
    assert all(layers)
    return [layer for layer in layers if layer]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", HEADS)
def test_the_folded_network_answers_as_the_scaled_logits(name: str, family: str) -> None:
    backbone, size = FAMILIES[family]
    network = built(backbone, HEADS[name])
    images = torch.randn(4, 3, size, size)
    layers = layers_of(network)
    assert follows(network.module, layers, (size, size)) == (True, True)
    with torch.no_grad():
        before = network.module(images).double().numpy()
        others = {n: t.clone() for n, t in network.module.state_dict().items()}
        scale_logits(network.module, layers, SCALE, SHIFT)
        after = network.module(images).numpy()
    np.testing.assert_allclose(after, before * SCALE + SHIFT, atol=1e-5)
    moved = {n for n, t in network.module.state_dict().items() if not t.equal(others[n])}
    assert moved == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_after_a_relu_a_scale_holds_and_a_shift_does_not() -> None:
    network = built(Torchvision("squeezenet1_0"), Keep())
    layers, images = layers_of(network), torch.randn(4, 3, 64, 64)
    assert follows(network.module, layers, (64, 64)) == (True, False)
    with torch.no_grad():
        before = network.module(images).double().numpy()
        scale_logits(network.module, layers, SCALE, np.zeros(3))
        after = network.module(images).numpy()
    assert before.max() > 0
    np.testing.assert_allclose(after, before * SCALE, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "answer"),
    [
        (lambda z: z**3, (False, False)),
        (lambda z: z.softmax(1), (False, False)),
        (nn.functional.leaky_relu, (True, False)),
        (lambda z: z.flip(1), (False, False)),
        (lambda z: 2 * z, (True, False)),
        (lambda z: z, (True, True)),
    ],
    ids=["cube", "softmax", "leaky", "swapped", "doubled", "same"],
)
def test_what_comes_after_the_layer_is_noticed(
    after: Callable[[torch.Tensor], torch.Tensor], answer: tuple[bool, bool]
) -> None:
    network = built(BACKBONES["digits_resnet"], Linear())
    network.module.register_forward_hook(lambda *given: after(given[-1]))
    assert follows(network.module, layers_of(network), (32, 32)) == answer


def test_weights_that_were_never_set_are_of_no_account() -> None:
    network = built(BACKBONES["digits_resnet"], Linear())
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.fill_(float("nan"))
    assert follows(network.module, layers_of(network), (32, 32)) == (True, True)


def test_a_layer_that_is_not_plain_is_none() -> None:
    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) ** 2

    def net(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Sequential(*layers))

    assert last_layer(net(nn.Linear(4, 3)), "1", 3) == "1.0"
    assert last_layer(net(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "1", 3) == "1.2"
    for layers in (
        (Odd(4, 3),),
        (nn.Linear(4, 3, bias=False),),
        (nn.Linear(4, 5),),
        (nn.Linear(4, 3), nn.BatchNorm1d(3)),
        (nn.ReLU(),),
    ):
        assert last_layer(net(*layers), "1", 3) is None, layers
