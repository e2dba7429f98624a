"""Exported files answer as the network does, or are not there."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from networks import awake
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import xfer
from xfer.core.errors import ExportError, OutputError, Problems, XferError
from xfer.core.files import file_sha256
from xfer.core.types import Card, Exported, InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.export import Onnx, Safetensors, export
from xfer.export.parity import Answered, allowed
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Dropout, Linear, Mlp, Pooled, swap

Images = np.ndarray[Any, np.dtype[np.float32]]

CLASSES = ("dogs", "wolves")
SPEC = InputSpec((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TOLERANCE = 1e-4
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}


def pictures(assets: Path, part: slice, spec: InputSpec = SPEC) -> Images:
    folders = [sorted((assets / "Canidae" / "val" / name).iterdir())[part] for name in CLASSES]
    return np.stack([prepare(decode(path), spec) for paths in folders for path in paths])


@pytest.fixture(scope="module")
def images(assets: Path) -> Images:
    """Five dogs, five wolves."""
    return pictures(assets, slice(5))


@pytest.fixture(scope="module")
def small(assets: Path) -> Images:
    """Three dogs, three wolves, at 64 x 64 pixels."""
    return pictures(assets, slice(3), replace(SPEC, size=(64, 64), resize=72))


def facts(spec: Any) -> dict[str, Any]:
    group = type(spec).__module__.split(".")[2]
    return {"_target_": f"xfer.models.{group}.{type(spec).__name__}", **asdict(spec)}


def make(backbone: Any, head: Any, seed: int = 0) -> tuple[nn.Module, Card]:
    """A network as xfer makes it, random weights, with statistics that are not the initial ones."""
    torch.manual_seed(seed)
    network = backbone.build()
    swap(network, head, len(CLASSES))
    awake(network.module, seed)
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.module.eval(), Card(facts(backbone), facts(head), CLASSES, SPEC)


def tiny(head: Any = None) -> tuple[nn.Module, Card]:
    return make(Timm("resnet18", TINY), head or Linear())


def logits(net: nn.Module, images: Images) -> Images:
    with torch.inference_mode():
        return np.asarray(net(torch.from_numpy(images)))


def softmax(logits: Images) -> Images:
    return np.asarray(torch.from_numpy(logits).double().softmax(1))


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def plain_model(path: Path) -> nn.Module:
    """What a stranger does: type the call of the header, load strictly."""
    net: nn.Module = eval(header(path)["load"], {"timm": timm, "torchvision": torchvision})
    net.load_state_dict(load_file(path), strict=True)
    return net.eval()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@dataclass
class Case:
    """SqueezeNet with the published weights and a random head, exported to both formats."""

    net: nn.Module
    card: Card
    folder: Path
    entries: list[Exported]


@pytest.fixture(scope="module")
def squeezenet(assets: Path, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Case:
    backbone = Torchvision("squeezenet1_0")
    network = backbone.build()
    weights = assets / "weights" / "squeezenet1_0_imagenet.safetensors"
    network.module.load_state_dict(load_file(weights))
    torch.manual_seed(0)
    swap(network, Linear(), 2)
    awake(network.module)
    card = Card(facts(backbone), facts(Linear()), CLASSES, SPEC, {"kind": "file"}, "a_test")
    folder = tmp_path_factory.mktemp("export")
    net = network.module.eval()
    return Case(
        net, card, folder, export(net, images, [Onnx(), Safetensors()], card, folder, TOLERANCE)
    )


# ---- what is written


def test_the_folder_holds_one_file_a_format_and_what_explains_them(squeezenet: Case) -> None:
    assert names(squeezenet.folder) == {
        "model.onnx",
        "model.safetensors",
        "labels.json",
        "preprocess.json",
        "parity.json",
    }
    assert json.loads((squeezenet.folder / "labels.json").read_text()) == list(CLASSES)
    recipe = json.loads((squeezenet.folder / "preprocess.json").read_text())
    assert InputSpec.from_plain(recipe) == SPEC


def test_parity_tells_what_was_compared(squeezenet: Case, images: Images) -> None:
    rows = json.loads((squeezenet.folder / "parity.json").read_text())
    assert [row["format"] for row in rows] == ["onnx", "safetensors"]
    scale = float(np.abs(logits(squeezenet.net, images)).max())
    for row, entry in zip(rows, squeezenet.entries, strict=True):
        path = squeezenet.folder / row["file"]
        assert row == json.loads(json.dumps(asdict(entry)))
        assert (row["sha256"], row["bytes"]) == (file_sha256(path), path.stat().st_size)
        assert (row["images"], row["batches"]) == (10, [1, 2, 10])
        assert row["bound"] == pytest.approx(TOLERANCE * max(1, scale), rel=1e-3)
        assert 0 <= row["max_abs_diff"] <= row["bound"]
        assert row["agree"] == 1.0


def test_onnx_runs_without_xfer_at_any_batch_size(squeezenet: Case, images: Images) -> None:
    session = onnxruntime.InferenceSession(squeezenet.folder / "model.onnx")
    (put,), (got,) = session.get_inputs(), session.get_outputs()
    assert (put.name, put.shape, put.type) == ("images", ["batch", 3, 224, 224], "tensor(float)")
    assert (got.name, got.shape) == ("logits", ["batch", 2])
    expected = logits(squeezenet.net, images)
    for n in (1, 3, 7):
        answers = session.run(None, {"images": images[:n]})[0]
        np.testing.assert_allclose(answers, expected[:n], atol=1e-3)


def test_onnx_knows_its_classes_preprocessing_and_origin(squeezenet: Case) -> None:
    session = onnxruntime.InferenceSession(squeezenet.folder / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list(CLASSES)
    assert InputSpec.from_plain(json.loads(told["preprocess"])) == SPEC
    assert Card.from_plain(json.loads(told["card"])) == squeezenet.card
    assert told["xfer"]


def test_onnx_is_one_file_and_tells_no_path_of_this_machine(squeezenet: Case) -> None:
    model = onnx.load(squeezenet.folder / "model.onnx", load_external_data=False)
    assert len(model.graph.initializer) > 40
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    text = (squeezenet.folder / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert str(Path(torch.__file__).parent).encode() not in text


@pytest.mark.parametrize("opset", [18, 24])
def test_onnx_is_written_in_the_opset_asked_for(opset: int, small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    (entry,) = export(net, small, [Onnx(opset)], card, tmp_path, TOLERANCE)
    assert entry.facts["opset"] == opset
    model = onnx.load(tmp_path / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]


def test_an_opset_that_the_exporter_cannot_write_is_refused(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    with pytest.raises(ExportError, match=r"opset 17, only in 18.*export\.onnx\.opset=18"):
        export(net, small, [Onnx(17)], card, tmp_path, TOLERANCE)
    assert "model.onnx" not in names(tmp_path)


@pytest.mark.usefixtures("traced_anew")
def test_class_names_survive_whatever_they_hold_and_nothing_is_printed(
    small: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, card = tiny()
    classes = ('chien "loup"\n\x1b[31m', "狼 🐺 %s {} \udce9")
    card = replace(card, classes=classes)
    before = torch.get_rng_state()
    export(net, small, [Onnx(), Safetensors()], card, tmp_path, TOLERANCE)
    assert torch.equal(torch.get_rng_state(), before), "a random number was drawn"
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map["classes"]
    for text in (
        told,
        header(tmp_path / "model.safetensors")["classes"],
        (tmp_path / "labels.json").read_text(),
    ):
        assert tuple(json.loads(text)) == classes


# ---- the plain library model


def test_squeezenet_loads_in_plain_torchvision_with_the_same_softmax(
    squeezenet: Case, assets: Path
) -> None:
    path = squeezenet.folder / "model.safetensors"
    told = header(path)
    assert told["plain_loadable"] == "yes"
    shift = float(told["bias_shift"])
    assert shift == squeezenet.entries[1].facts["bias_shift"] == 2.0 ** round(np.log2(shift))
    # Photographs that took no part in the choice of the shift.
    others = pictures(assets, slice(5, 15))
    plain, expected = plain_model(path), logits(squeezenet.net, others)
    assert isinstance(plain.classifier[2], nn.ReLU)  # type: ignore[index, union-attr]
    np.testing.assert_allclose(softmax(logits(plain, others)), softmax(expected), atol=2e-4)
    np.testing.assert_allclose(logits(plain, others) - shift, expected, atol=2e-3)


def test_without_the_shift_plain_squeezenet_would_answer_otherwise(
    squeezenet: Case, images: Images
) -> None:
    plain = torchvision.models.squeezenet1_0(num_classes=2).eval()
    plain.load_state_dict(squeezenet.net.state_dict())
    differ = softmax(logits(plain, images)) - softmax(logits(squeezenet.net, images))
    assert np.abs(differ).max() > 0.01


def test_the_shift_leaves_a_margin_of_four(squeezenet: Case, images: Images) -> None:
    with torch.inference_mode():
        x = torch.from_numpy(images)
        maps = squeezenet.net.classifier[1](squeezenet.net.features(x))  # type: ignore[index, operator]
    peak = float(maps.abs().max())
    shift = squeezenet.entries[1].facts["bias_shift"]
    assert 4 * peak <= shift < 8 * peak


@pytest.mark.parametrize("head", [Linear(), Dropout(0.5)], ids=["linear", "dropout"])
def test_one_layer_heads_load_in_plain_timm(head: Any, small: Images, tmp_path: Path) -> None:
    net, card = tiny(head)
    (entry,) = export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert entry.facts["plain_loadable"] == "yes"
    assert "bias_shift" not in entry.facts
    plain = plain_model(tmp_path / "model.safetensors")
    assert type(plain.fc) is nn.Linear
    np.testing.assert_allclose(logits(plain, small), logits(net, small), atol=1e-6)


@pytest.mark.parametrize("head", [Mlp(hidden=8), Pooled()], ids=["mlp", "pooled"])
def test_other_heads_say_why_they_do_not_load_and_are_compared_all_the_same(
    head: Any, small: Images, tmp_path: Path
) -> None:
    net, card = tiny(head)
    (entry,) = export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert type(head).__name__ in entry.facts["plain_loadable"]
    assert header(tmp_path / "model.safetensors")["plain_loadable"] == entry.facts["plain_loadable"]
    assert entry.max_abs_diff == 0
    state = load_file(tmp_path / "model.safetensors")
    assert state.keys() == net.state_dict().keys()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


def test_a_backbone_of_the_user_is_named_as_the_reason(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    card = replace(card, backbone={"_target_": "mine.Net"})
    (entry,) = export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert "mine.Net" in entry.facts["plain_loadable"]


def test_tensors_that_do_not_fit_the_library_are_named_as_the_reason(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    args = {**TINY, "channels": [8, 16, 32, 48]}
    card = replace(card, backbone={**card.backbone, "args": args})
    (entry,) = export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert "tensors do not fit timm.create_model" in entry.facts["plain_loadable"]
    assert "the first is fc.weight" in entry.facts["plain_loadable"]


def test_a_plain_model_that_takes_the_tensors_but_answers_otherwise_is_refused(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    card = replace(card, backbone={**card.backbone, "args": {**TINY, "output_stride": 8}})
    with pytest.raises(ExportError, match="safetensors answers differently") as caught:
        export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert caught.value.exit == 10
    assert names(tmp_path) == {"labels.json", "preprocess.json", "parity.json"}


# ---- the gate


@dataclass(frozen=True)
class Corrupt(Safetensors):
    """A runtime that answers differently from the network: ``how`` changes its logits."""

    how: Any = None

    def open(self, path: Path, net: nn.Module) -> Any:
        run = super().open(path, net)
        return lambda images: self.how(run(images))


class Moody(nn.Module):
    """Answers otherwise in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3))[:, :2]
        return 2 * pooled if self.training else pooled


