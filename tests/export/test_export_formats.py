"""torch.export, TorchScript and int8: each answers as the network does, or is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_export import CLASSES, SPEC, TOLERANCE, Branch, logits, names, pictures, softmax, tiny
from torch import nn

from xfer.config.hydra import compose_specs
from xfer.core.errors import ExportError
from xfer.core.files import file_sha256
from xfer.core.types import Card
from xfer.export import Evidence, Int8, Onnx, Pt2, Safetensors, TorchScript, export

Images = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def small(assets: Path) -> Images:
    """Six dogs, six wolves, at 64 x 64 pixels."""
    return pictures(assets, slice(6), replace(SPEC, size=(64, 64), resize=72))


def test_pt2_runs_alone_at_any_batch_size_and_explains_itself(
    small: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, card = tiny()
    (entry,) = export(net, small, [Pt2()], card, tmp_path, TOLERANCE)
    assert (entry.format, entry.agree, entry.sha256) == (
        "pt2",
        1.0,
        file_sha256(tmp_path / "model.pt2"),
    )
    told = {"classes": "", "card": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=told)
    assert json.loads(told["classes"]) == list(CLASSES)
    assert Card.from_plain(json.loads(told["card"])) == card
    for n in (1, 3, 12):
        with torch.inference_mode():
            got = program.module()(torch.from_numpy(small[:n]))
        np.testing.assert_allclose(got, logits(net, small[:n]), atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_a_decision_on_values_is_refused_by_pt2(small: Images, tmp_path: Path) -> None:
    _, card = tiny()
    with pytest.raises(ExportError, match="pt2 cannot be written: Could not guard"):
        export(Branch().eval(), small, [Pt2()], card, tmp_path, TOLERANCE)
    assert "model.pt2" not in names(tmp_path)


@pytest.mark.usefixtures("traced_anew")
def test_equal_networks_are_exported_as_equal_bytes(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    # torch numbers the classes of a second trace in one process, so TorchScript is not here.
    writers = [Safetensors(), Pt2(), Onnx()]
    for name in "ab":
        export(net, small, writers, card, tmp_path / name, TOLERANCE)
    for writer in writers:
        assert len({(tmp_path / name / writer.file).read_bytes() for name in "ab"}) == 1, writer


def test_torchscript_is_written_for_a_network_without_branches(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    (entry,) = export(net, small, [TorchScript()], card, tmp_path, TOLERANCE)
    assert (entry.format, entry.agree) == ("torchscript", 1.0)


class Sides(nn.Module):
    """Answers by the mean where an image is bright somewhere, which noise always is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3)) if x.max() > 3 else x.amax((2, 3))
        return pooled[:, :2]


def test_torchscript_that_froze_a_branch_in_is_refused(small: Images, tmp_path: Path) -> None:
    _, card = tiny()
    assert (small.max(axis=(1, 2, 3)) <= 3).all()
    with pytest.raises(ExportError, match="torchscript answers differently"):
        export(Sides().eval(), small, [TorchScript()], card, tmp_path, TOLERANCE)
    assert "model.torchscript" not in names(tmp_path)


def split(images: Images, labels: Any) -> Any:
    return lambda: iter([(images[:5], labels[:5]), (images[5:], labels[5:])])


def test_int8_is_a_quarter_and_its_accuracy_is_measured_on_the_whole_split(
    small: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, card = tiny()
    labels = logits(net, small).argmax(1)
    evidence = Evidence(labels=labels[:4], calibration=small, val=split(small, labels), max_drop=1)
    (entry,) = export(net, small[:4], [Int8()], card, tmp_path, TOLERANCE, evidence)
    assert (entry.format, entry.bound, entry.acc_network) == ("int8", None, 1.0)
    assert entry.acc is not None and entry.acc in {i / 12 for i in range(13)}
    assert entry.facts == {"calibrated_on": 12}
    assert 0 < entry.max_abs_diff < 2
    model = onnx.load(tmp_path / "model_int8.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    kinds = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert kinds and set(kinds) == {onnx.TensorProto.INT8}
    session = onnxruntime.InferenceSession(tmp_path / "model_int8.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)
    found = session.run(None, {"images": small})[0]
    assert np.abs(softmax(found) - softmax(logits(net, small))).max() < 0.2
    assert names(tmp_path) == {"model_int8.onnx", "labels.json", "preprocess.json", "parity.json"}
    assert capfd.readouterr() == ("", "")


class Ruined(Int8):
    """Gives every image the other answer."""

    def open(self, path: Path, net: nn.Module) -> Any:
        run = super().open(path, net)
        return lambda images: run(images)[:, ::-1]


@pytest.mark.parametrize("several", [False, True])
def test_int8_that_costs_too_much_is_refused_with_the_limit_that_admits_it(
    small: Images, tmp_path: Path, several: bool
) -> None:
    net, card = tiny()
    labels = logits(net, small).argmax(1)
    labels[0] = 1 - labels[0]
    if several:
        task = {"kind": "multilabel", "thresholds": [0.5, 0.5], "chosen_on": "given"}
        card, labels = replace(card, task=task), np.eye(2, dtype=int)[labels]
    evidence = Evidence(calibration=small, val=split(small, labels), max_drop=0.5)
    with pytest.raises(ExportError, match=r"E995: .*int8 loses .* only 0\.5 is allowed") as caught:
        export(net, small, [Ruined()], card, tmp_path, TOLERANCE, evidence)
    assert caught.value.exit == 10
    assert "model_int8.onnx" not in names(tmp_path)
    typed = caught.value.fix.removeprefix("type ").partition(",")[0]
    limit = compose_specs([typed]).export.gate.max_drop
    assert several or limit == 0.8334  # 11 of 12 right by the network, 1 by the file
    evidence = replace(evidence, max_drop=limit)
    export(net, small, [Ruined()], card, tmp_path, TOLERANCE, evidence)
    evidence = replace(evidence, max_drop=limit - 1e-4)
    with pytest.raises(ExportError, match="E995"):
        export(net, small, [Ruined()], card, tmp_path, TOLERANCE, evidence)


def test_int8_needs_training_images_and_a_labelled_split(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    for calibration in (None, small[:0]):
        evidence = Evidence(calibration=calibration, val=split(small, np.zeros(12, int)))
        with pytest.raises(ExportError, match=r"E996: .*calibrated on training images"):
            export(net, small, [Int8()], card, tmp_path, TOLERANCE, evidence)
    with pytest.raises(ExportError, match=r"E994: .*no labelled split"):
        export(net, small, [Int8()], card, tmp_path, TOLERANCE, Evidence(calibration=small))
