"""Sweeps as people meet them: real processes that fail, are stopped, are killed, and go on."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from sweeps import (
    QUICK,
    SLOTS,
    WARM,
    all_at_work,
    assert_saved,
    at_work,
    begun,
    family,
    ledger,
    photos,
    process_of,
    quick_sweep,
    quickly_begun,
    state,
    strike,
    sweep,
    until,
)

from xfer.__main__ import _main
from xfer.sweep.executors.slots import visible_gpus

MISTAKES = {
    "an empty space": ([], "nothing varies"),
    "an empty file": (["sweep=none"], "nothing varies"),
    "no such parameter": (["optim.lrr=0.1,0.2"], "did you mean 'optim.lr'?"),
    "no such parameter in a file": (["sweep.params={optim.lrr: '1,2'}"], "'optim.lrr'"),
    "no such option": (["head=linear,linaer"], "did you mean 'linear'?"),
    "a value out of range": (["optim.lr=0.1,-1"], "optim.lr: is -1"),
    "never logged": (["seed=0,1", "sweep.objectives={val_accuracy: maximize}"], "mean 'val_acc'?"),
    "never logged with this data": (
        ["seed=0,1", "sweep.objectives={val_top5: maximize}"],
        "never logged with 5 classes",
    ),
    "unknown sampler": (["seed=0,1", "sweep.sampler=tpee"], "did you mean 'tpe'?"),
    "no number of trials": (["seed=0,1", "sweep.sampler=tpe"], "type sweep.n_trials=32"),
    "a measure of no file": (
        ["seed=0,1", "sweep.objectives={benchmark.model.onnx.ms: minimize}"],
        "never logged",
    ),
    "no such option of the launcher": (["seed=0,1", "hydra.launcher.slotss=2"], "'slots'?"),
    "an option of another launcher": (["seed=0,1", "hydra.launcher.qos=x"], "launcher=slurm"),
    "an interval in a grid": (["optim.lr=interval(0.1,1)"], "no grid of values"),
    "an empty interval": (["optim.lr=interval(1,1)"], "has no value"),
    "a storage that is none": (
        ["seed=0,1", "sweep.sampler=tpe", "sweep.n_trials=2", "sweep.storage=nosuch://x"],
        "cannot be used",
    ),
    "more slots than cores": (["seed=0,1", "hydra.launcher.slots=999"], "999 slots need"),
    "no GPU": (["seed=0,1", "trainer.accelerator=gpu"], "there is no GPU here"),
    "one run to go on with": (["seed=0,1", "checkpoint.resume=a/run"], "names one run"),
    "one run among others": (["checkpoint.resume=auto,a/run"], "names one run"),
    "one run, to be looked at": (["seed=0,1", "checkpoint.resume=a", "stages=[]"], "names one run"),
    "one run in Hydra's own sweep": (
        ["seed=0,1", "checkpoint.resume=a/run", "hydra/sweeper=basic"],
        "names one run",
    ),
    "no finite number": (["optim.lr=0.1,inf"], "inf and nan are no values"),
    "choices alone for cmaes": (
        ["head=linear,mlp", "sweep.sampler=cmaes", "sweep.n_trials=2"],
        "type sweep.sampler=tpe",
    ),
    "a baseline of two": (["seed=0,1", "sweep.baseline=['seed=0,1']"], "is several values"),
    "never logged, to be looked at": (
        ["seed=0,1", "stages=[]", "sweep.objectives={val_accuracy: maximize}"],
        "mean 'val_acc'?",
    ),
    "more slots than cores, to be looked at": (
        ["seed=0,1", "stages=[]", "hydra/launcher=local", "hydra.launcher.slots=999"],
        "999 slots need",
    ),
    "a folder of something else, to be looked at": (
        ["seed=0,1", "stages=[]", "sweep.dir=taken"],
        "holds files but no sweep",
    ),
    "a folder of something else": (["seed=0,1", "sweep.dir=taken"], "holds files but no sweep"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_before_the_first_job(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if name == "no GPU" and visible_gpus():
        pytest.skip("there is one")
    typed, words = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code = _main([*QUICK, *typed])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xfer: error E") and words in line
    assert code == (5 if "sweep.dir=taken" in typed else 2)
    assert not list(tmp_path.rglob("job.json")) and not list(tmp_path.rglob("plan.json"))


def test_one_run_is_no_job_of_hydra_s_own_launcher_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    own = ["hydra/sweeper=basic", "hydra/launcher=basic", "checkpoint.resume=a/run", "seed=0"]
    assert _main([*QUICK, *own]) == 2
    line, hydra_s = capsys.readouterr().err.splitlines()
    assert line.startswith("xfer: error E172: checkpoint.resume: names one run")
    assert hydra_s.startswith("Error executing job with overrides")
    assert not list(tmp_path.rglob("plan.json"))


@pytest.mark.parametrize(("package", "sampler"), [("optuna", "tpe"), ("cmaes", "cmaes")])
def test_a_package_that_is_missing_is_told_and_leaves_no_folder(
    package: str,
    sampler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setitem(sys.modules, package, None)
    space = ["optim.lr=interval(0.1,1)", f"sweep.sampler={sampler}", "sweep.n_trials=2"]
    assert _main([*QUICK, *space]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xfer: error E159: sweep.sampler: {package} is not installed. Fix: pip")
    assert "pip install 'xfer-vision[sweep]'" in line
    typed = line.partition("list every value and type ")[2].split()
    assert _main([*QUICK, "optim.lr=0.1,1", *space[1:], *typed, "stages=[]"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", ["slots", pytest.param("basic", marks=pytest.mark.slow)])
def test_hydra_s_own_sweeper_plans_each_job(launcher: str, tmp_path: Path):
    given = ["stages=[]", "hydra/sweeper=basic", f"hydra/launcher={launcher}", "hydra.sweep.dir=b"]
    run = quick_sweep if launcher == "slots" else sweep
    done = run(tmp_path, "-m", "experiment=digits_sgd", "seed=3", *given)
    assert done.returncode == 0 and "error" not in done.stdout
    assert ("experiment   digits_sgd, seed 3" in done.stdout) == (launcher == "basic")
    assert ("job 0, finished; its output is in b/0/output.log" in done.stdout) == (
        launcher == "slots"
    )
    assert json.loads((tmp_path / "b/0/plan.json").read_text())["config"]["seed"] == 3
    assert not (tmp_path / "b/0/result.json").exists()


def test_a_failed_job_hides_nothing_and_the_same_command_runs_it_alone(tmp_path: Path):
    photos(tmp_path / "one")
    command = [
        *QUICK,
        *("data=folder", "data.root=one,two", "optim.lr=0.1,0.01", "sweep.dir=s", "stages=[fit]"),
        *("features=auto", "features.views=1"),
    ]
    done = quick_sweep(tmp_path, *command, *(["hydra.launcher.slots=2"] * (os.cpu_count() != 1)))
    assert done.returncode == 3
    assert "2 of 4 jobs finished, 2 failed" in done.stdout
    for number in (2, 3):
        assert re.search(rf"job {number}, exit 3: xfer: error E3\d\d: .*two", done.stdout)
        status = json.loads((tmp_path / f"s/{number}/status.json").read_text())
        assert (status["state"], status["exit"]) == ("failed", 3)
    # Two jobs at once on the same images: each split was computed by one of them, and not
    # necessarily by the same one, which `hit` of a job speaks of.
    results = [json.loads((tmp_path / f"s/{n}/result.json").read_text()) for n in (0, 1)]
    assert False in [result["features"]["hit"] for result in results]
    facts = json.loads((tmp_path / "s/sweep.json").read_text())
    assert (facts["jobs"], facts["objectives"][0]["metric"]) == (4, "val_acc")

    before = {n: (tmp_path / f"s/{n}/result.json").stat().st_mtime_ns for n in (0, 1)}
    photos(tmp_path / "two")
    done = quick_sweep(tmp_path, *command)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^job (\d+): data", done.stdout, re.M) == ["2", "3"]
    assert before == {n: (tmp_path / f"s/{n}/result.json").stat().st_mtime_ns for n in (0, 1)}


def cores_of(pid: int) -> set[int]:
    return os.sched_getaffinity(pid)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_slots_share_no_core_and_ctrl_c_leaves_no_orphan(tmp_path: Path):
    command = [*QUICK, "trainer.max_epochs=500", "seed=0,1,2", "sweep.dir=s"]
    folders = [tmp_path / "s" / name for name in ("0", "1")]
    with begun(tmp_path, *command, "hydra.launcher.slots=2") as process:
        until(lambda: all((f / "metrics.csv").exists() for f in folders), process)
        pids = [process_of(folder) for folder in folders]
        assert all(pids)
        page = tmp_path / "s" / "leaderboard.html"
        assert "at work: 0 of 3 jobs have ended" in page.read_text()
        first, second = (cores_of(pid) for pid in pids if pid)
        assert first and second and not first & second
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert [process_of(folder) for folder in folders] == [None, None]
    assert [state(folder) for folder in folders] == ["interrupted"] * 2
    assert not (tmp_path / "s" / "2").exists(), "no job begins after the signal"
    assert all((folder / "checkpoints" / "last.ckpt").exists() for folder in folders)
    assert 'id="live"' not in page.read_text() and "3 jobs: " in page.read_text()


RANDOM = [
    *QUICK,
    *("optim.lr=tag(log,interval(0.001,0.5))", "head=linear,mlp", "sweep.sampler=random"),
    *("trainer.max_epochs=6", "checkpoint.every_n_steps=5", "checkpoint.keep=1", WARM),
]


def here(typed: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A sweep whose coordinator is this process, which has its imports already."""
    code = _main(typed)
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.fixture
def typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_sweep_that_was_stopped_and_killed_ends_like_one_that_was_not(
    tmp_path: Path, typed_here: None, capsys: pytest.CaptureFixture[str]
):
    """A sample of each kind; under ``slow`` each kind alone, and ten kills of a sweep of twelve."""
    done = quick_sweep(tmp_path, *RANDOM, "sweep.n_trials=2", "sweep.dir=whole")
    assert done.returncode == 0, done.stdout
    command = [*RANDOM, "sweep.n_trials=2", "checkpoint.resume=auto"]
    folders = lambda: list(tmp_path.glob("outputs/multirun/*/*"))  # noqa: E731
    with quickly_begun(tmp_path, *command, SLOTS) as process:
        jobs = lambda: [f / n for f in folders() for n in "01"[: int(SLOTS[-1])]]  # noqa: E731
        try:
            until(lambda: all_at_work(jobs()), process)
            everyone = family(process.pid)
            strike([*everyone], signal.SIGTERM)
        finally:
            strike([*family(process.pid)], signal.SIGCONT)
        output, _ = process.communicate(timeout=600)
    assert len(everyone) >= 1 + 2 * len(jobs()), "a coordinator, and a worker for each job"
    assert process.returncode == 143, output
    assert_saved(jobs(), output)
    # Of the next call one job is killed, and then the call with the other job at work.
    with quickly_begun(tmp_path, *command) as killed:
        for number in "01":
            working = lambda n=number: [f / n for f in folders() if at_work(f / n)]  # noqa: E731
            until(working, killed)
            pid = process_of(working()[0])
            assert pid
            os.kill(pid if number == "0" else killed.pid, signal.SIGKILL)
        output, _ = killed.communicate()
        assert killed.returncode == -signal.SIGKILL and "job 0, exit 137: " in output, output
    until(lambda: process_of(folders()[0] / "1") is None)
    done = sweep(tmp_path, *command)
    assert done.returncode == 0, done.stdout
    assert "leaked" not in done.stdout, "a worker took its libraries apart"
    (folder,) = folders()
    assert ledger(folder) == ledger(tmp_path / "whole")
    code, output = here(command, capsys)
    assert code == 0 and "2 of 2 jobs finished already" in output


