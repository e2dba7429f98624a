"""A killed run goes on where its last file was, and ends as the run that nobody killed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import warm
from runs import (
    OPTIONS,
    assert_gone,
    assert_same,
    finish,
    in_an_epoch,
    kill,
    only_run,
    start,
    start_command,
    wait_for,
)

from xfer.core.errors import OutputError, ResumeError
from xfer.core.files import file_sha256, write_json
from xfer.core.run_folder import is_live, lock
from xfer.core.run_status import amended
from xfer.core.torch_file import load_tensors
from xfer.plan.resume import check_files, check_same, choose, fingerprint, flat


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """As a user types it; those that are compared with it are forks."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start_command(folder))
    return only_run(folder)


def test_two_sigkills_change_nothing(whole, tmp_path):
    first = start(tmp_path, "checkpoint.resume=auto")
    wait_for(lambda: in_an_epoch(tmp_path, 0), first)
    kill(first)
    second = start(tmp_path, "checkpoint.resume=auto")
    wait_for(lambda: in_an_epoch(tmp_path, 23), second)
    kill(second)
    # The number of workers may change.
    finish(start(tmp_path, "checkpoint.resume=auto", "data.workers=1"))
    run = only_run(tmp_path)
    assert_same(run, whole)


def test_a_finished_run_is_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    folder = whole.parents[2]
    output = finish(start(folder, "checkpoint.resume=auto"))
    assert "is finished: nothing to do" in output
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


def test_a_finished_run_does_further_stages_and_trains_no_more(tmp_path):
    short = ["checkpoint.resume=auto", "trainer.max_epochs=1"]
    finish(start(tmp_path, *short, "stages=[fit]"))
    run = only_run(tmp_path)
    trained = (run / "checkpoints/best.ckpt").read_bytes(), (run / "metrics.csv").read_bytes()
    assert not (run / "predictions_val.csv").exists()
    finish(start(tmp_path, *short, "stages=[fit,evaluate]"))
    assert only_run(tmp_path) == run
    assert (run / "predictions_val.csv").exists()
    assert ((run / "checkpoints/best.ckpt").read_bytes(), (run / "metrics.csv").read_bytes()) == (
        trained
    )
    other = start(tmp_path, *short, "stages=[fit,report]")
    said, _ = other.communicate(timeout=600)
    assert other.returncode == 5
    assert "E513" in said and "stages=[fit,evaluate,report]" in said


def test_every_file_is_read_without_code(whole):
    for file in (whole / "checkpoints").iterdir():
        assert load_tensors(file)["xfer"]["card"]["classes"] == ["5", "6", "7", "8", "9"]


def config(lr: float = 0.1, resume: str | None = None) -> dict:
    return {
        "optim": {"lr": lr},
        "run": {"dir": None},
        "checkpoint": {"resume": resume},
        "stages": [],
    }


def earlier_run(root: Path, **facts) -> Path:
    folder = root / "2026-01-01_00-00-00_abc"
    folder.mkdir(parents=True)
    settings = config()
    write_json(
        folder / "plan.json", {"fingerprint": fingerprint(settings), "config": settings, **facts}
    )
    return folder


def test_auto_finds_the_newest_run_of_the_same_configuration(tmp_path):
    folder = earlier_run(tmp_path)
    found = choose("auto", config(resume="auto"), tmp_path)
    assert found is not None and found.folder == folder and not found.finished
    assert choose("auto", config(lr=0.2), tmp_path) is None
    assert choose(None, config(), tmp_path) is None


def test_a_live_run_is_left_alone(tmp_path):
    folder = earlier_run(tmp_path)
    with lock(folder):
        assert is_live(folder)
        assert choose("auto", config(), tmp_path) is None
        with pytest.raises(ResumeError, match="another process"):
            choose(str(folder), config(), tmp_path)
        with pytest.raises(OutputError, match="another process"):
            lock(folder)
    assert not is_live(folder)


def test_a_finished_run_whose_files_are_being_written_anew_has_not_changed(tmp_path):
    run = earlier_run(tmp_path)
    (run / "report.html").write_text("before")
    files = {"report.html": file_sha256(run / "report.html")}
    (run / "status.json").write_text(json.dumps({"state": "finished", "files": files}))
    with amended(run) as changed:
        (run / "report.html").write_text("after")
        with pytest.raises(ResumeError, match="is being worked on by another process"):
            check_files(run)
        changed.append(run / "report.html")
    check_files(run)
    (run / "report.html").write_text("by somebody else")
    with pytest.raises(ResumeError, match=r"report\.html has changed"):
        check_files(run)


