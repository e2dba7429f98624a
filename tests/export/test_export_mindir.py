"""MindIR files answer as the network does, or say which operator they cannot hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import make
from real_mindspore import Images, by_mindspore, needs_mindspore
from test_export import facts
from torch import nn

from xfer.core.errors import ExportError
from xfer.core.protobuf import Malformed
from xfer.core.types import Card, InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.export import Mindir, export
from xfer.export.mindir.graph import graph_of
from xfer.export.mindir.parse import read
from xfer.export.mindir.run import runner
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Keep, Linear, Mlp
from xfer.models.network import Parts, from_weights
from xfer.weights.mindspore import mindir_tensors
from xfer.weights.source.mindspore import MindSpore

CLASSES = ("dogs", "wolves")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = Timm("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]})
INCEPTION = {"aux_logits": False, "init_weights": False, "transform_input": True}
QUICK = [
    pytest.param(TINY, Mlp(8), id="a head of several layers"),
    # Its layers are in the mixture below, which is exported in a tenth of the time.
    pytest.param(Timm("mobilenetv3_small_050"), Linear(), id="mobilenetv3", marks=pytest.mark.slow),
    pytest.param(
        Timm("vit_tiny_patch16_224", {"depth": 1, "img_size": 64}), Linear(), id="transformer"
    ),
    pytest.param(Torchvision("squeezenet1_0"), Linear(), id="squeezenet1_0"),
]
MORE = [
    Timm("resnet18"),
    Timm("resnet50"),
    Timm("mobilenetv2_035"),
    Timm("mobilenetv3_large_100"),
    Timm("efficientnet_lite0"),
    Timm("efficientnet_b0"),
    Timm("vit_tiny_patch16_224", {"img_size": 64}),
    Timm("convnext_atto"),
    Timm("convnextv2_atto"),
    Timm("edgenext_xx_small"),
    Timm("eca_resnet33ts"),
    Timm("poolformer_s12"),
    Timm("resnet18", {"act_layer": "selu"}),
    Timm("volo_d1_224", {"img_size": 64}),
    Torchvision("googlenet", INCEPTION),
    Torchvision("mobilenet_v2"),
    Torchvision("mobilenet_v3_small"),
    Torchvision("squeezenet1_0"),
    Torchvision("squeezenet1_1"),
    Torchvision("swin_v2_t"),
]


def pictures(assets: Path, size: int, count: int = 3) -> Images:
    """Real photographs, ``count`` a class."""
    spec = InputSpec((size, size), size + 8, "bilinear", MEAN, STD)
    folders = [sorted((assets / "Canidae" / "val" / name).iterdir())[:count] for name in CLASSES]
    return np.stack([prepare(decode(path), spec) for paths in folders for path in paths])


@pytest.fixture(scope="module")
def images(assets: Path) -> Images:
    return pictures(assets, 64)


def card(backbone: Any = TINY, head: Any = None) -> Card:
    spec = InputSpec((64, 64), 72, "bilinear", MEAN, STD)
    return Card(facts(backbone), facts(head or Linear()), CLASSES, spec)


def logits(net: nn.Module, images: Images) -> Images:
    with torch.inference_mode():
        return np.asarray(net(torch.from_numpy(images)))


def written(net: nn.Module, images: Images, folder: Path) -> Path:
    """The file alone, without the gate."""
    path = folder / "model.mindir"
    Mindir().write(net, images, card(), path)
    return path


@pytest.fixture(scope="module")
def original(images: Images, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of the tiny ResNet."""
    return written(make(TINY), images, tmp_path_factory.mktemp("mindir")).read_bytes()


