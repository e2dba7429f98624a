"""Folds that are trained step by step: jobs, one table, a final model, a run that was killed."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import warm
from runs import facts, table
from sweeps import quick_sweep

import xfer
from xfer.core.errors import ConfigError, DataError, FoldError, ResumeError, XferError
from xfer.core.signals import Stopped
from xfer.core.torch_file import load_tensors
from xfer.sweep.fold_jobs import FoldTurns, refuse_queued
from xfer.sweep.ledger import Ledger
from xfer.sweep.space import Job

OPTIONS = [
    *("experiment=digits_sgd", "data.digits=[5,6]", "data.folds=2", "trainer.max_epochs=2"),
    *("stages=[fit,evaluate,report]", "optim.lr=0.01", "report.maps=0"),
]

JOBS = [Job(number, (f"data.fold={number}",), {}) for number in range(4)]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("jobs")
    done = quick_sweep(place, *OPTIONS, "run.dir=run")
    assert done.returncode == 0, done.stdout
    return place / "run"


def test_every_fold_is_a_run_of_its_own_and_the_table_pools_them(folded: Path) -> None:
    rows, cv = table(folded, "predictions_oof.csv"), facts(folded)["cv"]
    assert len(rows) == cv["n"] == 363
    for fold in (0, 1):
        job = folded / "folds" / str(fold)
        assert facts(job, "status.json")["state"] == "finished"
        alone = {row["path"]: row for row in table(job, "predictions_val.csv")}
        ours = {row["path"]: row for row in rows if row["fold"] == str(fold)}
        assert ours.keys() == alone.keys()
        assert all(ours[name]["p_5"] == row["p_5"] for name, row in alone.items())
    assert cv["acc"] == pytest.approx(np.mean([r["label"] == r["prediction"] for r in rows]))


def test_the_final_model_has_as_many_epochs_as_were_best_on_average(folded: Path) -> None:
    best = [facts(folded / "folds" / str(fold))["best"]["epoch"] for fold in (0, 1)]
    result = facts(folded)
    assert result["cv"]["final_epochs"] == round(statistics.fmean(best))
    assert (
        result["best"]["epoch"] == result["cv"]["final_epochs"] == len(table(folded, "metrics.csv"))
    )
    assert result["best"]["metric"] == "train_loss"
    assert {row["val_acc"] for row in table(folded, "metrics.csv")} == {""}
    card = load_tensors(folded / "checkpoints" / "best.ckpt")["xfer"]["card"]
    assert set(card["splits"]) == {"train"}
    assert result["cv"]["used_for_selection"] is True
    text = (folded / "report.md").read_text()
    assert "no image was left to choose an epoch by" in text
    assert "somewhat optimistic" in text


def test_it_is_said_how_the_folds_were_run(folded: Path) -> None:
    log = (folded / "run.log").read_text()
    final = facts(folded)["cv"]["final_epochs"]
    assert f"the final model: all 363 training images, {final} of 2 epochs, the mean" in log
    assert f"epoch {final}/{final}  train loss" in log, "its own last epoch, not its schedule's"
    assert facts(folded, "plan.json")["folds"]["sizes"] == [[182, 181]]


def test_what_has_finished_is_not_run_again_and_what_is_missing_is(
    folded: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(folded / "folds", begun / "folds")
    before = (begun / "folds" / "0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    shutil.rmtree(begun / "folds" / "1")
    done = quick_sweep(tmp_path, *OPTIONS, "run.dir=begun", "checkpoint.resume=auto")
    assert done.returncode == 0, done.stdout
    assert (begun / "folds" / "0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before
    ours, theirs = ((r / "predictions_oof.csv").read_bytes() for r in (begun, folded))
    assert ours == theirs
    assert "1 of 2 folds finished already" in (begun / "run.log").read_text()


def test_folds_of_another_configuration_are_refused(
    folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folded / "folds", tmp_path / "other" / "folds")
    with pytest.raises(ResumeError, match="another configuration") as caught:
        xfer.run(None, [*OPTIONS, "optim.lr=0.02", "run.dir=other"])
    assert caught.value.number == 530


def test_a_fold_that_fails_is_the_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(XferError, match="fold 0: ") as caught:
        xfer.run(None, [*OPTIONS, "freeze=none", "optim.lr=9000", "run.dir=wrong"])
    assert caught.value.exit == 7 and 700 <= caught.value.number < 800
    assert facts(tmp_path / "wrong", "status.json")["exit"] == 7
    assert not isinstance(caught.value, DataError)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that answer as Slurm's do."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name, answer in (("sinfo", "cpu*|64|262144|(null)"), ("sbatch", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (OPTIONS, "each a separate job here, one at a time (hydra.launcher.slots)"),
        ([*OPTIONS, "hydra.launcher.slots=2"], "each a separate job here, 2 at a time"),
        (
            [*OPTIONS, "hydra/launcher=slurm_cpu", "hydra.launcher.partition=cpu"],
            "each a job of Slurm (hydra/launcher=slurm_cpu, partition 'cpu')",
        ),
        # A head that is solved has its folds in one process, whatever the launcher is.
        (["experiment=digits_freeze", "data.folds=2", "hydra/launcher=basic"], "all in this proc"),
    ],
)
def test_the_plan_says_where_the_folds_run(
    typed: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xfer.sweep.executors.slots.usable_cores", lambda: [0, 1])
    xfer.run(None, [*typed, "stages=[]"])
    words = " ".join(capsys.readouterr().out.split())
    assert said in words
    here = "the final model is fitted on all training images by this process"
    assert (here in words) == (typed[0] == OPTIONS[0])


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("typed", "kind", "said"),
    [
        ("hydra/launcher=basic", FoldError, "'basic' cannot run folds"),
        ("hydra.launcher.partition=gpus", ConfigError, "there is no partition 'gpus'"),
        ("hydra.launcher.gpus_per_node=1", ConfigError, "asks for 1 GPUs"),
    ],
)
def test_a_launcher_that_could_never_run_the_folds_is_refused_before_there_is_a_folder(
    typed: str, kind: type[XferError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said) as caught:
        xfer.run(None, [*OPTIONS, "hydra/launcher=slurm_cpu", typed, "run.dir=run"])
    assert not (tmp_path / "run").exists()
    if kind is FoldError:
        assert caught.value.number == 140
        for fix in ("hydra/launcher=slots", "hydra/launcher=slurm_cpu"):
            assert fix in caught.value.fix
            xfer.run(None, [*OPTIONS, fix, "stages=[]"])


def test_where_all_folds_have_finished_no_cluster_is_asked(
    folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    shutil.copytree(folded, tmp_path / "run")
    status = facts(folded, "status.json") | {"state": "interrupted"}
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    slurm = ["hydra/launcher=slurm_cpu", "run.dir=run", "checkpoint.resume=auto"]
    assert xfer.run(None, [*OPTIONS, *slurm]).facts["cv"] == facts(folded)["cv"]


@pytest.mark.parametrize(
    ("answer", "said", "fix"),
    [
        ("echo 40_1", "jobs 40_1 are in the queue", "type scancel 40_1, or wait for them: add hyd"),
        ("echo '41|there/a.sh'", "jobs 41 are in the queue", "type scancel 41, or wait for them"),
        ("exit 1", "one of unknown number, 40_1 had", "folds/*/queued.json once they are c"),
    ],
)
def test_a_fold_that_is_in_the_queue_is_not_trained_here_as_well(
    answer: str, said: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for number, name in (("1", "40_1"), ("0", None)):
        (tmp_path / "run" / "folds" / number).mkdir(parents=True)
        queued = json.dumps({"slurm": name, "files": "there"})
        (tmp_path / "run" / "folds" / number / "queued.json").write_text(queued)
    with pytest.raises(FoldError, match=said) as caught:
        xfer.run(None, [*OPTIONS, "run.dir=run"])
    assert caught.value.number == 141 and fix in caught.value.fix
    program.write_text("#!/bin/sh\n")  # what is cancelled is not there any more
    (tmp_path / "run" / "folds" / "1" / "queued.json").write_text("[]")
    refuse_queued(FoldTurns(Ledger(tmp_path / "run" / "folds"), JOBS))


def test_a_fold_that_was_stopped_is_unfinished_and_one_that_says_why_stops_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = FoldTurns(Ledger(tmp_path), JOBS)
    for job in JOBS:
        assert turns.take() is job
    assert turns.take() is None and not turns.later
    assert not turns.ended(JOBS[0], 143)
    with pytest.raises(Stopped) as stopped:
        turns.check()
    assert stopped.value.exit == 143
    assert "4 of 4 folds unfinished" in caplog.text
    assert not turns.ended(JOBS[1], 137)
    with pytest.raises(XferError, match="fold 1: killed by signal 9"):
        turns.check()
    said = {"state": "failed", "code": 701, "exit": 7, "message": "seed: diverged"}
    (tmp_path / "2" / "status.json").write_text(json.dumps(said))
    assert turns.ended(JOBS[2], 7)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_a_whole_one(folded: Path, tmp_path: Path) -> None:
    words = [*OPTIONS, "run.dir=run", "checkpoint.resume=auto"]
    process = warm.start(tmp_path, *words)
    status = tmp_path / "run" / "folds" / "0" / "status.json"
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if status.is_file() and facts(status.parent, "status.json")["state"] == "finished":
            break
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = warm.start(tmp_path, *words)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert "1 of 2 folds finished already" in output
    run = tmp_path / "run"
    assert (run / "predictions_oof.csv").read_bytes() == (
        folded / "predictions_oof.csv"
    ).read_bytes()
    ours, theirs = (load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in (run, folded))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
