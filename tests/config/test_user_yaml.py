"""A folder of YAML files that somebody gave the user runs no code and takes no memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, SafetyError, XferError
from xfer.core.files import read_json
from xfer.sweep.leaderboard.read_sweep import read
from xfer.sweep.ledger import Ledger

GLOBAL = "# @package _global_\n"
ENV = "{job: {env_set: {XFER_ALLOW: subprocess}}}"
# name: files by path, and what chooses them.
ATTACKS = {
    "env_set": ({"experiment/evil.yaml": f"{GLOBAL}hydra: {ENV}\n"}, "experiment=evil"),
    "callbacks": (
        {"experiment/evil.yaml": f"{GLOBAL}hydra: {{callbacks: {{a: {{_target_: os.abort}}}}}}\n"},
        "experiment=evil",
    ),
    "logging": (
        {
            "experiment/evil.yaml": f"{GLOBAL}defaults:\n- override /hydra/job_logging: evil\n",
            "hydra/job_logging/evil.yaml": "version: 1\n",
        },
        "experiment=evil",
    ),
    "header": ({"optim/evil.yaml": "# @package hydra.job\nenv_set: {A: b}\n"}, "+optim=evil"),
    "header below global": (
        {"optim/evil.yaml": "# @package _global_.hydra.job\nenv_set: {A: b}\n"},
        "+optim=evil",
    ),
    "relocated": (
        {
            "experiment/evil.yaml": f"{GLOBAL}defaults:\n- /head@hydra.job: evil\n",
            "head/evil.yaml": "env_set: {A: b}\n",
        },
        "experiment=evil",
    ),
    "relocated below global": (
        {
            "experiment/evil.yaml": f"{GLOBAL}defaults:\n- /head@_global_.hydra.job: evil\n",
            "head/evil.yaml": "env_set: {A: b}\n",
        },
        "experiment=evil",
    ),
    "name": (
        {"head/hydra.yaml": "# @package _name_\njob: {env_set: {A: b}}\n"},
        "+head=hydra",
    ),
    "relocated by name": (
        {
            "experiment/evil.yaml": f"{GLOBAL}defaults:\n- /head@_name_: hydra\n",
            "head/hydra.yaml": "job: {env_set: {A: b}}\n",
        },
        "experiment=evil",
    ),
    "group": ({"hydra/job_logging/evil.yaml": "a: 1\n"}, "hydra/job_logging=evil"),
    "launcher's shell": (
        {"hydra/launcher/evil.yaml": "defaults: [slurm]\nsetup: [touch x]\n"},
        "hydra/launcher=evil",
    ),
    "launcher's class": (
        {"hydra/launcher/evil.yaml": "slots: {_target_: os.abort}\n"},
        "hydra/launcher=evil",
    ),
    "launcher's interpolation": (
        {"hydra/launcher/evil.yaml": "slots: ${data}\n"},
        "hydra/launcher=evil",
    ),
    "launcher's parent": (
        {
            "hydra/launcher/evil.yaml": "defaults: [{/head@setup: evil}]\n",
            "head/evil.yaml": "a: 1\n",
        },
        "hydra/launcher=evil",
    ),
}


def written(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


@pytest.mark.parametrize("name", ATTACKS)
def test_yaml_sets_nothing_below_hydra_that_could_run_code(tmp_path: Path, name: str) -> None:
    files, choice = ATTACKS[name]
    with pytest.raises(SafetyError, match=r"E630: .*(evil|hydra)\.yaml: may not") as told:
        compose_specs([choice], [written(tmp_path, files)])
    assert told.value.exit == 6


def test_the_command_refuses_before_anything_is_set_or_called(tmp_path: Path) -> None:
    logging = "{root: {handlers: [a]}, handlers: {a: {(): shutil.copyfile, src: a, dst: b}}}"
    text = f"hydra: {{job: {{env_set: {{XFER_ALLOW: subprocess}}}}, job_logging: {logging}}}\n"
    text += "head: {_target_: subprocess.Popen, args: [touch, c]}\n"
    folder = written(tmp_path / "conf", {"experiment/evil.yaml": f"{GLOBAL}{text}"})
    (tmp_path / "a").write_text("secret")
    command = [sys.executable, "-m", "xfer", "--config-dir", folder, "experiment=evil", "stages=[]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 6 and done.stderr.count("\n") == 1 and "E630" in done.stderr
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_yaml_may_set_where_a_sweep_goes_and_what_a_launcher_asks_for(tmp_path: Path) -> None:
    hydra = "{sweep: {dir: '${oc.env:HOME}/x'}, launcher: {slots: 2}}"
    files = {
        "experiment/mine.yaml": f"{GLOBAL}defaults:\n- override /hydra/launcher: mine\n"
        f"hydra: {hydra}\n",
        "hydra/launcher/mine.yaml": "defaults: [slots]\npersistent: true\n",
    }
    compose_specs(["experiment=mine", "data.root=x"], [written(tmp_path, files)])


def test_a_sweep_of_a_yaml_file_varies_nothing_below_hydra(tmp_path: Path) -> None:
    params = "params: {hydra.job.env_set: '{XFER_ALLOW: subprocess}'}"
    files = {"sweep/evil.yaml": f"defaults: [none]\n{params}\n"}
    folder = written(tmp_path / "conf", files)
    command = [sys.executable, "-m", "xfer", "-m", "--config-dir", folder, "sweep=evil"]
    done = subprocess.run(
        [*command, "stages=[]"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 6 and "E630: sweep.params: may not" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "text", ["hydra.job.env_set={A:b}", "+hydra.callbacks={}", "a@hydra.job=b", "hydra/x=y"]
)
def test_a_job_of_a_folder_sets_nothing_below_hydra(tmp_path: Path, text: str) -> None:
    facts = f'{{"job": 0, "overrides": ["{text}"], "parameters": {{}}}}'
    written(tmp_path, {"0/job.json": facts})
    with pytest.raises(SafetyError, match="E630"):
        list(Ledger(tmp_path).jobs())


NINE = ", ".join(["*a{0}"] * 9)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{NINE.format(i - 1)}]\n" for i in range(1, 12))
PILES = {
    "aliases": BOMB,
    "brackets": "a: " + "[" * 3000 + "]" * 3000,
    "braces": "a: " + "{a: " * 3000 + "}" * 3000,
    "blocks": "- " * 3000 + "a",
    "itself": "a: &a [*a]",
    "size": "a: " + "x" * 2_000_000,
}


@pytest.mark.parametrize("name", PILES)
def test_yaml_has_limits_before_it_is_built(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path, {"experiment/evil.yaml": PILES[name]})
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"evil.yaml: cannot be read") as told:
        compose_specs(["experiment=evil"], [folder])
    assert time.monotonic() - began < 300 and "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["optim.lr=" + "[" * 3000, "optim.lr=" + "{a:" * 3000])
def test_brackets_that_are_typed_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is not understood") as told:
        compose_specs([text])
    assert len(str(told.value)) < 500


def test_a_pipe_among_the_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    os.mkfifo(tmp_path / "experiment" / "evil.yaml")
    with pytest.raises(XferError):
        compose_specs(["experiment=evil"], [str(tmp_path)])


def test_a_record_of_a_billion_jobs_is_told(tmp_path: Path) -> None:
    asked = '"objectives": [{"metric": "val_acc", "direction": "maximize"}]'
    written(tmp_path, {"sweep.json": f'{{"format": 1, "jobs": 1000000000, {asked}}}'})
    with pytest.raises(ConfigError, match="1000000000 jobs are more than 100,000"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["[" * 99 + "]" * 99, '{"\\udcff": "name of a file"}', "[1.5]"])
def test_what_is_within_the_limits_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    read_json(tmp_path / "a.json")
