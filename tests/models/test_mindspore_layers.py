from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from xfer.core.errors import WeightsError
from xfer.core.types import Card, Plain
from xfer.export import Onnx
from xfer.models import mindspore_layers
from xfer.models.backbone import Timm, Torchvision
from xfer.models.mindspore_layers import SameConv2d, SameMaxPool2d
from xfer.weights.content import Shape

Array = npt.NDArray[Any]

SMALL = Timm("resnet50", args={"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 12]})
EXACT: Plain = {
    "dialect": "zoo_resnet_bottleneck",
    "batch_norm": [{"match": ".*", "eps": 1e-4, "momentum": 0.1}],
    "same": [".*"],
}
SIZES = [(1, 1), (1, 9), (2, 3), (5, 7), (6, 6), (7, 8), (10, 4), (11, 12)]


def windows(size: int, kernel: int, stride: int, dilation: int) -> Iterator[list[int]]:
    """The input positions of each output position, -1 where there is no input: by hand, one
    pixel of padding after the other, at the end first."""
    wanted, before, after = (size + stride - 1) // stride, 0, 0
    while size + before + after < (wanted - 1) * stride + (kernel - 1) * dilation + 1:
        before, after = (before, after + 1) if before == after else (before + 1, after)
    for start in range(wanted):
        reached = [start * stride + tap * dilation - before for tap in range(kernel)]
        yield [at if 0 <= at < size else -1 for at in reached]


def slowly(x: Array, shape: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Array:
    """The windows of ``x`` (channels, h, w) padded with NaN, as (channels, h', w', kh, kw)."""
    rows, columns = (
        list(windows(n, k, s, d))
        for n, k, s, d in zip(shape, kernel, stride, dilation, strict=True)
    )
    found = np.full((len(x), len(rows), len(columns), *kernel), np.nan)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        for (a, y), (b, z) in itertools.product(enumerate(row), enumerate(column)):
            if y >= 0 and z >= 0:
                found[:, i, j, a, b] = x[:, y, z]
    return found


SHAPES = [
    ((1, 1), (2, 2), (1, 1)),
    ((2, 2), (1, 1), (1, 1)),
    ((2, 2), (2, 2), (1, 1)),
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (2, 2)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 3), (2, 2), (2, 2)),
    ((3, 3), (4, 3), (1, 1)),
    ((4, 3), (1, 2), (1, 3)),
    ((5, 5), (3, 3), (1, 1)),
    ((7, 7), (2, 2), (1, 1)),
]


def padded(layer: nn.Module) -> nn.Module:
    net = nn.Sequential(layer)
    mindspore_layers.apply(net, {"same": ["0"]})
    return net


@pytest.mark.parametrize("kernel, stride, dilation", SHAPES[1:])
def test_convolutions_are_padded_as_by_hand(kernel: Shape, stride: Shape, dilation: Shape) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding=0, dilation=dilation, dtype=torch.float64)
    net = padded(layer)
    for size in SIZES:
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        found = slowly(x[0].numpy(), size, kernel, stride, dilation)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        want = np.einsum("chwab,ocab->ohw", np.nan_to_num(found), weight) + bias[:, None, None]
        np.testing.assert_allclose(net(x).detach().numpy()[0], want, atol=1e-12)


@pytest.mark.parametrize("kernel, stride, dilation", SHAPES)
def test_max_pools_ignore_what_they_pad(kernel: Shape, stride: Shape, dilation: Shape) -> None:
    torch.manual_seed(0)
    net = padded(nn.MaxPool2d(kernel, stride, dilation=dilation, ceil_mode=True))
    for size in SIZES:
        # Dilated windows of a small image may see no pixel at all.
        x = torch.randn(1, 2, *size) - 5
        found = slowly(x[0].numpy(), size, kernel, stride, dilation)
        found[np.isnan(found)] = -np.inf
        np.testing.assert_array_equal(net(x).numpy()[0], found.max(axis=(3, 4)))