@pytest.fixture
def tiny(original: bytes, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    path = tmp_path / "model.mindir"
    path.write_bytes(original)
    return path


# ---- what is written


@pytest.mark.parametrize(("backbone", "head"), QUICK)
def test_a_network_passes_the_gate_at_every_batch_size(
    backbone: Any, head: Any, images: Images, tmp_path: Path
) -> None:
    net = make(backbone, head)
    assert logits(net, images).std() > 1e-3, "the test cannot fail"
    (entry,) = export(net, images, [Mindir()], card(backbone, head), tmp_path, 1e-4)
    assert (entry.format, entry.file, entry.batches) == ("mindir", "model.mindir", (1, 2, 6))
    assert entry.agree == 1 and entry.facts["mind_ir_version"] == 1
    assert json.loads((tmp_path / "parity.json").read_text())[0]["sha256"] == entry.sha256


@pytest.mark.parametrize("size", [pytest.param(64, marks=pytest.mark.slow), 79])
def test_pools_that_round_up_are_right_at_every_image_size(
    size: int, assets: Path, tmp_path: Path
) -> None:
    net, images = make(Torchvision("squeezenet1_0")), pictures(assets, size, 1)
    got = runner(written(net, images, tmp_path))(images)
    assert np.abs(got - logits(net, images)).max() < 1e-5


def test_the_same_network_gives_the_same_bytes(
    original: bytes, images: Images, tmp_path: Path
) -> None:
    assert written(make(TINY), images, tmp_path).read_bytes() == original


def test_the_file_knows_its_classes_and_preprocessing(tiny: Path) -> None:
    facts = read(tiny).facts
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert InputSpec.from_plain(json.loads(facts["preprocess"])) == card().input
    assert Card.from_plain(json.loads(facts["card"])) == card()


def test_the_reader_of_weights_finds_them_in_the_file(tiny: Path) -> None:
    content = mindir_tensors.read(tiny)
    state = make(TINY).state_dict()
    assert torch.equal(content.state["fc.weight"], state["fc.weight"])
    assert content.state["conv1.weight"].shape == state["conv1.weight"].shape


def test_operators_that_the_families_do_not_need_are_right_too(
    images: Images, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = Mixture().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    want = logits(net, images)
    (entry,) = export(net, images, [Mindir()], card(), tmp_path, 1e-5)
    assert want.std() > 1e-2 and entry.agree == 1


class Mixture(nn.Module):
    """Averages with and without borders, a norm before its convolution, chunks, both GELUs, and
    the gate of a MobileNet: a convolution by channel, its mean squeezed, hard sigmoid and swish."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2)
        self.even, self.odd = nn.AvgPool2d(2, 2), nn.AvgPool2d((3, 5), 2, (1, 2))
        self.exact, self.tanh = nn.GELU(), nn.GELU(approximate="tanh")
        self.deep, self.gate = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.hard, self.swish = nn.Hardsigmoid(), nn.Hardswish()
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.odd(self.exact(self.even(self.conv(self.norm(x) / 2 - 0.1))))
        first, second = x.chunk(2, 1)
        x = torch.cat([self.tanh(second), first.sigmoid() * second.erf()], 1)
        x = self.swish(self.deep(x))
        x = x * self.hard(self.gate(x.mean((2, 3), keepdim=True)))
        # Factor 8: logits as far apart as those of a trained network.
        return 8 * self.last(x.flatten(2).transpose(1, 2)[:, 3:].mean(1))


# ---- what MindIR cannot hold


class After(nn.Module):
    """A layer of one's own behind a convolution."""

    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 2, 3, 2), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.conv(x)).mean((2, 3))


