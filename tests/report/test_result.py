"""``result.json`` has the same keys whoever wrote it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pictures import folders

import xfer
from xfer.report.last_lines import named

# Of the contract; each run may say more.
KEYS = set(
    "experiment status seed best scores params freeze source timing features export device "
    "precision versions command checkpoint warnings".split()
)


def test_a_fit_and_a_file_alone_say_the_same_kinds_of_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The name `xfer` is another package's, which may be installed too.
    monkeypatch.setattr("xfer.export.cache_key.version", "version of {}".format)
    options = ["trainer.max_epochs=1", "stages=[fit,export]"]
    fitted = xfer.run("digits_sgd", options).folder.resolve()
    folders(tmp_path, {"photos": 3})
    model = fitted / "export" / "model.onnx"
    asked = [f"predict.model={model}", "predict.input=photos", "stages=[predict]", "run.dir=alone"]
    alone = xfer.run(overrides=asked).folder
    results = [json.loads((folder / "result.json").read_text()) for folder in (fitted, alone)]
    assert [KEYS - set(result) for result in results] == [set(), set()]
    assert {key for key in results[1] if key not in results[0]} == {"predicted"}
    result = results[1]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert result["source"] == {"kind": "onnx", "origin": str(model), "sha256": digest}
    assert result["checkpoint"] == {"path": str(model), "sha256": digest}
    assert (result["predicted"], result["status"], result["best"]) == (3, "finished", None)
    assert set(result["timing"]) == {"startup_s", "predict_s", "total_s"}
    assert set(result["versions"]) == {"python", "xfer", "onnxruntime", "pillow", "numpy"}
    assert result["versions"]["xfer"] == "version of xfer-vision"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("outputs/a/2026-01-02_03-04-05_abcdef", "2026-01-02_03-04-05_abcdef")]
    + [(path, path) for path in ("outputs/sweep/0", "elsewhere/a/run", "mine")],
)
def test_the_next_command_names_a_run_by_its_end_where_no_other_has_it(
    folder: str, name: str
) -> None:
    assert named(Path(folder)) == name