def test_a_changed_configuration_is_refused_with_its_keys(tmp_path):
    folder = earlier_run(tmp_path)
    with pytest.raises(ResumeError, match=r"optim.lr was 0.1, now 0.2") as told:
        choose(str(folder), config(lr=0.2), tmp_path)
    assert told.value.exit == 5


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ResumeError, match="no xfer run folder"):
        choose(str(tmp_path), config(), tmp_path)


@pytest.mark.parametrize(
    ("key", "what"), [("classes", "classes"), ("splits", "data"), ("source", "source")]
)
def test_changed_inputs_are_refused(tmp_path, key, what):
    facts = {"classes": ["a"], "splits": {"train": 1}, "source": {"sha256": "x"}}
    earlier_run(tmp_path, **facts)
    found = choose("auto", config(), tmp_path)
    check_same(found, facts)
    with pytest.raises(ResumeError, match=what):
        check_same(found, {**facts, key: "other"})


def test_what_may_differ_is_no_part_of_the_fingerprint():
    free = {"run": {"dir": "x"}, "stages": ["fit"], "data": {"workers": 4, "decoded_gb": 1}}
    assert flat({**free, "features": {"dir": "y", "max_gb": 2}, "seed": 1}) == {"seed": 1}


SIGNALS = [
    (signal.SIGINT, 130),
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGUSR2, 143, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("sent", "code"), SIGNALS)
def test_a_signal_saves_the_step_in_progress_and_the_run_ends_as_if_it_never_came(
    whole, tmp_path, sent, code
):
    process = start(tmp_path)
    kept = "outputs/digits_sgd/*/checkpoints/checkpoint-2_*.ckpt"
    wait_for(lambda: list(tmp_path.glob(kept)), process)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    run = only_run(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit"]) == ("interrupted", code)
    assert signal.Signals(sent).name in status["message"]
    assert status["last_good_checkpoint"] == "checkpoints/last.ckpt"
    saved = load_tensors(run / "checkpoints" / "last.ckpt")["xfer"]["progress"]["step"]
    again = f"xfer resume {run.name}"
    assert f" after step {saved}, its state is saved; to go on, type {again}" in output
    finish(start(tmp_path, "checkpoint.resume=auto"))
    assert_same(run, whole)


# A worker whose run is gone looks for it so seldom that it does not end by itself.
PATIENT = "import torch.utils.data._utils.worker as w\nw.MP_STATUS_CHECK_INTERVAL = 1e6\n"


def test_data_workers_end_with_the_run(tmp_path):
    words = [*OPTIONS, "trainer.max_epochs=200", "data.workers=2"]
    script = PATIENT + warm.COMMAND
    process = warm.start(tmp_path, *words, script=script, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("outputs/digits_sgd/*/metrics.csv")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert_gone([*map(int, children)])
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert status["message"] == "stopped by SIGINT"


BETWEEN = """
import os, signal, sys
from xfer.training.distributed.group import ProcessGroup

asks, asked, at = ProcessGroup.all_reduce_max, [], int(os.environ["AT"])

def all_reduce_max(group, number):
    found = asks(group, number)
    if sys._getframe(1).f_code.co_name == "_signalled":
        asked.append(number)
        if len(asked) == at:
            os.kill(os.getpid(), signal.SIGTERM)
    return found

ProcessGroup.all_reduce_max = all_reduce_max
"""


@pytest.mark.parametrize(("at", "step"), [(5, 6), (46, 46)], ids=["a step", "the last epoch"])
def test_a_signal_while_the_ranks_ask_each_other_for_one_is_not_lost(tmp_path, at, step):
    process = warm.start(tmp_path, *OPTIONS, script=BETWEEN + warm.COMMAND, AT=str(at))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert f"stopped by SIGTERM after step {step}" in output


def test_a_signal_outside_training_ends_the_run_at_once(tmp_path):
    process = start(tmp_path, "checkpoint.resume=null")
    wait_for(lambda: list(tmp_path.glob("outputs/digits_sgd/*/status.json")), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 143


def test_slurm_is_asked_to_requeue(tmp_path):
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/asked"\n')
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = start(tmp_path, "trainer.max_epochs=200", PATH=path, SLURM_JOB_ID="77")
    wait_for(lambda: list(tmp_path.glob("outputs/digits_sgd/*/metrics.csv")), process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


def test_who_handled_the_signal_before_is_called_after_the_run():
    """submitit's own handler requeues the job."""
    from xfer.core.signals import Stopped, heeded

    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with pytest.raises(Stopped), heeded():
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        assert called == [signal.SIGUSR2]
        with heeded():
            pass
        os.kill(os.getpid(), signal.SIGUSR2)
        assert called == [signal.SIGUSR2] * 2
    finally:
        signal.signal(signal.SIGUSR2, before)