def test_what_mindir_cannot_hold_is_named_and_refused(images: Images, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export(After(torch.tan).eval(), images, [Mindir()], card(), tmp_path, 1e-4)
    assert "xfer cannot write Tan as MindIR (operator Tan, " in str(caught.value)
    assert caught.value.exit == 10 and "ONNX" in caught.value.fix
    assert not (tmp_path / "model.mindir").exists()


def test_a_size_that_is_no_multiple_of_the_batch_is_refused(images: Images) -> None:
    twice = onnx.helper.make_node("Concat", ["images", "one"], ["logits"], axis=0)
    one = onnx.numpy_helper.from_array(images[:1], "one")
    shape = onnx.helper.make_tensor_value_info("images", 1, ["n", 3, 64, 64])
    out = onnx.helper.make_tensor_value_info("logits", 1, None)
    graph = onnx.helper.make_graph([twice], "g", [shape], [out], [one])
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(ExportError, match=r"'logits' follows the batch as \(3, 3, 64, 64\)"):
        graph_of(model, images)


def test_a_file_that_protobuf_could_not_read_is_not_written(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfer.export.mindir.writer._LARGEST", 100_000)
    with pytest.raises(ExportError, match="a MindIR file holds at most 100,000"):
        written(make(TINY), images, tmp_path)
    assert not (tmp_path / "model.mindir").exists()


# ---- the interpreter


def changed(path: Path, old: bytes, new: bytes) -> Path:
    """``path`` with other bytes at the first place that has ``old``."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    return path


def test_a_primitive_that_the_interpreter_does_not_know_is_no_answer(
    tiny: Path, images: Images
) -> None:
    changed(tiny, b"\x12\x07BiasAdd", b"\x12\x07BiasOdd")
    with pytest.raises(Malformed, match="'BiasOdd' is not known"):
        runner(tiny)(images)


def test_a_shape_in_the_file_that_is_not_what_comes_out_is_no_answer(
    tiny: Path, images: Images
) -> None:
    # Of what comes out of the last layer: dims -1 and 2, float32.
    dims = b"\x08" + b"\xff" * 9 + b"\x01"
    changed(tiny, dims + b"\x08\x02\x10\x01", dims + b"\x08\x03\x10\x01")
    with pytest.raises(Malformed, match=r"is \(6, 2\), the file says \(-1, 3\)"):
        runner(tiny)(images)


def test_a_file_of_another_version_or_cut_off_is_no_answer(tiny: Path, original: bytes) -> None:
    tiny.write_bytes(original[:-20])
    with pytest.raises(Malformed):
        runner(tiny)
    tiny.write_bytes(original.replace(b"\x68\x01", b"\x68\x03"))
    with pytest.raises(Malformed, match="mind_ir_version is 3, not 1"):
        runner(tiny)


def test_a_file_whose_settings_are_wrong_is_refused_by_the_gate(
    original: bytes, images: Images, tmp_path: Path
) -> None:
    class Wrong(Mindir):
        def write(self, net: nn.Module, images: Images, card: Card, path: Path) -> Any:
            path.write_bytes(original)
            changed(path, b"\x12\x04ReLU", b"\x12\x04GeLU")
            return {}

    with pytest.raises(ExportError, match="answers differently from the network"):
        export(make(TINY), images, [Wrong()], card(), tmp_path, 1e-4)
    assert not (tmp_path / "model.mindir").exists()


# ---- the full circle


def test_a_checkpoint_of_mindspore_becomes_a_mindir_that_answers_as_mindspore_did(
    assets: Path, tmp_path: Path
) -> None:
    folder = assets / "mindspore"
    for kind, backbone, file in [
        ("zoo", Timm("resnet50", {"layers": [1] * 4, "channels": [4, 6, 8, 12]}), "zoo_v1.0.ckpt"),
        ("cv", Timm("resnet18", {"layers": [1] * 4, "channels": [8, 12, 16, 24]}), "cv_v2.10.ckpt"),
    ]:
        images, want = np.load(folder / f"{kind}_x.npy"), np.load(folder / f"{kind}_logits.npy")
        weights = MindSpore(str(folder / file)).load(backbone)
        net = from_weights(Parts(backbone, Keep(), 5, compat=weights.compat), weights).eval()
        got = runner(written(net, images, tmp_path))(images)
        assert np.abs(got - want).max() <= 2e-5 * max(1, np.abs(want).max())


# ---- the real MindSpore


@pytest.mark.slow
@pytest.mark.parametrize("backbone", MORE, ids=lambda spec: f"{type(spec).__name__}-{spec.name}")
def test_an_architecture_passes_the_gate(backbone: Any, images: Images, tmp_path: Path) -> None:
    (entry,) = export(make(backbone), images, [Mindir()], card(backbone), tmp_path, 1e-4)
    assert entry.agree == 1


@pytest.mark.slow
@needs_mindspore
@pytest.mark.parametrize("backbone", MORE, ids=lambda spec: f"{type(spec).__name__}-{spec.name}")
def test_the_real_mindspore_agrees(
    backbone: Any, images: Images, tmp_path: Path, capsys: Any
) -> None:
    net = make(backbone)
    want = logits(net, images)
    got = by_mindspore(images, written(net, images, tmp_path))[0]
    worst = {name: float(np.abs(z - want[: len(z)]).max()) for name, z in got.items()}
    with capsys.disabled():
        print(f"\n| {backbone.name} | {np.abs(want).max():.3g} | {worst} |")
    assert want.std() > 1e-4, "the test cannot fail"
    assert max(worst.values()) <= 1e-4 * max(1, np.abs(want).max())


@pytest.mark.slow
@needs_mindspore
def test_the_real_mindspore_agrees_on_the_other_operators(images: Images, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Mixture().eval()
    want = logits(net, images)
    got = by_mindspore(images, written(net, images, tmp_path))[0]
    assert all(np.abs(z - want[: len(z)]).max() < 1e-5 for z in got.values())


@pytest.mark.slow
@needs_mindspore
@pytest.mark.parametrize("kind", ["zoo", "cv"])
def test_from_mindspore_to_mindspore(kind: str, assets: Path, tmp_path: Path) -> None:
    folder, deep = assets / "mindspore", kind == "zoo"
    backbone = (
        Timm("resnet50", {"layers": [1] * 4, "channels": [4, 6, 8, 12]})
        if deep
        else Timm("resnet18", {"layers": [1] * 4, "channels": [8, 12, 16, 24]})
    )
    images, want = np.load(folder / f"{kind}_x.npy"), np.load(folder / f"{kind}_logits.npy")
    file = folder / ("zoo_v1.0.ckpt" if deep else "cv_v2.10.ckpt")
    weights = MindSpore(str(file)).load(backbone)
    net = from_weights(Parts(backbone, Keep(), 5, compat=weights.compat), weights).eval()
    got = by_mindspore(images, written(net, images, tmp_path))[0]["bN"]
    assert np.abs(got - want).max() <= 2e-5 * max(1, np.abs(want).max())