class TrainingOnnx(Onnx):
    """Exports the network as it is in training."""

    def write(self, net: nn.Module, images: Images, card: Card, path: Path) -> Any:
        with pytest.warns(UserWarning, match="training mode"):
            return super().write(copy.deepcopy(net).train(), images, card, path)


def shifted(by: float) -> Corrupt:
    return Corrupt(how=lambda z: z + np.float32([by, 0]))


def one_nan(z: Images) -> Images:
    z = z.copy()
    z[0, 0] = np.nan
    return z


BAD = {
    "shifted": (shifted(0.01), "logits differ by up to 0.01, but only "),
    "swapped": (Corrupt(how=lambda z: z[:, ::-1]), "safetensors answers differently"),
    "nan": (Corrupt(how=one_nan), "safetensors: the file answers NaN"),
    "shape": (Corrupt(how=lambda z: z[:, :1]), "safetensors gives logits of shape"),
    "crash": (Corrupt(how=lambda z: z[:, 2]), "safetensors cannot be run: index 2 is out of"),
}


@pytest.mark.parametrize(("writer", "message"), BAD.values(), ids=BAD.keys())
def test_a_file_that_answers_otherwise_is_refused_and_not_left(
    writer: Any, message: str, small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    (tmp_path / writer.file).write_text("of an earlier export")
    with pytest.raises(ExportError, match=message) as caught:
        export(net, small, [writer], card, tmp_path, TOLERANCE)
    assert caught.value.exit == 10
    assert names(tmp_path) == {"labels.json", "preprocess.json", "parity.json"}
    assert json.loads((tmp_path / "parity.json").read_text()) == []


def test_a_network_exported_in_training_mode_is_refused(small: Images, tmp_path: Path) -> None:
    net, (_, card) = Moody().eval(), tiny()
    export(net, small, [Onnx()], card, tmp_path, TOLERANCE)
    with pytest.raises(ExportError, match="onnx answers differently from the network"):
        export(net, small, [TrainingOnnx()], card, tmp_path, TOLERANCE)
    assert "model.onnx" not in names(tmp_path)


def test_a_file_that_is_wrong_at_one_batch_size_alone_is_refused(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    for size in (1, 2, len(small)):
        wrong = Corrupt(how=lambda z, size=size: z + (len(z) == size))
        with pytest.raises(ExportError, match="answers differently"):
            export(net, small, [wrong], card, tmp_path, TOLERANCE)


def test_the_bound_grows_with_the_logits(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    scale = 50 / float(np.abs(logits(net, small)).max())
    with torch.no_grad():
        net.fc.weight.mul_(scale)  # type: ignore[operator, union-attr]
        net.fc.bias.mul_(scale)  # type: ignore[operator, union-attr]
    (entry,) = export(net, small, [shifted(0.004)], card, tmp_path, TOLERANCE)
    assert entry.bound == pytest.approx(0.005, rel=1e-3)
    assert entry.max_abs_diff == pytest.approx(0.004, rel=1e-2)
    with pytest.raises(ExportError):
        export(net, small, [shifted(0.006)], card, tmp_path, TOLERANCE)


def test_agreement_is_the_share_of_images_with_the_same_top_class(
    small: Images, tmp_path: Path
) -> None:
    z = logits(tiny()[0], small)
    flipped = np.concatenate([z[:2, ::-1], z[2:]])
    found = Answered(tmp_path, "a", "logits", {2: z[2:4], 6: z}, {2: z[2:4], 6: flipped})
    assert found.facts(0.0)["agree"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("size", [4e-7, pytest.param(1e-3, marks=pytest.mark.slow), 0.3])
def test_tiny_logits_are_compared_as_closely_as_large_ones(
    size: float, small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    scale = size / float(np.abs(logits(net, small)).max())
    with torch.no_grad():
        net.fc.weight.mul_(scale)  # type: ignore[operator, union-attr]
        net.fc.bias.mul_(scale)  # type: ignore[operator, union-attr]
    mean = logits(net, small).mean(0)
    wrong = {
        "zeros": lambda z: 0 * z,
        "swapped": lambda z: z[:, ::-1],
        "blind": lambda z: 0 * z + mean,
        "far": lambda z: 1.01 * z,
    }
    for how in wrong.values():
        with pytest.raises(ExportError, match="answers differently from the network"):
            export(net, small, [Corrupt(how=how)], card, tmp_path, TOLERANCE)
    files = export(net, small, [Safetensors(), Onnx()], card, tmp_path, TOLERANCE)
    assert all(file.agree == 1 and file.close < len(small) for file in files)


def test_a_squeezenet_with_tiny_logits_keeps_them_behind_its_shift(
    small: Images, tmp_path: Path
) -> None:
    net, card = make(Torchvision("squeezenet1_1"), Pooled())
    with torch.no_grad():
        for parameter in net.classifier.parameters():  # type: ignore[union-attr]
            parameter.mul_(1e-6)
    images = small.repeat(4, axis=2).repeat(4, axis=3)
    (file,) = export(net, images, [Safetensors()], card, tmp_path, TOLERANCE)
    assert file.close < len(images)


def test_probabilities_that_hardly_differ_are_compared_as_closely(tmp_path: Path) -> None:
    for size, message in ((1e-2, "answers differently"), (4e-7, "cannot be compared")):
        share = softmax(size * np.float32([[0, 1], [0.7, 0], [0, 0.3]]))
        even = np.full_like(share, 0.5)
        found = Answered(tmp_path, "a", "probabilities", {3: share}, {3: even})
        with pytest.raises(ExportError, match=message):
            found.within(allowed(share, 10 * TOLERANCE))


def test_a_network_that_decides_on_no_image_has_nothing_to_compare(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    with torch.no_grad():
        for parameter in net.fc.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    with pytest.raises(ExportError, match="cannot be compared: on none of 6 images"):
        export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)


def test_a_good_format_is_kept_when_another_fails(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        export(net, small, [shifted(1), Onnx()], card, tmp_path, TOLERANCE)
    assert "model.onnx" in names(tmp_path)
    rows = json.loads((tmp_path / "parity.json").read_text())
    assert [(row["file"], row["sha256"]) for row in rows] == [
        ("model.onnx", file_sha256(tmp_path / "model.onnx"))
    ]


def test_a_new_export_replaces_the_old_one(small: Images, tmp_path: Path) -> None:
    for seed in (0, 1):
        net, card = make(Timm("resnet18", TINY), Linear(), seed)
        (entry,) = export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
        plain = plain_model(tmp_path / "model.safetensors")
        np.testing.assert_allclose(logits(plain, small), logits(net, small), atol=1e-6)
    (row,) = json.loads((tmp_path / "parity.json").read_text())
    assert row["sha256"] == entry.sha256 == file_sha256(tmp_path / "model.safetensors")


def test_a_network_that_answers_nan_is_refused_in_every_format(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")  # type: ignore[index, operator, union-attr]
    with pytest.raises(Problems, match="the network itself answers NaN") as caught:
        export(net, small, [Onnx(), Safetensors()], card, tmp_path, TOLERANCE)
    assert caught.value.exit == 10
    assert names(tmp_path) == {"labels.json", "preprocess.json", "parity.json"}


def test_a_network_in_training_mode_or_no_image_is_refused(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    with pytest.raises(ExportError, match="no image"):
        export(net, small[:0], [Safetensors()], card, tmp_path, TOLERANCE)
    with pytest.raises(ExportError, match="training mode"):
        export(net.train(), small, [Safetensors()], card, tmp_path, TOLERANCE)
    assert not names(tmp_path)


class Bessel(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x.mean((2, 3))[:, :2])


class Branch(nn.Module):
    """A decision on the values of the input, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))
        return pooled[:, :2]


class PairsOnly(nn.Module):
    """A batch size of 2 written into the code where torch runs any other too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3))[:, :2]
        return pooled.reshape(2, 2) if len(x) == 2 else pooled


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Bessel(), "onnx cannot be written: .*bessel_j0"),
        (Branch(), "onnx cannot be written: .*data-dependent"),
        (PairsOnly(), "E998: .*fixes the batch size at 2"),
    ],
    ids=["operator", "branch", "batch"],
)
def test_what_onnx_cannot_hold_is_told_in_one_line(
    net: nn.Module,
    message: str,
    small: Images,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    card = Card({"_target_": "mine.Net"}, {"_target_": "mine.Head"}, CLASSES, SPEC)
    with pytest.raises(ExportError, match=message) as caught:
        export(net.eval(), small, [Onnx()], card, tmp_path, TOLERANCE)
    assert "\n" not in str(caught.value)
    assert caught.value.exit == 10
    assert names(tmp_path) == {"labels.json", "preprocess.json", "parity.json"}
    assert capfd.readouterr() == ("", "")


class FullDisk(Safetensors):
    def write(self, net: nn.Module, images: Images, card: Card, path: Path) -> Any:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_as_such_and_leaves_what_was_there(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    export(net, small, [Safetensors()], card, tmp_path, TOLERANCE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="No space left") as caught:
        export(net, small, [FullDisk()], card, tmp_path, TOLERANCE)
    assert caught.value.exit == 9
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_told_as_such(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    (tmp_path / "export").write_text("a file")
    with pytest.raises(XferError, match="export") as caught:
        export(net, small, [Safetensors()], card, tmp_path / "export", TOLERANCE)
    assert caught.value.exit == 9


def test_a_folder_that_may_only_be_read_is_told_as_such(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    folder = tmp_path / "export"
    folder.mkdir(0o555)
    if os.access(folder, os.W_OK):  # nothing is forbidden to root but what is mounted so
        folder = Path("/sys/kernel")
    with pytest.raises(OutputError, match=r"cannot be written \((Permission|Operation)") as caught:
        export(net, small, [Safetensors()], card, folder, TOLERANCE)
    assert caught.value.exit == 9


def test_one_image_is_compared_at_batch_one(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    (entry,) = export(net, small[:1], [Onnx()], card, tmp_path, TOLERANCE)
    assert (entry.images, entry.batches) == (1, (1,))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.run(None, {"images": small})[0].shape == (6, 2)


# ---- imports


def python(code: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)


def test_the_specs_cost_no_heavy_import() -> None:
    python(
        "import sys, xfer.export\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'safetensors', 'timm', 'torchvision'}\n"
        "sys.exit(f'imported: {found}' if (found := heavy & set(sys.modules)) else 0)"
    )


def test_onnxruntime_reports_nothing_home(squeezenet: Case, tmp_path: Path) -> None:
    python(
        "from pathlib import Path; from xfer.export import Onnx\n"
        f"Onnx().open(Path({str(squeezenet.folder / 'model.onnx')!r}), None)",
        HOME=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert not names(tmp_path)


def test_every_module_that_imports_onnxruntime_turns_its_reports_off_first() -> None:
    found = 0
    for file in Path(xfer.__file__).parent.rglob("*.py"):
        text = file.read_text()
        used = re.search(r"^ *(import|from) onnxruntime", text, re.MULTILINE)
        if used:
            found += 1
            off = re.search(r'setdefault\("ORT_DISABLE_TEL|^ *runtime\(\)', text, re.MULTILINE)
            assert off and off.start() < used.start(), file
    assert found == 3


# ---- more architectures

INCEPTION = {"aux_logits": False, "init_weights": False, "transform_input": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        Timm("convnext_atto"),
        Timm("vit_tiny_patch16_224", {"depth": 2}),
        Timm("deit_tiny_distilled_patch16_224", {"depth": 2}),
        Timm("mobilenetv3_small_050"),
        Timm("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}),
        Torchvision("googlenet", INCEPTION),
        Torchvision("mobilenet_v3_small"),
        Torchvision("squeezenet1_1"),
    ],
    ids=lambda spec: spec.name,
)
def test_an_architecture_passes_the_gate_and_loads_in_its_library(
    backbone: Any, images: Images, tmp_path: Path
) -> None:
    net, card = make(backbone, Linear())
    entries = export(net, images, [Onnx(), Safetensors()], card, tmp_path, TOLERANCE)
    assert [entry.agree for entry in entries] == [1.0, 1.0]
    assert entries[1].facts["plain_loadable"] == "yes"
    plain = plain_model(tmp_path / "model.safetensors")
    differ = softmax(logits(plain, images)) - softmax(logits(net, images))
    assert np.abs(differ).max() < 1e-4
