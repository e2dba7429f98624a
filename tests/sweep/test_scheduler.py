"""What comes next, what is tried again, and what the exit code is, with jobs that cost nothing."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.xfer_slurm._queue import outcome
from hydra_plugins.xfer_sweep._sweep import _at_once
from xfer.config.sweep_spec import SweepSpec
from xfer.core.errors import DataError, JobFailed, ResumeError, SweepError
from xfer.core.log import close_log, open_log
from xfer.core.run_folder import lock
from xfer.core.signals import Stopped, blocked
from xfer.sweep.executors.runners import BatchRunner, QueueRunner
from xfer.sweep.executors.worker import _be_a_job
from xfer.sweep.ledger import Ledger, SweepFacts
from xfer.sweep.objective import Objective
from xfer.sweep.scheduler import Scheduler, run_sweep
from xfer.sweep.space import Choices, Interval, Job, grid
from xfer.sweep.study import JOURNAL, Study

ACC = Objective("val_acc", "maximize")
SEEDS = grid([Choices("seed", ("0", "1", "2", "3"), (0, 1, 2, 3))])


class Launcher:
    """Ends each job with the next of its codes, 0 where there is none, and leaves what a run
    leaves."""

    def __init__(self, **codes: list[int]) -> None:
        self.codes = {int(name.removeprefix("job")): list(found) for name, found in codes.items()}
        self.ran: list[list[int]] = []

    def __call__(self, jobs: Sequence[tuple[Job, Path]]) -> list[tuple[int, str]]:
        self.ran.append([job.number for job, _ in jobs])
        return [self.end(job, folder) for job, folder in jobs]

    def end(self, job: Job, folder: Path) -> tuple[int, str]:
        code = next(iter(self.codes.get(job.number, [])), 0)
        if code:
            self.codes[job.number].pop(0)
            return code, f"xfer: error E70{code}: seed: diverged. Fix: lower it"
        best = {"metric": "val_acc", "value": 0.5 + job.number / 10, "epoch": 1}
        (folder / "result.json").write_text(json.dumps({"best": best}))
        (folder / "status.json").write_text('{"state": "finished"}')
        return 0, ""


def conduct(folder: Path, launcher: Launcher, size: int = 9, study=None, **options) -> int:
    scheduler = scheduler_of(folder, study, **options)
    open_log(folder)
    try:
        scheduler.recall()
        queued = isinstance(launcher, Cluster)
        (QueueRunner(launcher, size) if queued else BatchRunner(launcher, size)).run(scheduler)
        return scheduler.close()
    finally:
        close_log()


def scheduler_of(folder: Path, study=None, **options) -> Scheduler:
    sweep = SweepSpec(**options)
    ledger = Ledger(folder)
    total = sweep.n_trials or len(SEEDS)
    ledger.open(SweepFacts("digits", "command", (ACC,), (), total, None, "mark"))
    jobs = [] if study else SEEDS
    return Scheduler(ledger, sweep, (ACC,), jobs, total, study)


class Cluster(Launcher):
    """Has at most what it was given; its jobs end one at a time, the last first. ``ends``: how
    many may, before it is asked to stop by a signal."""

    def __init__(self, ends: int = 99, **codes: list[int]) -> None:
        super().__init__(**codes)
        self.ends, self.cancelled = ends, False
        self.jobs: dict[int, tuple[Job, Path]] = {}

    @property
    def names(self) -> dict[int, str]:
        return {number: f"4{number}" for number in self.jobs}

    def submit(self, jobs: Sequence[tuple[Job, Path]]) -> None:
        self.ran.append([job.number for job, _ in jobs])
        self.jobs.update((job.number, (job, folder)) for job, folder in jobs)

    def rejoin(self, number: int, folder: Path) -> bool:
        return number in self.jobs

    def ended(self) -> list[tuple[int, int, str]]:
        number, (job, folder) = self.jobs.popitem()
        found = [(number, 143, "") if self.cancelled else (number, *self.end(job, folder))]
        self.ends -= 1
        if not self.ends:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    def cancel(self) -> None:
        self.cancelled = True


def test_a_cluster_has_so_many_jobs_at_a_time_and_each_result_counts_as_it_comes(tmp_path: Path):
    def study() -> Study:
        sweep = SweepSpec(sampler="random", n_trials=4)
        space = [Interval("optim.lr", 0.1, 1)]
        made = Study(sweep, space, [ACC], str(tmp_path / JOURNAL), "digits")
        made.open("mark", tmp_path)
        return made

    ours, options = study(), {"sampler": "random", "n_trials": 4, "size": 2}
    cluster = Cluster(job1=[7])
    assert conduct(tmp_path, cluster, study=ours, **options) == 7
    # Job 0 is the last to end, and nothing waits for it.
    assert cluster.ran == [[0, 1], [2], [3]]
    states = [trial.state.name for trial in ours.study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_jobs_outlive_a_sweep_that_is_stopped_and_are_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cluster = Cluster(ends=1)
    with pytest.raises(Stopped) as stopped:
        conduct(tmp_path, cluster)
    assert stopped.value.exit == 143
    assert cluster.ran == [[0, 1, 2, 3]] and not cluster.cancelled
    still = "job 0 is 40, job 1 is 41, job 2 is 42"
    assert f"in the queue still: {still}" in capsys.readouterr().out
    del cluster.jobs[1]  # lost while nobody waited
    assert conduct(tmp_path, cluster) == 0
    assert cluster.ran[1:] == [[1]]
    assert "in the queue already: job 0 is 40, job 2 is 42" in capsys.readouterr().out


def test_the_first_failure_empties_the_queue_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cluster = Cluster(job3=[7])
    assert conduct(tmp_path, cluster, fail_fast=True) == 7
    assert cluster.cancelled and not cluster.jobs
    states = [Ledger(tmp_path).state(number) for number in range(4)]
    assert states == ["interrupted"] * 3 + ["failed"]
    assert "0 of 4 jobs finished, 1 failed" in capsys.readouterr().out


def test_what_fails_while_the_sweep_stops_is_not_tried_again_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Stopping(Cluster):
        def ended(self) -> list[tuple[int, int, str]]:
            number, (job, folder) = self.jobs.popitem()
            return [(number, *self.end(job, folder))]

    cluster = Stopping(job3=[7, 7], job2=[4])
    assert conduct(tmp_path, cluster, retries=1, fail_fast=True) == 4
    assert "2 failed" in capsys.readouterr().out


def test_a_job_that_finished_is_not_lost_with_its_answer_to_the_queue(tmp_path: Path):
    class Forgetful(Cluster):
        def ended(self) -> list[tuple[int, int, str]]:
            return [(number, 1, "left no result") for number, _, _ in super().ended()]

    assert conduct(tmp_path, Forgetful()) == 0


def test_a_failure_is_told_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    launcher = Launcher(job1=[7], job3=[4])
    assert conduct(tmp_path, launcher) == 7
    assert launcher.ran == [[0, 1, 2, 3]]
    found = capsys.readouterr()
    assert found.out.count("job 1, exit 7: xfer: error E707: seed: diverged") == 1
    assert found.err.splitlines()[0].startswith("job 1, exit 7") and "job 3" in found.err
    again = Launcher()
    assert conduct(tmp_path, again) == 0
    assert again.ran == [[1, 3]]
    none = Launcher()
    assert conduct(tmp_path, none) == 0
    assert none.ran == []


def test_a_failed_job_is_tried_again_as_often_as_is_asked_for(tmp_path: Path):
    launcher = Launcher(job1=[7, 7], job2=[8, 8, 8])
    assert conduct(tmp_path, launcher, retries=2) == 8
    assert launcher.ran == [[0, 1, 2, 3], [1, 2], [1, 2]]
    assert [Ledger(tmp_path).state(number) for number in range(4)] == [
        *("finished", "finished", "failed", "finished"),
    ]


def test_the_first_failure_ends_the_sweep_where_that_is_asked_for(tmp_path: Path):
    # Hydra imports its plugins anew when it looks for them, as another test may have made it do.
    from hydra_plugins.xfer_slurm import SlurmLauncher

    launcher, asked = Launcher(job1=[7]), {"fail_fast": True, "batch": 2}
    size = _at_once(SweepSpec(**asked), BasicLauncher())
    assert conduct(tmp_path, launcher, size=size, **asked) == 7
    assert launcher.ran == [[0, 1]]
    assert _at_once(SweepSpec(batch=2), BasicLauncher()) > 999
    slurm = SlurmLauncher(array_parallelism=64)  # which tells of each job as it ends
    assert _at_once(SweepSpec(**asked), slurm) > 999


# Takes the folder as a run does after a while, and lets go of it when it has finished.
OUTLIVES = """
import sys, time
from pathlib import Path
from xfer.core.run_folder import lock
time.sleep(1)
folder = Path(sys.argv[1])
held = lock(folder)
time.sleep(1)
(folder / "result.json").write_text('{"best": {"metric": "val_acc", "value": 0.5, "epoch": 1}}')
(folder / "status.json").write_text('{"state": "finished"}')
"""


class Upstream(Launcher):
    """Raises at the first job that was killed, as submitit's and joblib's do, while others work."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, jobs: Sequence[tuple[Job, Path]]) -> list[tuple[int, str]]:
        for job, folder in jobs:
            if job.number == 0:
                lock(folder).close()
                (folder / "status.json").write_text('{"state": "running"}')
            elif job.number == 1:
                lock(folder).close()
                (folder / "status.json").write_text(json.dumps({**FAILED, "code": 701, "exit": 7}))
            else:
                command = [sys.executable, "-c", OUTLIVES, str(folder)]
                self.processes.append(subprocess.Popen(command))
        raise RuntimeError("Job 12 has\nnot produced any output\nError stream: long")


