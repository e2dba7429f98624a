"""Heat maps against other implementations of the same, and against what they promise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from xfer.core.types import InputSpec, Predictions, Samples
from xfer.data.preprocess import prepare
from xfer.evaluation.layer_cam import find_site, heat_maps
from xfer.report.heat import heat_of

ASSETS = Path(os.environ.get("XFER_ASSETS", Path(__file__).parents[3] / "shared/assets"))
TINY = {"img_size": 64, "num_classes": 3}
VIT = TINY | {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = TINY | {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
MIXER = TINY | {"patch_size": 16, "num_blocks": 2, "embed_dim": 16}


def images(n: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn((n, 3, height, width), generator=torch.Generator().manual_seed(1))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(**VIT, **options).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_layer_cam_is_that_of_the_paper() -> None:
    """Step by step: the network in two parts, and a gradient that autograd keeps."""
    net, x, classes = resnet(), images(3, 160, 128), [4, 0, 2]
    site = find_site(net, x)
    assert site is not None
    assert (site.module, site.layout, site.grid) == ("layer4", "channels first", (5, 4))
    found = heat_maps(net, site, x, classes)
    head = nn.Sequential(*list(net.children())[:8])
    a = head(x)
    a.retain_grad()
    logits = net.fc(net.avgpool(a).flatten(1))
    for i, c in enumerate(classes):
        logits[i, c].backward(retain_graph=True)
    expected = F.relu((F.relu(a.grad) * a).sum(1)).detach().numpy()
    assert expected.max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # The network is as it was, and so is what torch notes of gradients.
    assert torch.is_grad_enabled() and not any(m._forward_hooks for m in net.modules())
    np.testing.assert_array_equal(found, heat_maps(net, site, x, classes))


def test_a_vit_has_gradient_times_the_tokens_of_its_last_block() -> None:
    net, x, classes = vit(), images(), [0, 2, 1]
    site = find_site(net, x)
    assert site is not None
    assert (site.module, site.layout, site.grid, site.before) == (
        *("blocks.1.norm1", "tokens", (4, 4)),
        1,
    )
    found = heat_maps(net, site, x, classes)
    tokens = net._pos_embed(net.patch_embed(x))
    tokens = net.blocks[0](net.norm_pre(tokens))
    last = net.blocks[1]
    a = last.norm1(tokens).detach().requires_grad_()
    after = tokens.detach() + last.attn(a)
    after = after + last.mlp(last.norm2(after))
    logits = net.head(net.norm(after)[:, 0])
    (gradient,) = torch.autograd.grad(logits[range(3), classes].sum(), a)
    expected = F.relu((gradient * a)[:, 1:].sum(-1)).detach().numpy().reshape(3, 4, 4)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("tv_"):
        return torchvision.models.get_model(name[3:], num_classes=3).eval()
    return timm.create_model(name, num_classes=3).eval()


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (lambda: small("tv_squeezenet1_0"), ("features", "channels first", (7, 7), 0)),
        (lambda: small("tv_densenet121"), ("features", "channels first", (4, 4), 0)),
        (lambda: small("tv_mobilenet_v3_small"), ("features", "channels first", (4, 4), 0)),
        (lambda: small("tf_efficientnet_lite0"), ("bn2", "channels first", (4, 4), 0)),
        (lambda: small("convnext_atto"), ("norm_pre", "channels first", (4, 4), 0)),
        (lambda: vit(global_pool="avg"), ("norm", "tokens", (4, 4), 1)),
        (lambda: vit(reg_tokens=4), ("blocks.1.norm1", "tokens", (4, 4), 5)),
        (lambda: MlpMixer(**MIXER).eval(), ("norm", "tokens", (4, 4), 0)),
        (lambda: SwinTransformer(**SWIN).eval(), ("norm", "channels last", (8, 8), 0)),
        (
            lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 24, 48, num_classes=3),
            ("encoder.layers.encoder_layer_1.ln_1", "tokens", (4, 4), 1),
        ),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4]),
            ("norm", "channels last", (8, 8), 0),
        ),
    ],
)
def test_the_map_is_read_where_the_network_is_deepest(net: object, expected: tuple) -> None:
    built = net().eval()  # type: ignore[operator]
    for name, parameter in built.named_parameters():  # of some, the head begins with zeros
        if not parameter.any() and "head" in name:
            nn.init.normal_(parameter)
    side = 64 if expected[1] != "channels first" else 128
    site = find_site(built, images(1, side, side))
    assert site is not None
    assert (site.module, site.layout, site.grid, site.before) == expected
    found = heat_maps(built, site, images(2, side, side), [0, 1])
    assert found.shape == (2, *site.grid) and found.dtype == np.float32
    assert np.isfinite(found).all() and found.min() >= 0


def test_where_maps_end_too_small_an_earlier_one_is_taken() -> None:
    """Of 32 pixels the last map of a ResNet is one pixel, and the one before it two by two."""
    site = find_site(resnet(), images(1, 32, 32))
    assert site is not None and (site.module, site.grid) == ("layer2", (4, 4))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 64 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


def given(n: int, side: int) -> tuple[Predictions, Samples, InputSpec]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(n)]
    logits = rng.normal(0, 2, (n, 2)).astype(np.float32)
    names = tuple(f"{i}.png" for i in range(n))
    answers = Predictions(names, logits, np.arange(n) % 2, ("a", "b"))
    spec = InputSpec((side, side), side, "bilinear", (0.5,) * 3, (0.5,) * 3)
    return answers, Samples(names, answers.labels, pictures, ""), spec  # type: ignore[arg-type]


def test_a_network_without_a_map_says_so_in_words() -> None:
    heat = heat_of(Flat().eval(), *given(12, 64), 6)
    assert heat.maps == {} and heat.said.startswith("There are no heat maps: no layer near the end")


class Stopped(nn.Module):
    """A network whose head has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3)).detach()