def test_a_plan_lists_the_jobs_and_starts_nothing(
    tmp_path: Path, typed_here: None, capsys: pytest.CaptureFixture[str]
):
    plan = [*QUICK, "stages=[]", "optim.lr=0.1,0.01", "seed=0,1", "features=auto"]
    _, lines = here(plan, capsys)
    assert re.findall(r"^job (\d): (.*)$", lines, re.M)[3] == ("3", "optim.lr=0.01 seed=1")
    assert "4 jobs" in lines and "Tflop" in lines and "1 set of" in lines
    assert "nothing was started" in lines
    assert not list(tmp_path.rglob("job.json"))


def test_a_finished_sweep_does_what_is_added_to_it_and_nothing_else(
    tmp_path: Path, typed_here: None, capsys: pytest.CaptureFixture[str]
):
    shared = [
        *(*QUICK[:3], "optim.lr=interval(0.05,0.1)", "sweep.dir=s"),
        *("sweep.sampler=random", "sweep.n_trials=1"),
    ]
    assert quick_sweep(tmp_path, *shared, "stages=[fit]").returncode == 0
    run, trained = tmp_path / "s/0", {}
    for name in ("metrics.csv", "checkpoints/best.ckpt"):
        trained[name] = (run / name).read_bytes()
    assert not scores(run)
    (tmp_path / "s/optuna.journal").unlink()
    done = quick_sweep(tmp_path, *shared, "stages=[fit,evaluate]")
    assert done.returncode == 0, done.stdout
    assert "job 0 is new to the study 'digits_sgd'" in done.stdout
    assert scores(run)["val"]["acc"] > 0.5
    assert trained == {name: (run / name).read_bytes() for name in trained}
    plan = [*shared, "stages=[]", "sweep.n_trials=3", "sweep.baseline=['optim.lr=1']"]
    code, said = here(plan, capsys)
    assert code == 0, said
    assert "1 of 3 jobs finished already\n2 jobs\n" in said
    assert "sweep.baseline marks no job: no job has optim.lr=1" in said
    assert _main([*shared, "stages=[fit,export]"]) == 5
    assert "type 'stages=[fit,evaluate,export]'" in capsys.readouterr().err
    assert _main([*shared, "stages=[fit]"]) == 0
    assert "1 of 1 job finished already" in capsys.readouterr().out


