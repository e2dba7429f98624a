"""Exported files are measured against eager torch: table, JSON and figure of the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import xfer
from xfer.errors import ExportError

FILE = Path(xfer.__file__).parent / "source" / "digits_0_4.ckpt"
SHIPPED = [f"checkpoint.path={FILE}", "data=digits_0_4"]


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
    assert "model.pt2" in told and "top-1" in told


def test_nothing_to_measure_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"E997: .*no exported file to measure"):
        xfer.run(overrides=["stages=[benchmark]", *SHIPPED])
