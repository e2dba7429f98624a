"""Trials that fall behind end early: alone, on two ranks, and after a kill at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm
from ranks import FORKED

import xfer
from xfer.config.sweep_spec import SweepSpec
from xfer.sweep.ledger import Ledger
from xfer.sweep.objective import Objective, values
from xfer.sweep.space import Interval, Job
from xfer.sweep.study import Study

ACC = Objective("val_acc", "maximize")
TRAINED = ["stages=[fit]", "trainer.max_epochs=3", "checkpoint.resume=auto"]
TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=16"]


class Trials:
    """A study whose first trial was better in every epoch than a second one can be."""

    def __init__(self, folder: Path) -> None:
        options = SweepSpec(sampler="random", n_trials=9, pruner="median", prune_trials=1)
        space = (Interval("optim.lr", 1e-4, 0.1, log=True),)
        self.study = Study(options, space, [ACC], str(folder / "optuna.journal"), "digits")
        self.study.open("mark", folder)
        self.add(0, 0.99)
        self.job = self.study.ask(1)
        self.folder = Ledger(folder).prepare(self.job)

    def add(self, number: int, value: float) -> Job:
        """A trial that has had ``value`` in every epoch."""
        job = self.study.ask(number)
        trial = self.study.study.trials[-1]
        for epoch in (1, 2, 3):
            storage = self.study.study._storage
            storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        self.study.tell(job, [value])
        return job

    def assert_pruned(self, epoch: int) -> None:
        """The run ended behind that epoch, its folder says so, and so does the study."""
        timing = json.loads((self.folder / "result.json").read_text())["timing"]
        assert len(timing["epoch_s"]) == epoch
        note = json.loads((self.folder / "pruned.json").read_text())
        assert (note["epoch"], note["metric"]) == (epoch, "val_acc") and note["value"] < 0.99
        self.study.tell(self.job, values(self.folder, [ACC]))
        trial = self.study.study.trials[1]
        assert trial.state.name == "PRUNED"
        assert len(trial.intermediate_values) == epoch
        assert trial.intermediate_values[epoch] == note["value"]


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.chdir(tmp_path)
    return Trials(tmp_path)


def test_a_trial_that_falls_behind_ends_early_and_says_so(trials: Trials):
    xfer.run("digits_sgd", [*TRAINED, f"run.dir={trials.folder}"])
    trials.assert_pruned(1)


def test_no_trial_is_pruned_before_it_has_a_best_epoch(trials: Trials):
    xfer.run("digits_sgd", [*TRAINED, f"run.dir={trials.folder}", "checkpoint.start_epoch=2"])
    trials.assert_pruned(2)


def test_a_study_that_does_not_answer_costs_no_run(
    trials: Trials, capsys: pytest.CaptureFixture[str]
):
    (trials.folder.parent / "optuna.journal").unlink()
    xfer.run("digits_sgd", [*TRAINED, f"run.dir={trials.folder}"])
    timing = json.loads((trials.folder / "result.json").read_text())["timing"]
    assert len(timing["epoch_s"]) == 3
    assert "the study does not answer" in capsys.readouterr().out


# Kills itself at the moment WHEN.
KILLED = """
import os, signal, sys
import xfer.training.callbacks.timeline, xfer.sweep.pruning
from xfer.__main__ import main

def at(owner, name, moment, behind):
    work = getattr(owner, name)
    def done(*given):
        if moment == "WHEN" and not behind:
            os.kill(os.getpid(), signal.SIGKILL)
        work(*given)
        if moment == "WHEN":
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, done)

from xfer.training.callbacks.progress import History
at(History, "save_resume", "the study has heard nothing", True)
at(xfer.sweep.pruning, "write_json", "the folder does not say so", False)
at(xfer.sweep.pruning, "write_json", "the trial is not marked", True)
sys.argv = ["xfer", "experiment=digits_sgd", *sys.argv[1:]]
main()
"""


def run(trials: Trials, *options: str, when: str = "") -> None:
    own = f"run.dir={trials.folder}"
    script = (FORKED if "trainer.devices=2" in options else "") + KILLED.replace("WHEN", when)
    process = warm.start(trials.folder.parent, *TRAINED, *options, own, script=script)
    said, _ = process.communicate()
    assert process.returncode == (-9 if when else 0), said


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("the folder does not say so", marks=pytest.mark.slow),
        "the trial is not marked",
    ],
)
def test_a_pruned_trial_that_is_killed_ends_where_it_was_pruned(trials: Trials, when: str):
    run(trials, when=when)
    if when == "the trial is not marked":
        for number in range(2, 7):
            trials.add(number, 0.01)  # the pruner would let it go on now
    xfer.run("digits_sgd", [*TRAINED, f"run.dir={trials.folder}"])
    trials.assert_pruned(1)


@pytest.mark.parametrize(
    "when", ["", pytest.param("the study has heard nothing", marks=pytest.mark.slow)]
)
def test_two_ranks_are_pruned_together_also_after_a_kill(trials: Trials, when: str):
    if when:
        run(trials, *TWO, when=when)
    run(trials, *TWO)
    trials.assert_pruned(1)