FAILED = {"state": "failed", "message": "seed: diverged", "remedy": "lower it"}


def test_a_launcher_that_raises_loses_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    launcher = Upstream()
    try:
        assert conduct(tmp_path, launcher) == 1
    finally:
        for process in launcher.processes:
            process.wait(timeout=600)
    states = [Ledger(tmp_path).state(number) for number in range(4)]
    assert states == ["failed", "failed", "finished", "finished"]
    found = capsys.readouterr()
    assert "2 of 4 jobs finished, 2 failed" in found.out and "leaderboard: " in found.out
    assert found.err.splitlines() == [
        "job 0, exit 1: RuntimeError: Job 12 has not produced any output. Fix: see output.log",
        "job 1, exit 7: xfer: error E701: seed: diverged. Fix: lower it",
    ]


def test_a_launcher_that_begins_nothing_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(jobs: Sequence[tuple[Job, Path]]) -> list[tuple[int, str]]:
        raise OSError("no sbatch")

    monkeypatch.setattr("xfer.sweep.executors.runners._START_S", 0.5)
    with pytest.raises(SweepError, match="E178: hydra/launcher: no job has begun: OSError: no sb"):
        conduct(tmp_path, refused)  # type: ignore[arg-type]


class Quiet(Launcher):
    """Leaves with exit 0 and has not finished; ``said`` is what is left of the status."""

    def __init__(self, said: str | None) -> None:
        super().__init__()
        self.said = said

    def end(self, job: Job, folder: Path) -> tuple[int, str]:
        if job.number != 2:
            return super().end(job, folder)
        if self.said:
            (folder / "status.json").write_text(self.said)
        return 0, ""