@pytest.mark.parametrize("size", [(6, 6), (7, 9)])
def test_gradients_are_those_of_a_convolution_that_was_padded_by_hand(size: Shape) -> None:
    torch.manual_seed(0)
    net = padded(nn.Conv2d(1, 1, 3, 2, dtype=torch.float64))
    assert isinstance(net[0], SameConv2d)
    x = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)


def test_layers_change_in_place_and_their_tensors_stay() -> None:
    net = SMALL.build(5).module
    before = dict(net.named_parameters()), list(net.state_dict())
    paths = [path for path, _ in net.named_modules()]
    mindspore_layers.apply(net, EXACT)
    assert (dict(net.named_parameters()), list(net.state_dict())) == before
    assert [path for path, _ in net.named_modules()] == paths
    assert all(net.get_parameter(name) is p for name, p in before[0].items())
    kinds = {path: type(layer) for path, layer in net.named_modules()}
    looking = {path for path, kind in kinds.items() if kind in (SameConv2d, SameMaxPool2d)}
    # At stride 1 the padding is the same at every size; 1x1 convolutions need none.
    assert looking == {"conv1", "maxpool", *(f"layer{i}.0.conv2" for i in (2, 3, 4))}
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-4}


def test_applying_twice_is_applying_once() -> None:
    once = SMALL.build(5).module.eval()
    mindspore_layers.apply(once, EXACT)
    twice = copy.deepcopy(once)
    mindspore_layers.apply(twice, EXACT)
    assert not any(layer.training for layer in twice.modules())
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(once(x), twice(x))


def test_nothing_to_do_changes_nothing() -> None:
    net = SMALL.build(5).module
    text = str(net)
    mindspore_layers.apply(net, {})
    mindspore_layers.apply(net, {"dialect": "plain"})
    assert str(net) == text


