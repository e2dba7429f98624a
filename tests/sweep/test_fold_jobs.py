"""Folds that are trained step by step: jobs, one table, a final model, a run that was killed."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import warm

import xfer
from xfer.core.errors import DataError, ResumeError, XferError
from xfer.core.torch_file import load_tensors

OPTIONS = [
    *("experiment=digits_sgd", "data.digits=[5,6]", "data.folds=2", "trainer.max_epochs=2"),
    *("stages=[fit,evaluate,report]", "optim.lr=0.01", "report.maps=0"),
]


def facts(folder: Path, name: str = "result.json"):
    return json.loads((folder / name).read_text())


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        xfer.run(None, [*OPTIONS, "run.dir=run"])
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


def test_the_plan_says_how_the_folds_are_run(folded: Path) -> None:
    log = (folded / "run.log").read_text()
    final = facts(folded)["cv"]["final_epochs"]
    assert f"the final model: all 363 training images, {final} of 2 epochs, the mean" in log
    assert facts(folded, "plan.json")["folds"]["sizes"] == [[182, 181]]


def test_what_has_finished_is_not_run_again_and_what_is_missing_is(
    folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "begun"
    shutil.copytree(folded / "folds", begun / "folds")
    before = (begun / "folds" / "0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    shutil.rmtree(begun / "folds" / "1")
    xfer.run(None, [*OPTIONS, "run.dir=begun", "checkpoint.resume=auto"])
    assert (begun / "folds" / "0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before
    ours, theirs = ((r / "predictions_oof.csv").read_bytes() for r in (begun, folded))
    assert ours == theirs
    assert "1 of 2 folds are finished already" in (begun / "run.log").read_text()


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
    assert "1 of 2 folds are finished already" in output
    run = tmp_path / "run"
    assert (run / "predictions_oof.csv").read_bytes() == (
        folded / "predictions_oof.csv"
    ).read_bytes()
    ours, theirs = (load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in (run, folded))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
