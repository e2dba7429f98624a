"""The schema of an experiment accepts what xfer takes and marks what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from language_server import language_server

from xfer.__main__ import _main
from xfer.config.help import config_dir
from xfer.config.json_schema import schema_of

jsonschema = pytest.importorskip("jsonschema")
EXPERIMENTS = sorted(Path(config_dir(), "experiment").glob("*.yaml"))
VALIDATOR = jsonschema.Draft7Validator(schema_of([config_dir()]))

WRONG = {
    "optim: {lrr: 0.1}": "lrr",
    "optim: {lr: fast}": "fast",
    "trainer: {max_epochs: 0}": "0",
    "data: {on_bad: ignore}": "ignore",
    "stages: [fit, evalute]": "evalute",
    "defaults: [override /optim: sdg]": "sdg",
    "freeze: {rules: [{match: head, rate: 1}]}": "rate",
    "seeds: 1": "seeds",
}


def test_it_is_a_schema_of_draft_7() -> None:
    jsonschema.Draft7Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=[file.stem for file in EXPERIMENTS])
def test_every_experiment_that_ships_is_sound(file: Path) -> None:
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(file.read_text())))


@pytest.mark.parametrize(("text", "wrong"), WRONG.items())
def test_what_xfer_refuses_is_marked(text: str, wrong: str) -> None:
    assert any(wrong in error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "text",
    ["optim: {lr: 0.1}", "optim: {lr: auto}", "optim: {lr: '${head.p}'}", "data: {root: a}"],
)
def test_what_xfer_takes_is_not(text: str) -> None:
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(text)))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == VALIDATOR.schema


def test_an_option_of_ones_own_is_known(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: xfer.training.loss.CrossEntropy\n")
    found = jsonschema.Draft7Validator(schema_of([config_dir(), str(tmp_path)]))
    assert not list(found.iter_errors({"defaults": [{"override /loss": "mine"}]}))


@pytest.mark.skipif(not shutil.which("yaml-language-server"), reason="no yaml-language-server")
def test_the_language_server_of_editors_marks_and_completes(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(VALIDATOR.schema))
    head = f"# yaml-language-server: $schema={tmp_path / 'schema.json'}\n"
    with language_server("yaml-language-server", "--stdio") as server:
        assert server.marked(tmp_path / "sound.yaml", f"{head}optim: {{lr: 0.1}}\n") == []
        (marked,) = server.marked(tmp_path / "wrong.yaml", f"{head}optim: {{lrr: 0.1}}\n")
        assert "lrr" in marked
        server.marked(tmp_path / "begun.yaml", f"{head}trainer:\n  on_oom: \n")
        assert {"error", "halve"} <= server.completions(tmp_path / "begun.yaml", 2, 10)