def scores(run: Path) -> dict:
    return json.loads((run / "result.json").read_text()).get("scores") or {}


@pytest.mark.slow
def test_a_kill_under_a_launcher_of_others_costs_its_job_alone(tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    given = ["experiment=digits_sgd", "stages=[fit]", "seed=0,1,2", "sweep.dir=s"]
    command = ["-m", *given, "hydra/launcher=submitit_local", "trainer.max_epochs=20"]
    folder = tmp_path / "s/1"
    with begun(tmp_path, *command) as process:
        until(lambda: at_work(folder), process)
        pid = process_of(folder)
        assert pid
        os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert [state(tmp_path / "s" / n) for n in "012"] == ["finished", "failed", "finished"]
    assert "job 1, exit 1: UncompletedJobError" in output and "leaderboard: " in output


NARROW = "{layers: [1, 1, 1, 1], channels: [4, 8, 16, 32], stem_type: ''}"
WIDE = "{layers: [1, 1, 1, 1], channels: [16, 32, 64, 128], stem_type: ''}"


def test_a_plan_counts_each_network_s_own_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])

    def outlook(args: str, *typed: str) -> tuple[int, float]:
        plan = [*QUICK, "stages=[]", "source=none", "seed=0,1", "trainer.max_epochs=20"]
        assert _main([*plan, f"++backbone.args={args}", *typed]) == 0
        passes, tera = re.findall(
            r"whole network: ([\d,]+) image passes, about (\S+) Tflop", capsys.readouterr().out
        )[0]
        return int(passes.replace(",", "")), float(tera)

    narrow, wide, both = outlook(NARROW), outlook(WIDE), outlook(f"{NARROW},{WIDE}")
    assert both[0] == 2 * narrow[0] == 2 * wide[0]
    assert wide[1] > 1.2 * narrow[1]
    assert both[1] == pytest.approx(narrow[1] + wide[1], rel=0.01)
    # Features are computed once for both seeds, with each network's own operations as well.
    kept = outlook(f"{NARROW},{WIDE}", "features=auto", "features.views=1")
    assert kept[0] == 2 * (717 + 179)
    assert kept[1] / both[1] == pytest.approx(kept[0] / both[0], rel=0.01)


