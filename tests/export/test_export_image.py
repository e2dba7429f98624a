"""An ONNX file that takes pictures answers as the network does behind the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from test_export import CLASSES, SPEC, TINY, make, names, tiny

from xfer.core.errors import ConfigError, ExportError
from xfer.core.types import Card, InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.export import Evidence, Int8, Mindir, Onnx, export
from xfer.export.parity import FORMS, SIZES, recoded
from xfer.models.backbone import Timm
from xfer.models.head import Linear

SMALL = replace(SPEC, size=(64, 64), resize=72)


@pytest.fixture(scope="module")
def photos(assets: Path) -> list[Image.Image]:
    folders = [sorted((assets / "Canidae" / "val" / name).iterdir())[:3] for name in CLASSES]
    return [decode(path) for paths in folders for path in paths]


def gate(net: Any, card: Card, photos: list[Image.Image], folder: Path, writer: Any = None) -> Any:
    images = np.stack([prepare(photo, card.input) for photo in photos])
    evidence = Evidence(photos, np.array([0, 0, 0, 1, 1, 1]))
    (entry,) = export(net, images, [writer or Onnx(input="image")], card, folder, 1e-4, evidence)
    return entry


def loud(spec: InputSpec, backbone: Any = None) -> tuple[Any, Card]:
    """A network whose probabilities move with every pixel."""
    net, card = make(backbone or Timm("resnet18", TINY), Linear())
    with torch.no_grad():
        net.get_classifier().weight.mul_(4)
    return net, replace(card, input=spec)


def light() -> tuple[Any, Card]:
    """As ``loud``, and exported in a moment, where the network is not what is tried."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2)).eval()
    return net, replace(tiny()[1], input=SMALL)


RECIPES = {
    "crop": SMALL,
    "lanczos": replace(SMALL, interpolation="lanczos"),
    "cubic": replace(SMALL, interpolation="bicubic", resize=65),
    "oblong": replace(SMALL, size=(48, 64), resize=64),
    "squash": replace(SMALL, size=(64, 96), resize=None),
}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=[] if name == "crop" else pytest.mark.slow)
        for name, spec in RECIPES.items()
    ],
)
def test_every_size_and_format_gives_the_probabilities_of_the_torch_path(
    spec: InputSpec, photos: list[Image.Image], tmp_path: Path
) -> None:
    net, card = loud(spec)
    entry = gate(net, card, photos, tmp_path)
    assert len(SIZES) * len(FORMS) >= 50
    assert entry.images == len(photos) + len(SIZES) * len(FORMS)
    assert (entry.compared, entry.batches) == ("probabilities", (1, 2, 6))
    assert entry.bound is not None and 1e-5 < entry.bound <= 1e-3
    assert 0 < entry.max_abs_diff < 1e-5
    assert 0 < entry.mean_abs_diff <= entry.max_abs_diff
    assert entry.agree == 1.0
    assert entry.acc == entry.acc_network
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (put,), (got,) = session.get_inputs(), session.get_outputs()
    assert (put.shape, put.type) == (["batch", 3, "height", "width"], "tensor(uint8)")
    assert (got.name, got.shape) == ("probabilities", ["batch", 2])
    assert session.get_modelmeta().custom_metadata_map["input"] == "image"
    with torch.inference_mode():
        for width, height in [(1, 1), (3, 200), (65, 64), (211, 97), (64, 64), (97, 400)]:
            photo = photos[0].resize((width, height))
            want = net(torch.from_numpy(prepare(photo, spec))[None]).softmax(1)
            found = session.run(None, {"images": np.asarray(photo).transpose(2, 0, 1)[None]})[0]
            np.testing.assert_allclose(found, want, atol=1e-5)


class Ready(Onnx):
    """Writes a file that was exported before."""

    content: ClassVar[bytes]

    def write(self, net: Any, images: Any, card: Card, path: Path) -> Any:
        path.write_bytes(self.content)
        return {}