def test_the_first_rule_that_matches_counts() -> None:
    net = Timm("resnet18").build().module
    rules = [
        {"match": r"layer\d+\.\d+\.bn[12]", "eps": 1e-4, "momentum": 0.1},
        {"match": ".*", "eps": 1e-5, "momentum": 0.9},
    ]
    mindspore_layers.apply(net, {"batch_norm": rules})
    assert (net.layer1[0].bn2.eps, net.layer1[0].bn2.momentum) == (1e-4, 0.1)
    assert (net.bn1.eps, net.bn1.momentum) == (1e-5, 0.9)
    assert net.layer2[0].downsample[1].momentum == 0.9


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"same": ["maxpool", "layer9.*"]}, r"no same layer matches.*layer9"),
        ({"same": [".*", "maxpool"]}, r"no same layer matches the rule 'maxpool'"),
        ({"same": [r"layer1\.0\.conv1"]}, "no same layer matches"),
        ({"batch_norm": [{"match": "maxpool", "eps": 0.1}]}, "no batch_norm layer matches"),
        ({"layer_norm": [{"match": ".*", "eps": 0.1}]}, "no layer_norm layer matches"),
        ({"batch_norm": [{"match": ".*", "forward": 1}]}, "'forward' of the layer 'bn1'"),
        ({"network": [{"match": "", "transform_input": False}]}, "'transform_input' of the layer"),
        ({"blur": [".*"]}, "asks for 'blur'"),
    ],
)
def test_a_rule_that_cannot_be_obeyed_is_told(rules: Plain, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as told:
        mindspore_layers.apply(SMALL.build(5).module, rules)
    assert told.value.number in (475, 476)


def test_a_convolution_of_another_kind_is_not_taken_for_torchs() -> None:
    class Odd(nn.Conv2d):
        """Does something else with its weight."""

    with pytest.raises(WeightsError, match=r"'0', a Odd"):
        padded(Odd(1, 1, 3, 2))


def test_the_other_kinds_of_rules_reach_their_layers() -> None:
    squeezenet = Torchvision("squeezenet1_1").build().module
    rules = {
        "conv": [{"match": r"features\.0", "padding": [1, 1]}],
        "max_pool": [{"match": ".*", "ceil_mode": False}],
    }
    mindspore_layers.apply(squeezenet, rules)
    assert squeezenet.features[0].padding == (1, 1) and not squeezenet.features[2].ceil_mode
    assert squeezenet.features[3].expand3x3.padding == (1, 1)
    vit = Timm("vit_tiny_patch16_224", args={"depth": 1}).build().module
    norm = [{"match": ".*", "eps": 1e-7}]
    mindspore_layers.apply(
        vit, {"layer_norm": norm, "gelu": [{"match": ".*", "approximate": "tanh"}]}
    )
    assert vit.blocks[0].norm1.eps == vit.norm.eps == 1e-7
    assert vit.blocks[0].mlp.act.approximate == "tanh"
    googlenet = Torchvision("googlenet").build().module
    mindspore_layers.apply(googlenet, {"network": [{"match": "", "transform_input": False}]})
    assert googlenet.transform_input is False


def exact(device: str = "cpu") -> nn.Module:
    torch.manual_seed(1)
    with torch.device(device):
        net = SMALL.build(5).module
    mindspore_layers.apply(net, EXACT)
    for name, buffer in net.named_buffers():
        if name.endswith("running_var") and device == "cpu":
            buffer.uniform_(0.5, 1.5)
    return net.eval()


def test_a_network_on_the_meta_device_gets_the_same_layers() -> None:
    net = exact("meta")
    assert str(net) == str(exact())
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    assert net(torch.empty(2, 3, 48, 48, device="meta")).shape == (2, 5)


def test_building_the_layers_draws_no_random_numbers() -> None:
    net = SMALL.build(5).module
    torch.manual_seed(3)
    mindspore_layers.apply(net, EXACT)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_copies_and_another_memory_layout_answer_alike() -> None:
    net = exact()
    x = torch.randn(2, 3, 50, 47)
    with torch.inference_mode():
        want = net(x)
        assert torch.equal(copy.deepcopy(net)(x), want)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), want)
        features = last.maxpool(last.conv1(x.to(memory_format=torch.channels_last)))
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_the_layers_compile_whole_at_more_than_one_size() -> None:
    net = nn.Sequential(SameConv2d(3, 4, 3, 2), SameMaxPool2d(3, 2))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for size in [(2, 3, 20, 21), (2, 3, 33, 21)]:
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))


def test_an_exported_program_takes_any_batch_and_any_size() -> None:
    net = nn.Sequential(SameConv2d(3, 4, 3, 2), SameMaxPool2d(3, 2))
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(net, (torch.randn(2, 3, 20, 21),), dynamic_shapes=(free,))
    run = program.module()
    for shape in [(1, 3, 20, 21), (3, 3, 24, 24), (2, 3, 31, 50)]:
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), net(x))


def test_an_onnx_file_of_an_exact_network_answers_alike_at_any_batch(tmp_path: Path) -> None:
    net = exact()
    images = torch.randn(3, 3, 48, 48).numpy()
    backbone = {"_target_": "xfer.models.backbone.Timm", "name": "resnet50"}
    card = Card(
        backbone, {"_target_": "xfer.models.head.Keep"}, tuple("abcde"), SMALL.build(5).input
    )
    Onnx().write(net, images, card, tmp_path / "model.onnx")
    run = Onnx().open(tmp_path / "model.onnx", net)
    plain = SMALL.build(5).module.eval()
    plain.load_state_dict(net.state_dict())
    with torch.inference_mode():
        want, other = net(torch.from_numpy(images)).numpy(), plain(torch.from_numpy(images)).numpy()
    for batch in (1, 3):
        np.testing.assert_allclose(run(images[:batch]), want[:batch], atol=1e-5)
    assert np.abs(other - want).max() > 1e-3
