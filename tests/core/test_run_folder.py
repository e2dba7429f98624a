from __future__ import annotations

import ast
import fcntl
import json
import os
from pathlib import Path

import pytest

from xfer.core import locks
from xfer.core.errors import SafetyError
from xfer.core.run_folder import (
    best_checkpoint,
    checkpoints,
    entries,
    is_live,
    lock,
    refuse_odd,
    run_of,
)
from xfer.core.run_status import Status, recorded

PACKAGE = Path(__file__).parents[2] / "xfer"


def test_the_best_checkpoint_is_that_of_a_folder_or_the_file_itself(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert best_checkpoint(tmp_path) == best and best.parent == checkpoints(tmp_path)
    assert best_checkpoint(best) == best
    elsewhere = tmp_path / "there_is_none.ckpt"
    assert best_checkpoint(elsewhere) == elsewhere


def test_the_run_of_a_checkpoint_is_the_folder_around_its_own(tmp_path: Path) -> None:
    assert run_of(best_checkpoint(tmp_path)) == tmp_path
    assert run_of(Path("checkpoints/best.ckpt")) == Path()
    assert run_of(tmp_path / "best.ckpt") is None and run_of(Path("best.ckpt")) is None


def test_no_other_module_writes_out_where_checkpoints_are() -> None:
    names = ("checkpoints", "best.ckpt", "last.ckpt", "checkpoints/best.ckpt")
    writers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    # torch.hub has a folder of that name too.
    assert writers == {"core/run_folder.py", "weights/hub/libraries.py"}


def test_what_a_kill_left_half_written_is_removed_by_the_next_run_and_what_a_fold_writes_is_not(
    tmp_path: Path,
) -> None:
    left = tmp_path / "export" / ".hub.abc.part"
    (left / "below").mkdir(parents=True)
    (left / ".model.xyz.part").write_text("half")
    folds, own = tmp_path / "folds", tmp_path / "checkpoints" / "folds"
    for place in (folds / "2" / "checkpoints", own):
        place.mkdir(parents=True)
        (place / ".last.ckpt.abc.part").write_text("half")
        (place / "kept").write_text("whole")
    handed_over = tmp_path / ".queued.json.abc.part"  # the sweep notes what Slurm calls this job
    handed_over.touch()
    with recorded(tmp_path, resumes=True):
        assert not left.exists() and not (own / ".last.ckpt.abc.part").exists()
        assert handed_over.exists()
        assert (folds / "2" / "checkpoints" / ".last.ckpt.abc.part").read_text() == "half"
    assert list(entries(tmp_path)) == [own / "kept"]


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", None])
def test_a_run_that_is_resumed_says_that_it_was_killed(tmp_path: Path, state: str | None) -> None:
    if state:
        Status(state).write(tmp_path)
    with recorded(tmp_path, resumes=True):
        assert ("it was killed" in (tmp_path / "run.log").read_text()) == (state == "running")


@pytest.mark.parametrize("text", ["", "{", "[]", "nothing"])
def test_half_a_status_that_a_power_cut_left_is_gone_on_from(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with recorded(tmp_path, resumes=True):
        pass
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_a_file_that_a_fold_renames_meanwhile_is_nothing_odd_and_a_pipe_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "folds" / "0"
    place.mkdir(parents=True)
    walked = [(str(place), [], [".last.ckpt.abc.part"])]
    monkeypatch.setattr(os, "walk", lambda folder: walked)
    refuse_odd(tmp_path)
    # One that was renamed between two looks, and took the place of another.
    (place / ".last.ckpt.abc.part").touch()
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "is_file", lambda path: False)
        refuse_odd(tmp_path)
    (place / ".last.ckpt.abc.part").unlink()
    os.mkfifo(place / ".last.ckpt.abc.part")
    with pytest.raises(SafetyError, match="is a pipe"):
        refuse_odd(tmp_path)


def test_who_asks_whether_a_run_is_at_work_keeps_nobody_from_asking_or_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, answers = fcntl.flock, []

    def meanwhile(handle: int, how: int) -> None:
        asking(handle, how)
        if how == fcntl.LOCK_SH | fcntl.LOCK_NB and not answers:
            answers.append(None)
            answers.append(is_live(tmp_path))
            monkeypatch.setattr(locks.time, "sleep", lambda _: asking(handle, fcntl.LOCK_UN))
            lock(tmp_path).close()  # begins while the one above has not let go of it

    lock(tmp_path).close()
    monkeypatch.setattr(fcntl, "flock", meanwhile)
    assert not is_live(tmp_path) and answers == [None, False]
    with lock(tmp_path):
        assert is_live(tmp_path)
