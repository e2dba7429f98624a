"""Callbacks of Lightning that a configuration names: allowed, called, saved, and never trusted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import warm
from runs import assert_same, finish, in_an_epoch, kill, only_run, start, wait_for

import xfer
from xfer.core.errors import ConfigError, SafetyError
from xfer.core.run_status import as_xfer
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.training.module import Classifier

PARTS = '''
import os
from pathlib import Path

import pytorch_lightning as pl

MADE = []
Path("imported").touch()


class Count(pl.Callback):
    """Counts steps and sums what it sees of every validation."""

    def __init__(self, by: int = 1):
        MADE.append(self)
        self.steps, self.by, self.seen = 0, by, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps += self.by

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(float(trainer.callback_metrics["val_acc"]))

    def state_dict(self):
        return {"steps": self.steps, "seen": list(self.seen)}

    def load_state_dict(self, state):
        self.steps, self.seen = state["steps"], state["seen"]


class Other(Count):
    def load_state_dict(self, state):
        raise ValueError("not this state")


class Odd(Count):
    def state_dict(self):
        return {"at": Path("somewhere")}


class Raises(pl.Callback):
    def __init__(self, at: str):
        def fail(*arguments, **named):
            raise RuntimeError(f"in {at}")

        setattr(self, at, fail)


class Shifts(pl.Callback):
    """Changes a frozen weight a little."""

    def on_train_epoch_end(self, trainer, module):
        next(module.net.parameters()).data[0, 0, 0, 0] += 1e-6


class NoCallback:
    pass
'''
COUNT = "trainer.callbacks=[{_target_: called.Count, by: 2}]"
ONE = ["trainer.max_epochs=1", "stages=[fit]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "called.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "called", raising=False)
    monkeypatch.setenv("XFER_ALLOW", "called")
    return tmp_path


def listed(*classes: str) -> str:
    return f"trainer.callbacks=[{', '.join(f'{{_target_: {name}}}' for name in classes)}]"


def state_of(folder: Path) -> dict:
    return load_tensors(folder / "checkpoints" / "last.ckpt")["callbacks"]


def test_a_callback_is_made_once_a_fit_and_called_with_the_metrics(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 2):
        result = xfer.run("digits_sgd", [COUNT, "trainer.max_epochs=2", "stages=[fit]"])
        assert len(importlib.import_module("called").MADE) == count
        saved = state_of(result.folder)["Count"]
        assert saved["steps"] == 2 * 46
        rows = (result.folder / "metrics.csv").read_text().splitlines()
        place = rows[0].split(",").index("val_acc")
        assert saved["seen"] == pytest.approx([float(r.split(",")[place]) for r in rows[1:]])
        config = (result.folder / "config.yaml").read_text()
        assert "callbacks:\n  - _target_: called.Count" in config
        assert "callbacks   called.Count" in capsys.readouterr().out


def test_a_killed_run_goes_on_with_the_state_of_its_callbacks(here: Path) -> None:
    folders = [here / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "called.py").write_text(PARTS)
    finish(start(folders[0], COUNT))
    whole = only_run(folders[0])
    process = start(folders[1], COUNT)
    wait_for(lambda: in_an_epoch(folders[1], 23), process)
    kill(process)
    run = only_run(folders[1])
    assert 0 < state_of(run)["Count"]["steps"] < state_of(whole)["Count"]["steps"]
    said = finish(start(folders[1], COUNT, "checkpoint.resume=auto"))
    assert "resumed in epoch" in said
    assert state_of(run)["Count"] == state_of(whole)["Count"]
    assert state_of(run)["Count"]["steps"] == 2 * 46
    assert_same(run, whole)


def test_a_callback_that_refuses_its_state_is_named_and_not_the_run(here: Path) -> None:
    process = start(here, listed("called.Other"))
    wait_for(lambda: in_an_epoch(here, 5), process)
    kill(process)
    resumed = start(here, listed("called.Other"), "checkpoint.resume=auto")
    said, _ = resumed.communicate()
    assert resumed.returncode == 2
    assert "E221: called, line" in said and "ValueError: not this state" in said


@pytest.mark.parametrize("at", ["setup", "on_train_start", "on_train_batch_end", "on_fit_end"])
def test_a_callback_that_raises_is_told_with_its_line(here: Path, at: str) -> None:
    with pytest.raises(ConfigError, match=rf"E221: called, line \d+: RuntimeError: in {at}"):
        xfer.run("digits_sgd", [f"trainer.callbacks=[{{_target_: called.Raises, at: {at}}}]", *ONE])
    (folder,) = (here / "outputs" / "digits_sgd").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["code"], status["exit"]) == ("failed", 221, 2)


MISTAKES = {
    "no callback": ("{_target_: called.NoCallback}", "NoCallback is no callback"),
    "not there": ("{_target_: called.Countt}", "'called.Countt' cannot be imported"),
    "no class": ("{by: 2}", r"callbacks\[0\] names no class"),
    "a key that it does not take": ("{_target_: called.Count, buy: 2}", r"callbacks\[0\].by'"),
    "a value of another type": ("{_target_: called.Count, by: x}", "must be a whole number"),
    "no list": None,
    "what xfer does": (
        "{_target_: pytorch_lightning.callbacks.ModelCheckpoint}",
        "ModelCheckpoint does what xfer does. Fix: drop it: checkpoint.every_n_epochs=1",
    ),
    "two of one state": ("{_target_: called.Count}, {_target_: called.Count}", "more than one"),
    "a state that is code": ("{_target_: called.Odd}", "the PosixPath at callbacks.Odd.at"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_callback_is_one_line(
    here: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_ALLOW", "called,pytorch_lightning")
    node, says = MISTAKES[case] or ("", "must be a list")
    typed = f"trainer.callbacks=[{node}]" if node else "trainer.callbacks=called.Count"
    with pytest.raises(ConfigError, match=says) as raised:
        xfer.run("digits_sgd", [typed, *ONE])
    assert "trainer.callbacks" in raised.value.where


def test_a_callback_that_changes_what_is_frozen_is_caught(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"E221: trainer.callbacks: a frozen tensor moved") as e:
        xfer.run("digits_sgd", [listed("called.Shifts"), *ONE])
    assert "correct the callback" in e.value.fix
    (folder,) = (here / "outputs" / "digits_sgd").iterdir()
    proof = json.loads((folder / "freeze_proof.json").read_text())
    assert proof["proved"] is False and proof["moved"] == ["conv1.weight"]


def test_no_file_gives_the_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a YAML file nor a checkpoint that names a callback has it imported."""
    made = xfer.run("digits_sgd", [COUNT, "trainer.max_epochs=1", "stages=[fit,evaluate]"])
    (here / "imported").unlink()
    monkeypatch.delitem(sys.modules, "called")
    monkeypatch.delenv("XFER_ALLOW")
    conf = here / "conf" / "experiment"
    conf.mkdir(parents=True)
    (conf / "theirs.yaml").write_text(
        "# @package _global_\ndefaults: [digits_sgd]\n"
        "trainer: {callbacks: [{_target_: called.Count}], metrics: {m: {_target_: called.Count}}}\n"
    )
    refused = start(here, "--config-dir", "conf", "experiment=theirs")
    said, _ = refused.communicate()
    assert refused.returncode == 6
    for kind in ("callback", "metric"):
        assert f"'called.Count' may not be used for {kind}. Fix: add --allow called" in said
    # The checkpoint is opened without: only a fit has use for a callback.
    xfer.load(made.folder)
    opened = ("experiment=digits_sgd", f"checkpoint.path={made.folder}", "stages=[evaluate]")
    scores = finish(warm.start(here, *opened))
    assert f"accuracy {made.facts['scores']['val']['acc']:.4f}" in scores
    assert not (here / "imported").exists()