@pytest.mark.slow
def test_a_batch_s_failure_is_told_once_and_is_the_exit_code_of_the_sweep(tmp_path: Path):
    photos(tmp_path / "one")
    given = ["data=folder", "data.root=nowhere,one", "stages=[fit]", "sweep.dir=s"]
    done = sweep(tmp_path, *QUICK, *given, "hydra/launcher=basic")
    assert done.returncode == 3, done.stdout
    told = re.findall(r"^job 0, exit 3: xfer: error E3\d\d: \S*nowhere", done.stdout, re.M)
    assert len(told) == 2, done.stdout  # when it happens, and at the end
    assert [state(tmp_path / "s" / n) for n in "01"] == ["failed", "finished"]


@pytest.mark.slow
def test_hydra_s_own_launcher_and_sweeper_still_do(tmp_path: Path):
    done = sweep(tmp_path, *QUICK, "seed=0,1", "hydra/launcher=basic", "sweep.dir=s")
    assert done.returncode == 0, done.stdout
    assert [state(tmp_path / "s" / n) for n in "01"] == ["finished"] * 2
    done = sweep(tmp_path, *QUICK, "seed=0,1", "hydra/sweeper=basic", WARM, "hydra.sweep.dir=b")
    assert done.returncode == 0, done.stdout
    assert [state(tmp_path / "b" / n) for n in "01"] == ["finished"] * 2


