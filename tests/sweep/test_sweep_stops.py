"""Sweeps that are stopped as schedulers and service managers do it, and workers that are lost."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from sweeps import (
    QUICK,
    SLOTS,
    WARM,
    assert_saved,
    at_work,
    begun,
    family,
    ledger,
    process_of,
    state,
    strike,
    sweep,
    until,
)

from xfer.core.run_folder import is_live

STOPPED = [*QUICK, "trainer.max_epochs=8", "seed=0,1", "checkpoint.keep=1"]


def worker_of(sweep_: int) -> int:
    """The process between a sweep of one slot and its job."""
    return family(sweep_)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    done = sweep(folder, *STOPPED, WARM, SLOTS, "sweep.dir=s")
    assert done.returncode == 0
    assert "leaked" not in done.stdout, "a worker took its libraries apart"
    return folder / "s"


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("whom", ["all", "coordinator"])
def test_a_sweep_that_is_told_to_end_saves_every_job_and_goes_on(
    whom: str, persistent: bool, whole: Path, tmp_path: Path
):
    warm = f"hydra.launcher.persistent={str(persistent).lower()}"
    folders = [tmp_path / "s" / name for name in ("0", "1")][: int(SLOTS[-1])]
    with begun(tmp_path, *STOPPED, SLOTS, warm, "sweep.dir=s") as process:
        until(lambda: all(at_work(folder) for folder in folders), process)
        everyone = family(process.pid)
        assert len(everyone) >= 1 + 2 * len(folders), "a coordinator, and a worker for each job"
        strike([*everyone] if whom == "all" else [process.pid], signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert_saved(folders, output)
    done = sweep(tmp_path, *STOPPED, SLOTS, WARM, "sweep.dir=s")
    assert done.returncode == 0, done.stdout
    assert ledger(tmp_path / "s") == ledger(whole)


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_goes_on_and_counts(whole: Path, tmp_path: Path):
    with begun(tmp_path, *STOPPED, WARM, "sweep.dir=s") as process:
        until(lambda: at_work(tmp_path / "s" / "0"), process)
        strike([worker_of(process.pid)], signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert re.findall(r"^job (\d): seed", output, re.M) == ["0", "1"], "each begins once"
    assert ledger(tmp_path / "s") == ledger(whole)


@pytest.mark.slow
def test_ctrl_c_reaches_a_job_whose_worker_is_gone(tmp_path: Path):
    folder = tmp_path / "s" / "0"
    long = [*STOPPED, "trainer.max_epochs=3000", "sweep.dir=s"]
    with begun(tmp_path, *long) as process:
        until(lambda: at_work(folder), process)
        strike([worker_of(process.pid)], signal.SIGKILL)
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=600)
        finally:
            if is_live(folder):
                strike([process_of(folder)], signal.SIGTERM)
    assert process.returncode == 130, output
    assert not is_live(folder) and state(folder) == "interrupted"
    assert "stopped by SIG" in (folder / "status.json").read_text()
    assert not (tmp_path / "s" / "1").exists()


def test_a_worker_that_cannot_begin_is_reported_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tqdm.py").write_text("raise ImportError('tqdm is broken')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), str(Path(__file__).parents[2])])
    monkeypatch.setenv("PYTHONPATH", path)
    done = sweep(tmp_path, *STOPPED, "seed=choice(0)", WARM, "sweep.dir=s")
    assert done.returncode == 1, done.stdout
    assert "tqdm is broken" in done.stdout and "1 failed" in done.stdout
    found = json.loads((tmp_path / "s/0/status.json").read_text())
    what = "the process that starts the jobs of slot 0 left with exit 1"
    assert (found["state"], found["exit"], found["message"]) == ("failed", 1, what)


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_for_a_job_that_a_killed_sweep_left(tmp_path: Path):
    folder, log = tmp_path / "s" / "0", tmp_path / "s" / "run.log"
    long = [*STOPPED, "trainer.max_epochs=3000", "sweep.dir=s"]
    orphan = None
    try:
        with begun(tmp_path, *long) as process:
            until(lambda: at_work(folder), process)
            orphan = process_of(folder)
            strike([process.pid, worker_of(process.pid)][::-1], signal.SIGKILL)
            process.communicate()
        with begun(tmp_path, *long) as process:
            # The other job is begun meanwhile, and comes to its end.
            waiting = f"waiting for a process that works in {Path('s/0')}"
            until(lambda: waiting in log.read_text() and at_work(tmp_path / "s" / "1"), process)
            strike([process_of(tmp_path / "s" / "1")], signal.SIGKILL)
            until(lambda: "job 1, exit 137" in log.read_text(), process)
            assert process.poll() is None and is_live(folder)
            process.send_signal(signal.SIGINT)
            try:
                output, _ = process.communicate(timeout=600)
            finally:
                process.kill()
        assert process.returncode == 130, output
        assert is_live(folder), "it is not this sweep's to stop"
    finally:
        if orphan:
            strike([orphan], signal.SIGTERM)  # and it saves its state
            until(lambda: not is_live(folder))
    assert state(folder) == "interrupted"