def test_a_network_without_a_gradient_says_so_in_words() -> None:
    heat = heat_of(Stopped().eval(), *given(12, 64), 6)
    assert heat.maps == {} and "There are no heat maps: the answers have no gradient" in heat.said


def test_two_in_three_are_the_most_confident_mistakes_and_the_rest_are_right() -> None:
    answers, samples, spec = given(60, 64)
    net = resnet()
    heat = heat_of(net, answers, samples, spec, 9)
    taken = answers.logits.argmax(axis=1)
    wrong = [i for i in heat.maps if taken[i] != answers.labels[i]]
    every = sorted(np.flatnonzero(taken != answers.labels), key=lambda i: -answers.confidence[i])
    assert wrong == every[:6] and sorted({*heat.maps} - {*wrong}) == list(heat.right)
    assert len(heat.right) == 3 and min(found.max() for found in heat.maps.values()) > 0
    assert "LayerCAM at layer3, 4 x 4 cells" in heat.said and "; 9 images have one" in heat.said
    # Each is of the class that the network took the image for, in batches or alone.
    site = find_site(net, images(1))
    assert site is not None
    for i in (wrong[0], heat.right[-1]):
        x = torch.from_numpy(prepare(samples.images[i], spec))[None]
        alone = heat_maps(net, site, x, [int(taken[i])])[0]
        np.testing.assert_allclose(heat.maps[i], alone, rtol=1e-3, atol=1e-6)


def photographs(count: int) -> list[Image.Image]:
    folder = ASSETS / "Canidae/val"
    if not folder.is_dir():
        pytest.skip(f"the Canidae photographs are not in {ASSETS}")
    files = [p for name in ("dogs", "wolves") for p in sorted((folder / name).iterdir())]
    return [Image.open(p).convert("RGB") for p in files[:: len(files) // count][:count]]


def trained(name: str) -> tuple[nn.Module, InputSpec]:
    """A network of 1,000 classes with published weights, and its input."""
    file = ASSETS / f"weights/{name}_imagenet.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    if name == "squeezenet1_0":
        net: nn.Module = torchvision.models.squeezenet1_0()
        spec = InputSpec((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    else:
        net = timm.create_model(name)
        spec = InputSpec((224, 224), 256, "bicubic", (0.5,) * 3, (0.5,) * 3)
    net.load_state_dict(load_file(file))
    return net.eval(), spec


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("squeezenet1_0", 8),
        pytest.param("squeezenet1_0", 40, marks=SLOW),
        pytest.param("tf_efficientnet_lite0", 40, marks=SLOW),
    ],
)
def test_what_is_hottest_matters_more_than_any_other_place(name: str, count: int) -> None:
    """A deletion test (Petsiuk et al., 2018): a fifth of the image is hidden by the mean colour,
    where the map is hottest and, in patches as large as the map's cells, at random."""
    net, spec = trained(name)
    x = torch.from_numpy(np.stack([prepare(image, spec) for image in photographs(count)]))
    with torch.no_grad():
        before = net(x).softmax(1)
    sure, classes = before.max(1)
    site = find_site(net, x)
    assert site is not None
    maps = torch.from_numpy(heat_maps(net, site, x, classes.tolist()))
    rng = torch.Generator().manual_seed(0)

    def left(cells: torch.Tensor) -> torch.Tensor:
        """The confidence where a fifth of the pixels, the largest of ``cells``, are hidden."""
        whole = F.interpolate(cells[:, None], x.shape[-2:], mode="bilinear")[:, 0]
        edge = whole.flatten(1).kthvalue(int(0.8 * whole[0].numel()), dim=1).values
        hidden = whole > edge[:, None, None]
        assert 0.15 < hidden.float().mean() < 0.25
        with torch.no_grad():
            after = net(torch.where(hidden[:, None], torch.zeros(()), x)).softmax(1)
        return after[range(len(x)), classes]

    hot = (sure - left(maps)).mean()
    chance = (sure - left(torch.rand(maps.shape, generator=rng))).mean()
    print(f"{name}, {count} images: hottest {hot:.3f}, random {chance:.3f}")
    assert hot > chance + 0.1