@pytest.fixture(scope="module")
def other_crop(
    photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ready]:
    """A writer of a file that cuts one pixel further down than the recipe."""
    net, card = light()
    images = np.stack([prepare(photo, SMALL) for photo in photos])
    assert SMALL.resize is not None
    wrong = replace(card, input=replace(SMALL, resize=SMALL.resize + 2))
    path = tmp_path_factory.mktemp("crop") / "model.onnx"
    Onnx(input="image").write(net, images, wrong, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ready, "content", path.read_bytes(), raising=False)
        yield Ready(input="image")


def test_another_crop_is_refused(
    other_crop: Ready, photos: list[Image.Image], tmp_path: Path
) -> None:
    net, card = light()
    with pytest.raises(ExportError, match=r"onnx answers differently.*probabilities differ"):
        gate(net, card, photos, tmp_path, other_crop)
    assert "model.onnx" not in names(tmp_path)


def test_pictures_are_needed(other_crop: Ready, photos: list[Image.Image], tmp_path: Path) -> None:
    net, card = light()
    images = np.stack([prepare(photo, SMALL) for photo in photos])
    with pytest.raises(ExportError, match=r"E993: .*no pictures to test it on"):
        export(net, images, [other_crop], card, tmp_path, 1e-4)


@pytest.mark.slow
def test_a_vision_transformer_takes_pictures_too(photos: list[Image.Image], tmp_path: Path) -> None:
    backbone = Timm("vit_tiny_patch16_224", {"depth": 1, "img_size": 64})
    net, card = loud(replace(SMALL, interpolation="bicubic"), backbone)
    assert gate(net, card, photos, tmp_path).agree == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SMALL, interpolation="nearest"), "nearest resizing"),
        (replace(SMALL, resize=60), "crops 64 pixels from a short side of 60"),
    ],
)
def test_a_recipe_without_an_operator_is_refused_in_one_line(
    spec: InputSpec, message: str, photos: list[Image.Image], tmp_path: Path
) -> None:
    net, card = loud(spec)
    with pytest.raises(ExportError, match=message + ".*Fix: use input=tensor"):
        gate(net, card, photos, tmp_path)


@pytest.mark.slow
def test_both_kinds_of_input_stand_side_by_side(photos: list[Image.Image], tmp_path: Path) -> None:
    net, card = loud(SMALL)
    images = np.stack([prepare(photo, SMALL) for photo in photos])
    writers = [Onnx(), Onnx(input="image", file="pictures")]
    export(net, images, writers, card, tmp_path, 1e-4, Evidence(photos))
    rows = json.loads((tmp_path / "parity.json").read_text())
    assert [(row["file"], row["compared"], row["acc"]) for row in rows] == [
        ("model.onnx", "logits", None),
        ("pictures.onnx", "probabilities", None),
    ]


def test_a_missing_suffix_is_added_and_a_path_is_no_name() -> None:
    for writer, suffix in ((Onnx, ".onnx"), (Int8, ".onnx"), (Mindir, ".mindir")):
        assert writer(file="dogs").file == writer(file=f"dogs{suffix}").file == f"dogs{suffix}"
        for name in ("", "a/b", "../b.onnx", ".hidden", "a\nb"):
            with pytest.raises(ConfigError, match="E293"):
                writer(file=name)


def test_the_trial_pictures_are_real_files_of_every_form(photos: list[Image.Image]) -> None:
    found = list(recoded(photos))
    assert {picture.mode for picture in found} == {"RGB"}
    assert {picture.size for picture in found} == set(SIZES)


def test_classes_that_tie_on_every_image_are_refused(
    photos: list[Image.Image], tmp_path: Path
) -> None:
    net, card = tiny()
    with torch.no_grad():
        net.fc.weight.zero_()  # type: ignore[operator, union-attr]
        net.fc.bias.zero_()  # type: ignore[operator, union-attr]
    with pytest.raises(ExportError, match="on none of 6 images"):
        gate(net, replace(card, input=SMALL), photos, tmp_path, Onnx())