def test_a_resume_file_that_names_a_callback_has_nothing_of_it_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XFER_ALLOW")
    process = start(here)
    wait_for(lambda: in_an_epoch(here, 5), process)
    kill(process)
    last = only_run(here) / "checkpoints" / "last.ckpt"
    content = load_tensors(last)
    content["callbacks"]["called.Count"] = {"_target_": "called.Count", "steps": 1}
    save_tensors(last, content)
    finish(start(here, "checkpoint.resume=auto"))
    assert not (here / "imported").exists()


def test_callbacks_of_lightning_are_allowed_like_any_other(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = (
        "trainer.callbacks=[{_target_: pytorch_lightning.callbacks.EarlyStopping, "
        "monitor: val_acc, mode: max, min_delta: 1.0, patience: 2}]"
    )
    with pytest.raises(SafetyError, match="add --allow pytorch_lightning"):
        xfer.run("digits_sgd", [stops, "stages=[fit]"])
    monkeypatch.setenv("XFER_ALLOW", "pytorch_lightning")
    done = xfer.run("digits_sgd", [stops, "trainer.max_epochs=6", "stages=[fit]"])
    assert len((done.folder / "metrics.csv").read_text().splitlines()) == 1 + 3
    needs_logger = "trainer.callbacks=[{_target_: pytorch_lightning.callbacks.LearningRateMonitor}]"
    with pytest.raises(ConfigError, match=r"E221: pytorch_lightning.callbacks.lr_monitor, line"):
        xfer.run("digits_sgd", [needs_logger, *ONE])


def test_a_mistake_of_xfer_stays_one_where_lightning_is_allowed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_ALLOW", "pytorch_lightning,torch")
    # As if it were of xfer: the function is, by the module that it says.
    made = {"__name__": "xfer.training.module"}
    exec("def loss_of(self, batch): raise KeyError('a bug')", made)
    monkeypatch.setattr(Classifier, "loss_of", made["loss_of"])
    with pytest.raises(KeyError) as raised:
        xfer.run("digits_sgd", ONE)
    assert as_xfer(raised.value) is raised.value


def test_a_head_that_is_solved_has_no_epochs_to_call_in(here: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"E262.*trainer.callbacks asks for training step by step"
    ):
        xfer.run("digits_freeze", [COUNT, "optim=exact", "stages=[fit]"])
    plan = xfer.run("digits_freeze", [COUNT, "optim=auto", "stages=[]"]).plan
    chosen = {row["key"]: row for row in plan["auto"]}
    assert chosen["optim"]["value"] == "adamw"
    assert chosen["optim"]["why"] == "trainer.callbacks asks for training step by step"
