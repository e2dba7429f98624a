"""Exported files are measured against eager torch: table, JSON and figure of the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shipped import SHIPPED

import xfer
from xfer.core.errors import ExportError

SHIPPED = [f"checkpoint.path={SHIPPED}", "data=digits_0_4"]


@pytest.mark.slow
def test_every_file_is_measured_beside_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = "stages=[export,benchmark]"
    result = xfer.run(overrides=[stages, *SHIPPED, "export=[onnx,pt2]", "export.images=20"])
    rows = json.loads((result.folder / "benchmark.json").read_text())
    assert [row["name"] for row in rows] == ["torch, eager", "model.onnx", "model.pt2"]
    assert rows[0]["faster"] == rows[0]["faster_batch"] == 1.0
    for row in rows:
        assert min(row[key] for key in ("ms", "start_s", "images_per_s", "faster", "bytes")) > 0
        assert row["top1"] == rows[0]["top1"]
    assert (result.folder / "figures" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "model.pt2" in told and "top-1 is over 20 of 180 images" in told


def row(top1: float | None, part: int, whole: int) -> dict[str, object]:
    """A line of ``benchmark.json``."""
    times = dict.fromkeys(("ms", "faster", "images_per_s", "faster_batch", "start_s"), 1.0)
    return {"name": "a", "bytes": 9, "top1": top1, "top1_images": part, "images": whole, **times}


def test_an_accuracy_on_a_part_of_the_images_says_so() -> None:
    from xfer.export.benchmark import lines
    from xfer.report.charts import speeds

    told = "top-1 is over 64 of 179 images (export.images); evaluate scores all of them"
    assert lines([row(0.84, 64, 179), row(0.85, 64, 179)])[-1] == told
    assert speeds([row(0.84, 64, 179)]).axes[-1].get_xlabel() == "top-1 accuracy, 64 of 179 images"
    for other in (row(0.84, 64, 64), row(None, 64, 179)):
        assert not any("top-1 is over" in line for line in lines([other]))
    assert max(map(len, lines([row(0.84, 64, 179)]))) <= 80


def test_nothing_to_measure_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"E997: .*no exported file to measure"):
        xfer.run(overrides=["stages=[benchmark]", *SHIPPED])


def test_what_is_left_out_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run whose package is gone, what is left is measured; of nothing that is left, no table
    is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xfer.export.openvino.find_spec", lambda name: None)
    words = ["stages=[fit,export]", "export=[torchscript,safetensors]", "export.images=4"]
    run = xfer.run("digits_freeze", [*words, "run.dir=run"]).folder
    for name in ("openvino/model.xml", "hub/config.json", "model.tflite"):
        (run / "export" / name).parent.mkdir(exist_ok=True)
        (run / "export" / name).touch()
    words = [f"checkpoint.path={run}", "export.images=4"]
    monkeypatch.setattr("xfer.export.benchmark.ROUNDS", 1)
    monkeypatch.setattr("xfer.export.benchmark._STARTS", 0)  # each imports torch anew
    done = xfer.run("digits_freeze", ["stages=[benchmark]", "run.dir=timed", *words])
    assert [row["name"] for row in json.loads((done.folder / "benchmark.json").read_text())] == [
        "torch, eager",
        "model.torchscript",
    ]
    warnings = json.loads((done.folder / "result.json").read_text())["warnings"]
    said = [line for line in warnings if "is not measured" in line]
    assert said == [
        "hub is not measured: it has weights without a graph",
        "model.safetensors is not measured: it has weights without a graph",
        "model.tflite is not measured: the stage runs .onnx, .pt2, .torchscript, openvino alone",
        "openvino is not measured: the package 'openvino' is not installed "
        '(pip install "xfer-vision[openvino]")',
    ]
    assert said[0] in capsys.readouterr().out
    (run / "export" / "model.torchscript").unlink()
    with pytest.raises(ExportError, match=r"E997: .*to measure; hub is not.*; openvino is"):
        xfer.run("digits_freeze", ["stages=[benchmark]", "run.dir=none", *words])
