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