def see_results(folder: Path, written: dict[str, int]) -> None:
    """Note when each finished job's result was written, which must be so for ever."""
    for job in folder.glob("[0-9]*"):
        if state(job) == "finished":
            when = (job / "result.json").stat().st_mtime_ns
            assert written.setdefault(job.name, when) == when, f"job {job.name} was run again"


def table(folder: Path) -> list[dict[str, str]]:
    """``leaderboard.csv`` without clocks, and without whether features were found."""
    with (folder / "leaderboard.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows and {"rank", "job", "state", "val_acc"} <= rows[0].keys()
    return [{k: v for k, v in row.items() if k not in ("total_s", "features")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_twelve_jobs_and_ten_kills_make_the_same_ledger(sampler: str, tmp_path: Path):
    space = {
        "grid": ["optim.lr=0.3,0.1,0.03,0.01", "head=linear,dropout,mlp"],
    }.get(sampler, [*RANDOM[4:6], f"sweep.sampler={sampler}", "sweep.n_trials=12"])
    shared = [*QUICK, *space, "trainer.max_epochs=60", WARM, "hydra.launcher.slots=2"]
    if sampler != "tpe":
        assert sweep(tmp_path, *shared, "sweep.dir=whole").returncode == 0
    dice, strikes, folder = random.Random(0), 0, tmp_path / "s"
    written: dict[str, int] = {}
    while strikes < 10:
        with begun(tmp_path, *shared, "sweep.dir=s") as process:
            until(lambda: any(process_of(f) for f in folder.glob("[0-9]*")), process)
            time.sleep(dice.uniform(0, 4))
            jobs = [pid for f in folder.glob("[0-9]*") if (pid := process_of(f))]
            hit = 0
            for pid in dice.choice(([process.pid], jobs[:1], [process.pid, *jobs])):
                with suppress(ProcessLookupError):  # it may have just ended
                    os.kill(pid, signal.SIGKILL)
                    hit += 1
            strikes += hit > 0
            see_results(folder, written)
            if process.poll() is None and dice.random() < 0.5:
                process.kill()
        see_results(folder, written)
    until(lambda: not any(process_of(f) for f in folder.glob("[0-9]*")))
    see_results(folder, written)
    done = sweep(tmp_path, *shared, "sweep.dir=s")
    assert done.returncode == 0, done.stdout
    see_results(folder, written)
    assert len(written) == 12
    found = ledger(folder)
    assert sorted(found) == list(range(12))
    if sampler != "tpe":
        assert found == ledger(tmp_path / "whole")
        assert table(folder) == table(tmp_path / "whole")
    assert len({tuple(job["overrides"]) for job in found.values()}) == 12


@pytest.mark.slow
def test_accuracy_against_latency_has_a_pareto_front(tmp_path: Path):
    photos(tmp_path / "photos", 20)
    done = sweep(
        tmp_path,
        *(*QUICK, "data=folder", "data.root=photos", "source=none", "freeze=none", "export=onnx"),
        *("backbone=resnet18,squeezenet1_0", "stages=[fit,evaluate,export,benchmark]"),
        *("sweep.sampler=nsga2", "sweep.n_trials=3", "sweep.dir=s", WARM),
        "sweep.objectives={val_acc: maximize, benchmark.model.onnx.ms: minimize}",
    )
    assert done.returncode == 0, done.stdout
    found = {}
    for number in range(3):
        rows = json.loads((tmp_path / f"s/{number}/benchmark.json").read_text())
        found[number] = next(row["ms"] for row in rows if row["name"] == "model.onnx")
    table = list(csv.DictReader((tmp_path / "s/leaderboard.csv").read_text().splitlines()))
    shown = {int(row["job"]): float(row["benchmark.model.onnx.ms"]) for row in table}
    assert shown == pytest.approx(found)
    assert {row["backbone"] for row in table} == {"resnet18", "squeezenet1_0"}
    quickest = min(found, key=lambda number: found[number])
    first = {int(row["job"]) for row in table if row["rank"] == "1"}
    best = max(float(row["val_acc"]) for row in table)
    assert quickest in first and any(float(r["val_acc"]) == best for r in table if r["rank"] == "1")
    assert "<h2>Pareto front</h2>" in (tmp_path / "s/leaderboard.html").read_text()
