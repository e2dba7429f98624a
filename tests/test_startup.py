"""What the stages import: a library that a stage does not need would cost it seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

import xfer

FIT_ALONE = {"pytorch_lightning", "lightning_fabric", "torchmetrics"}
SHIPPED = Path(xfer.__file__).parent / "source" / "digits_0_4.ckpt"


def imported(code: str, folder: Path) -> set[str]:
    """The libraries that a process has in memory behind ``code``."""
    told = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    command = [sys.executable, "-c", f"{code}\n{told}"]
    env = {**os.environ, "XFER_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=300
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_a_fit_on_kept_features_is_made_of_needs_no_lightning(tmp_path: Path) -> None:
    parts = (
        *("decoded", "evaluate", "export", "export.onnx", "extraction", "features.find", "feed"),
        *("halving", "handover", "head.layers", "joint", "loader", "metrics", "network", "numbers"),
        *("plan", "predict", "record", "report.finish", "snapshot", "team", "workflow"),
    )
    found = imported("import " + ", ".join(f"xfer.{part}" for part in parts), tmp_path)
    assert found & FIT_ALONE == set()
    assert "torch" in found


def test_a_checkpoint_is_evaluated_and_exported_without_lightning(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8), 90).save(picture)
    overrides = [
        *("data=digits_0_4", f"checkpoint.path={SHIPPED}", "run.dir=out"),
        *("stages=[evaluate,predict,export,report]", "export=safetensors"),
        f"predict.input={picture}",
    ]
    code = f"import xfer; xfer.run(overrides={overrides})"
    assert imported(code, tmp_path) & FIT_ALONE == set()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["scores"]