@pytest.mark.parametrize("said", [None, '{"state": "running"}', '{"state"'])
def test_a_job_that_leaves_without_a_word_has_failed(
    said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert conduct(tmp_path, Quiet(said)) == 1
    assert Ledger(tmp_path).state(2) == "failed"
    found = capsys.readouterr()
    assert "3 of 4 jobs finished, 1 failed" in found.out
    assert found.err.startswith("job 2, exit 1: left with exit 0 and never finished")


@pytest.mark.parametrize(("failures", "exits"), [({}, 143), ({"job2": [7]}, 7)])
def test_a_job_that_was_stopped_is_unfinished_and_has_not_failed(
    failures: dict[str, list[int]], exits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Stopping(Launcher):
        def end(self, job: Job, folder: Path) -> tuple[int, str]:
            if job.number != 1:
                return super().end(job, folder)
            stopped = {"state": "interrupted", "exit": 143, "message": "stopped by SIGTERM"}
            (folder / "status.json").write_text(json.dumps(stopped))
            return 143, ""

    assert conduct(tmp_path, Stopping(**failures)) == exits
    count = len(failures)
    found = capsys.readouterr()
    assert f"{3 - count} of 4 jobs finished, {count} failed, 1 unfinished" in found.out
    assert "job 1, exit 143: stopped by SIGTERM" in found.err
    assert "| 1 | unfinished |" in (tmp_path / "leaderboard.md").read_text()


def test_a_job_that_finished_has_not_failed_with_its_process(tmp_path: Path):
    class Killed(Launcher):
        def end(self, job: Job, folder: Path) -> tuple[int, str]:
            return super().end(job, folder)[0] or 137, ""

    assert conduct(tmp_path, Killed()) == 0
    assert [Ledger(tmp_path).state(number) for number in range(4)] == ["finished"] * 4


def test_a_sweep_that_is_not_whole_does_not_pass_for_one_that_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Losing(Launcher):
        def end(self, job: Job, folder: Path) -> tuple[int, str]:
            if job.number == 3:
                (folder.parent / "0" / "status.json").unlink()
            return super().end(job, folder)

    assert conduct(tmp_path, Losing(), size=1) == 1
    assert "3 of 4 jobs finished, 0 failed" in capsys.readouterr().out


def test_jobs_that_others_are_at_still_come_last(tmp_path: Path):
    scheduler = scheduler_of(tmp_path)
    scheduler.recall()
    (tmp_path / "0").mkdir()
    with lock(tmp_path / "0"):
        taken = [scheduler.take(wait=False) for _ in range(4)]
        assert [job and job.number for job in taken] == [1, 2, 3, None]
        assert scheduler.later
        for job in taken[:3]:
            assert job
            Launcher().end(job, tmp_path / str(job.number))
        assert scheduler.close() == 1
    last = scheduler.take(wait=False)
    assert last and last.number == 0 and not scheduler.later


def test_trials_are_a_total_and_go_on_with_the_ledger(tmp_path: Path):
    def study(count: int) -> Study:
        sweep = SweepSpec(sampler="random", n_trials=count)
        space = [Interval("optim.lr", 0.1, 1)]
        made = Study(sweep, space, [ACC], str(tmp_path / JOURNAL), "digits")
        made.open("mark", tmp_path)
        return made

    options = {"sampler": "random", "size": 2}
    first = Launcher(job1=[7])
    assert conduct(tmp_path, first, study=study(3), n_trials=3, **options) == 7
    assert first.ran == [[0, 1], [2]]
    # Finished, and the study was never told: killed in between.
    asked = study(4).ask(3)
    Launcher().end(asked, Ledger(tmp_path).prepare(asked))
    second = Launcher()
    assert conduct(tmp_path, second, study=study(6), n_trials=6, **options) == 0
    assert second.ran == [[1, 4], [5]]
    trials = study(6).study.trials
    states = [(t.user_attrs["job"], t.state.name) for t in trials]
    assert sorted(states) == [
        *((0, "COMPLETE"), (1, "COMPLETE"), (1, "FAIL"), (2, "COMPLETE"), (3, "COMPLETE")),
        *((4, "COMPLETE"), (5, "COMPLETE")),
    ]


def test_a_job_without_the_objective_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    launcher = Launcher()
    launcher.end = lambda job, folder: (  # type: ignore[method-assign]
        (folder / "status.json").write_text('{"state": "finished"}') and (0, "")
    )
    assert conduct(tmp_path, launcher) == 0
    assert "job 2 finished, but left no val_acc" in capsys.readouterr().out


def test_what_a_launcher_says_of_a_job_gives_its_exit_code():
    returned = JobReturn(status=JobStatus.FAILED)
    for error, code in ((DataError("d", "is gone", "bring it", 1), 3), (OSError("x"), 1)):
        returned.return_value = error
        assert outcome(returned)[0] == code
        assert str(error) in outcome(returned)[1]
    returned.return_value = JobFailed(7, "diverged")
    assert outcome(returned) == (7, "diverged")


def test_the_plugin_is_shipped_and_shares_its_namespace():
    root = Path(__file__).parents[2]
    assert '"hydra_plugins"' in (root / "pyproject.toml").read_text()
    assert not (root / "hydra_plugins" / "__init__.py").exists(), "other plugins would be hidden"


def test_a_sweep_that_began_in_the_folder_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def another(first: object) -> SimpleNamespace:
        tmp_path.joinpath("s").mkdir()
        Ledger(tmp_path / "s").open(SweepFacts("digits", "another", (ACC,), (), 1, 1, "theirs"))
        return SimpleNamespace(threads=1)

    first = SimpleNamespace(
        sweep=SweepSpec(),
        checkpoint=SimpleNamespace(resume=None),
        experiment="digits",
        stages="fit",
    )
    request = SimpleNamespace(
        space=[], folder=tmp_path / "s", named=True, read=lambda texts: {}, command=""
    )
    monkeypatch.setattr("xfer.sweep.scheduler.check", lambda *_: first)
    monkeypatch.setattr("xfer.sweep.scheduler.wanted", lambda *_: (ACC,))
    monkeypatch.setattr("xfer.sweep.scheduler.marks", lambda *_: ("ours",))
    with pytest.raises(ResumeError, match="holds another sweep: another"):
        run_sweep(request, None, another)  # type: ignore[arg-type]


def test_a_job_that_is_interrupted_before_it_begins_has_not_failed(tmp_path: Path):
    with blocked():
        job = os.fork()
        if not job:
            try:
                atexit._clear()  # of the tests themselves, whose browser and server go on
                # What a shell has put in the background is asked to ignore it.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.kill(os.getpid(), signal.SIGINT)  # comes as soon as the job takes signals
                _be_a_job(["--version"], os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), True)
            finally:
                os._exit(99)  # never back into the tests, whatever was raised
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    assert (code, (tmp_path / "said").read_text()) == (130, "")


@pytest.mark.parametrize("exits", [True, False])
def test_what_a_library_does_at_exit_is_done_unless_the_slot_goes_on(tmp_path: Path, exits: bool):
    said, left = tmp_path / "said", tmp_path / "left"
    job = os.fork()
    if not job:
        try:
            atexit._clear()
            atexit.register(left.touch)
            _be_a_job(["--version"], os.open(said, os.O_WRONLY | os.O_CREAT), exits)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) == 0
    assert left.exists() == exits
