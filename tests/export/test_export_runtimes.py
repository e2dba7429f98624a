"""OpenVINO, LiteRT, ExecuTorch, 16-bit ONNX: each answers as the network does, or is not there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from shipped import SHIPPED as SHIPPED_PATH
from test_export import CLASSES, SPEC, TOLERANCE, logits, names, pictures, tiny
from torch import nn

import xfer
from xfer.core.errors import ExportError
from xfer.core.files import tree_sha256
from xfer.core.types import Card, Exported
from xfer.export import Evidence, ExecuTorch, Half, LiteRt, OpenVino, export
from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot

Images = np.ndarray[Any, np.dtype[np.float32]]

SHIPPED = [f"checkpoint.path={SHIPPED_PATH}", "data=digits_0_4"]


@pytest.fixture(scope="module")
def small(assets: Path) -> Images:
    """Six dogs, six wolves, at 64 x 64 pixels."""
    return pictures(assets, slice(6), replace(SPEC, size=(64, 64), resize=72))


def split(images: Images, labels: Any) -> Any:
    return lambda: iter([(images[:5], labels[:5]), (images[5:], labels[5:])])


class Swapped:
    """Gives every image the other answer."""

    def open(self, path: Path, net: nn.Module) -> Any:
        run = super().open(path, net)  # type: ignore[misc]
        return lambda images: run(images)[:, ::-1]


# ---- OpenVINO


class SwappedOpenVino(Swapped, OpenVino):
    """See the first."""


@dataclass
class Twice:
    """One network in two folders, what was said of the first, and what was printed."""

    net: nn.Module
    card: Card
    folders: tuple[Path, Path]
    entry: Exported


@pytest.fixture(scope="module")
def twice(small: Images, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    pytest.importorskip("openvino", reason="pip install 'xfer-vision[openvino]'")
    net, card = tiny()
    folders = (tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b"))
    made = [export(net, small, [OpenVino()], card, place, TOLERANCE) for place in folders]
    return Twice(net, card, folders, made[0][0])


def test_openvino_runs_alone_at_any_batch_size_and_explains_itself(
    small: Images, twice: Twice
) -> None:
    import openvino

    folder, entry = twice.folders[0] / "openvino", twice.entry
    assert names(folder) == {"model.xml", "model.bin"}
    assert (entry.format, entry.file, entry.agree) == ("openvino", "openvino", 1.0)
    assert entry.sha256 == tree_sha256(folder)
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())
    # As a stranger does it, who reads the how-to.
    core = openvino.Core()
    model = core.read_model(folder / "model.xml")
    assert json.loads(model.get_rt_info(["xfer", "classes"]).astype(str)) == list(CLASSES)
    card = json.loads(model.get_rt_info(["xfer", "card"]).astype(str))
    assert Card.from_plain(card) == twice.card
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 3, 12):
        got = compiled({"images": small[:n]})["logits"]
        np.testing.assert_allclose(got, logits(twice.net, small[:n]), atol=1e-5)


def test_equal_networks_are_equal_folders_of_openvino(twice: Twice) -> None:
    for name in ("model.xml", "model.bin"):
        first, second = ((place / "openvino" / name).read_bytes() for place in twice.folders)
        assert first == second, name
        assert str(twice.folders[0]).encode() not in first


def test_openvino_that_answers_otherwise_takes_the_earlier_folder_along(
    small: Images, twice: Twice, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(twice.folders[0], tmp_path / "export")
    with pytest.raises(ExportError, match=r"E956: .*openvino answers differently"):
        export(twice.net, small, [SwappedOpenVino()], twice.card, place, TOLERANCE)
    assert names(place) == {"labels.json", "preprocess.json", "parity.json"}
    assert capfd.readouterr() == ("", "")


def test_the_benchmark_measures_openvino_beside_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="pip install 'xfer-vision[openvino]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xfer.export.benchmark.ROUNDS", 1)
    monkeypatch.setattr("xfer.export.benchmark._STARTS", 0)
    wanted = ["export=[onnx,openvino]", "export.images=8"]
    result = xfer.run(overrides=["stages=[export,benchmark]", *SHIPPED, *wanted])
    rows = json.loads((result.folder / "benchmark.json").read_text())
    assert [row["name"] for row in rows] == ["torch, eager", "model.onnx", "openvino"]
    assert rows[2]["top1"] == rows[0]["top1"] and rows[2]["bytes"] > rows[1]["bytes"]


def test_a_second_export_leaves_a_folder_that_is_there_and_notices_a_changed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the hub's folder, which needs nothing installed."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "digits" / "20260101_000000_aa"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(SHIPPED_PATH, run / "checkpoints" / "best.ckpt")
    overrides = ["stages=[export]", f"checkpoint.path={run}", "data=digits_0_4", "export=hub"]
    xfer.run(overrides=overrides)
    before = tree_sha256(run / "export" / "hub")
    xfer.run(overrides=overrides)
    assert "hub is there already, compared with the network: it stays" in capsys.readouterr().out
    assert tree_sha256(run / "export" / "hub") == before
    sent: list[Path] = []
    monkeypatch.setattr("xfer.export.hub_folder._check_push", lambda repo, card: None)
    monkeypatch.setattr(
        "xfer.export.hub_folder.HubFolder.upload", lambda self, folder: sent.append(folder)
    )
    xfer.run(overrides=[*overrides, "export.hub.push=me/digits"])
    assert sent == [run / "export" / "hub"]  # what is there, not another one
    (run / "export" / "hub" / "README.md").write_text("mine")
    with pytest.raises(xfer.core.errors.CombinationError, match=r"E037: .*is there already"):
        xfer.run(overrides=overrides)


def test_a_file_refused_beside_a_run_is_named_where_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the folder that it was written and tried in, which is gone."""
    monkeypatch.chdir(tmp_path)
    run = Path("outputs/digits/20260101_000000_aa")
    (run / "checkpoints").mkdir(parents=True)
    best = read_snapshot(SHIPPED_PATH)
    for name in ("fc.weight", "fc.bias"):  # all logits are equal
        best.state[name].zero_()
    write_snapshot(run / "checkpoints" / "best.ckpt", best)
    typed = ["stages=[export]", f"checkpoint.path={run}", "data=digits_0_4"]
    with pytest.raises(ExportError) as caught:
        xfer.run(overrides=[*typed, "export=safetensors"])
    assert str(caught.value).startswith(f"xfer: error E999: {run}/export/model.safetensors: ")
    assert not (run / "export" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "writer, module, package",
    [
        (OpenVino(), "openvino", '"xfer-vision[openvino]"'),
        (LiteRt(), "litert", "litert-torch"),
        (ExecuTorch(), "executorch", "executorch"),
    ],
)
def test_a_package_that_is_not_there_is_named_in_the_plan(
    writer: Any, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    monkeypatch.setattr(f"xfer.export.{module}.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="is not installed") as seen:
        writer.check(tiny()[1])
    assert seen.value.fix == f"pip install {package}"
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert "openvino" in extras


# ---- phones and boards


@pytest.mark.slow
@pytest.mark.parametrize(
    "writer, package", [(LiteRt(), "litert_torch"), (ExecuTorch(), "executorch")]
)
def test_files_for_phones_run_in_their_own_runtime(
    writer: Any, package: str, small: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed, see docs/howto/export.md")
    capfd.readouterr()  # the import alone prints
    net, card = tiny()
    (entry,) = export(net, small, [writer], card, tmp_path, TOLERANCE)
    assert (entry.format, entry.agree) == (writer.format, 1.0)
    assert entry.facts["batch"] == 1
    assert writer.file in names(tmp_path)
    # torch's own log goes past the descriptors that pytest captures.
    assert not re.search("cpuinfo|XNNPACK|Convert", "".join(capfd.readouterr()))

    class Wrong(Swapped, type(writer)):  # type: ignore[misc]
        """See the first."""

    with pytest.raises(ExportError, match=r"E956: .*answers differently"):
        export(net, small, [Wrong()], card, tmp_path, TOLERANCE)
    assert writer.file not in names(tmp_path)


def test_what_a_compiler_prints_past_python_is_not_seen(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import os

    from xfer.export.mobile import silence

    with pytest.raises(ValueError, match="the reason"), silence():
        os.write(1, b"progress")
        os.write(2, b"advice")
        raise ValueError("the reason")
    os.write(1, b"ours")
    assert capfd.readouterr() == ("ours", "")


# ---- 16 bits


def rounded(net: nn.Module, kind: torch.dtype) -> nn.Module:
    """``net`` with its matrices and kernels rounded by torch."""
    import copy

    other = copy.deepcopy(net)
    for parameter in other.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(kind).float()
    return other


def evidence(net: nn.Module, images: Images, max_drop: float = 1) -> Evidence:
    labels = logits(net, images).argmax(1)
    return Evidence(labels=labels, val=split(images, labels), max_drop=max_drop)


def test_fp16_is_half_the_size_and_its_accuracy_is_measured(
    small: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net, card = tiny()
    found = evidence(net, small)
    (entry,) = export(net, small, [Half()], card, tmp_path, TOLERANCE, found)
    assert (entry.format, entry.bound, entry.acc_network) == ("onnx_fp16", None, 1.0)
    assert 0 < entry.max_abs_diff < 0.02 and entry.acc is not None
    path = tmp_path / "model_fp16.onnx"
    model = onnx.load(path)
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    held = sum(p.numel() for p in net.parameters())
    assert entry.bytes < 2 * held + 40_000 < 4 * held
    session = onnxruntime.InferenceSession(path)
    (put,), (got,) = session.get_inputs(), session.get_outputs()
    assert (put.type, put.shape, got.type) == (
        "tensor(float)",
        ["batch", 3, 64, 64],
        "tensor(float)",
    )
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)
    answers = session.run(None, {"images": small[:3]})[0]
    np.testing.assert_allclose(answers, logits(net, small[:3]), atol=0.02)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_weights_are_those_that_torch_rounds_to(
    dtype: Any, small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    writer = Half(dtype, "float32")
    (entry,) = export(net, small, [writer], card, tmp_path, TOLERANCE, evidence(net, small))
    assert entry.format == ("onnx_bf16" if dtype == "bfloat16" else "onnx_fp16")
    session = onnxruntime.InferenceSession(tmp_path / writer.file)
    want = logits(rounded(net, getattr(torch, dtype)), small)
    # The exporter folds the norms into kernels before they are rounded, so not to the last bit.
    far = np.abs(session.run(None, {"images": small})[0] - want).max()
    assert far < 0.05 * np.abs(want).max()
    model = onnx.load(tmp_path / writer.file)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            values = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
            assert (values == values.to(getattr(torch, dtype)).float()).all(), tensor.name


class SwappedHalf(Swapped, Half):
    """See the first."""


def test_16_bits_that_cost_too_much_are_refused(small: Images, tmp_path: Path) -> None:
    net, card = tiny()
    found = evidence(net, small, max_drop=0.5)
    with pytest.raises(ExportError, match=r"E995: .*onnx_fp16 loses .* only 0\.5 is allowed"):
        export(net, small, [SwappedHalf()], card, tmp_path, TOLERANCE, found)
    assert "model_fp16.onnx" not in names(tmp_path)


def test_a_weight_that_float16_cannot_hold_is_refused_and_the_fix_works(
    small: Images, tmp_path: Path
) -> None:
    net, card = tiny()
    with torch.no_grad():
        net.fc.weight[0, 0] = 1e5
    found = evidence(net, small)
    with pytest.raises(ExportError, match=r"E963: .*'fc\.weight' is as large as 1e\+05") as seen:
        export(net, small, [Half()], card, tmp_path, TOLERANCE, found)
    assert "export=onnx_bf16" in seen.value.fix
    (entry,) = export(net, small, [Half("bfloat16", "float32")], card, tmp_path, TOLERANCE, found)
    assert entry.agree == 1


def test_bfloat16_arithmetic_is_refused_in_the_plan_and_the_fix_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["stages=[export]", *SHIPPED, "export=onnx_bf16", "export.images=8"]
    with pytest.raises(ExportError, match=r"E962: .*bfloat16 .* on a CPU: operator Conv") as seen:
        xfer.run(overrides=[*run, "export.onnx_bf16.compute=half"])
    assert seen.value.exit == 10 and not list(tmp_path.iterdir())
    fix = re.findall(r"export\S*=\w+(?= |,)", seen.value.fix)
    assert len(fix) == 2
    result = xfer.run(overrides=["stages=[export]", *SHIPPED, "export.images=8", *fix])
    assert (result.folder / "export" / "model_bf16.onnx").is_file()
