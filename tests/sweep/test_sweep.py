"""The search space, Optuna's trials, the ledger and the slots, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.config_loader import ConfigLoader

from hydra_plugins.xfer_sweep._space import parse, read
from xfer.config.sweep_spec import SweepSpec
from xfer.core.errors import ResumeError, SweepError
from xfer.core.files import file_sha256
from xfer.core.run_folder import is_live, lock
from xfer.sweep.executors.runners import LiveTable
from xfer.sweep.executors.slots import divide
from xfer.sweep.leaderboard.ranking import _values as of_the_leaderboard
from xfer.sweep.ledger import Ledger, SweepFacts, find, hold
from xfer.sweep.objective import Objective, objectives, values
from xfer.sweep.requirements import flow_text
from xfer.sweep.space import Choices, Interval, Job, grid, is_finite, probes, unmatched
from xfer.sweep.study import Study, population

NO_LOADER: ConfigLoader = None  # type: ignore[assignment]
RATE = Interval("optim.lr", 1e-4, 0.1, log=True)
HEAD = Choices("head", ("linear", "mlp"), ("linear", "mlp"))
ACC = Objective("val_acc", "maximize")


def space_of(*typed: str, **params: str):
    return parse({k.replace("__", "."): v for k, v in params.items()}, typed, NO_LOADER)


def test_the_grammar_of_hydra_becomes_choices_and_intervals():
    space, fixed = space_of(
        "++optim.lr=tag(log,interval(0.0001,0.1))",
        "head=linear,mlp",
        "data.batch_size=int(interval(16,64))",
        "trainer.max_epochs=range(1,8,3)",
        "++augment.scale=[0.5,1],[0.8,1]",
        "++seed=3",
    )
    assert fixed == ("seed=3",)
    assert space == (
        RATE,
        HEAD,
        Interval("data.batch_size", 16, 64, whole=True),
        Choices("trainer.max_epochs", ("1", "4", "7"), (1, 4, 7), ordered=True),
        Choices("augment.scale", ("[0.5,1]", "[0.8,1]"), ([0.5, 1], [0.8, 1])),
    )


def test_what_is_typed_wins_over_a_file():
    space, fixed = space_of("head=linear,mlp", "seed=7", seed="0,1,2", optim__lr="0.1", head="keep")
    assert space == (Choices("optim.lr", ("0.1",), (0.1,)), HEAD)
    assert fixed == ("seed=7",)


@pytest.mark.parametrize("text", ["optim.lr=interval(1)", "head=choice(a", "seed=shuffle(1,2)"])
def test_a_space_that_cannot_be_is_refused(text: str):
    with pytest.raises(SweepError):
        space_of(text)


def test_a_grid_has_every_combination_and_its_probes_every_value():
    seeds = Choices("seed", ("0", "1", "2"), (0, 1, 2))
    jobs = grid([HEAD, seeds])
    assert [job.number for job in jobs] == list(range(6))
    assert jobs[4] == Job(4, ("head=mlp", "seed=1"), {"head": "mlp", "seed": 1})
    seen = {text for row in probes([HEAD, seeds, RATE]) for text in row}
    assert seen == {
        *("head=linear", "head=mlp", "seed=0", "seed=1", "seed=2"),
        *("optim.lr=0.0001", "optim.lr=0.1"),
    }
    with pytest.raises(SweepError, match="no grid of values"):
        grid([RATE])


def study(folder: Path, sampler: str, space=(RATE, HEAD), mark="a", **options) -> Study:
    sweep = SweepSpec(sampler=sampler, n_trials=12, **options)  # type: ignore[arg-type]
    kinds = [Objective(m, d) for m, d in sweep.objectives.items()] or [ACC]
    made = Study(sweep, space, kinds, str(folder / "optuna.journal"), "digits")
    made.open(mark, folder)
    return made


def disconnect(made: Study) -> None:
    """From a database, which a process that ends does anyway."""
    made.study._storage.remove_session()
    made.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def toy(job: Job) -> float:
    return -abs(job.parameters["optim.lr"] - 0.01) + (job.parameters.get("head") == "mlp")


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "gp", "nsga2"])
def test_a_sampler_proposes_from_the_space_and_a_new_process_goes_on(sampler: str, tmp_path: Path):
    space = (RATE, Interval("data.batch_size", 16, 64, whole=True), HEAD)
    # 10 random ones come first with two of the samplers.
    for number in range(12):
        again = study(tmp_path, sampler, space)  # as after a kill
        job = again.ask(number)
        assert job.number == number
        assert 1e-4 <= job.parameters["optim.lr"] <= 0.1
        assert job.parameters["data.batch_size"] in range(16, 65)
        assert job.parameters["head"] in HEAD.texts
        again.tell(job, [toy(job)])
    done = study(tmp_path, sampler, space).study
    assert [t.state.name for t in done.trials] == ["COMPLETE"] * 12
    assert len({t.params["optim.lr"] for t in done.trials}) > 9


def test_several_objectives_are_kept_apart(tmp_path: Path):
    wanted = {"val_acc": "maximize", "params.total": "minimize"}
    ours = study(tmp_path, "nsga2", objectives=wanted)
    for number in range(4):
        ours.tell(ours.ask(number), [0.5 + number / 10, 100 * number])
    assert len(ours.study.best_trials) == 4


def test_random_draws_do_not_depend_on_interruptions(tmp_path: Path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    ours = study(tmp_path / "whole", "random")
    whole = [ours.ask(number) for number in range(5)]
    killed = [study(tmp_path / "killed", "random").ask(number) for number in range(5)]
    assert whole == killed
    assert len({job.overrides for job in whole}) == 5


def test_a_trial_without_a_job_is_taken_up(tmp_path: Path):
    ours = study(tmp_path, "random")
    whole = study(tmp_path, "random").ask(0)
    # Killed after Optuna gave the values, before the job's number was noted.
    ours.study.ask({})
    taken = study(tmp_path, "random").ask(1)
    assert taken.number == 1 and "optim.lr" in taken.parameters
    trials = study(tmp_path, "random").study.trials
    assert [trial.state.name for trial in trials] == ["RUNNING", "FAIL", "RUNNING"]
    assert study(tmp_path, "random").begun() == [whole, taken]


def test_a_job_that_failed_and_later_finished_counts_once(tmp_path: Path):
    ours = study(tmp_path, "tpe")
    job = ours.ask(0)
    ours.tell(job, None)
    assert ours.begun() == []
    ours.tell(job, [0.9])
    ours.tell(job, [0.9])
    assert [t.state.name for t in ours.study.trials] == ["FAIL", "COMPLETE"]
    assert ours.study.best_value == 0.9 and ours.study.best_trial.user_attrs["job"] == 0


def test_a_storage_of_another_study_is_refused(tmp_path: Path):
    study(tmp_path, "tpe")
    with pytest.raises(SweepError, match="belongs to another sweep"):
        study(tmp_path, "tpe", mark="b")


def test_nsga2_leaves_its_random_generation_and_makes_no_job_twice(tmp_path: Path):
    assert [population(n) for n in (3, 8, 24, 200, 999)] == [4, 4, 6, 50, 50]
    space = (RATE, Interval("data.batch_size", 16, 64, whole=True), HEAD)
    ours = study(tmp_path, "nsga2", space)
    for number in range(12):
        job = ours.ask(number)
        ours.tell(job, [toy(job)])
    trials = ours.study.trials
    born = [t.system_attrs["NSGAIISampler:generation"] for t in trials]
    assert sorted(born) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({tuple(t.params.values()) for t in trials}) == 12


def test_cmaes_refuses_choices_alone_and_says_what_it_leaves_to_chance(tmp_path: Path):
    some = Choices("optim.lr", ("0.1", "0.01"), (0.1, 0.01))
    one = Choices("seed", ("3",), (3,), ordered=True)
    with pytest.raises(SweepError, match=r"E176: .*only choices.*sweep\.sampler=tpe"):
        study(tmp_path, "cmaes", (HEAD, some, one))
    steps = Choices("trainer.max_epochs", ("1", "2", "3"), (1, 2, 3), ordered=True)
    (said,) = study(tmp_path, "cmaes", (HEAD, steps, some)).remarks()
    assert said.endswith("no range: head, optim.lr")
    assert study(tmp_path, "cmaes", (RATE, steps)).remarks() == []
    assert study(tmp_path, "tpe", (HEAD, some)).remarks() == []


def test_a_study_takes_up_jobs_that_it_does_not_know(tmp_path: Path):
    space = (RATE, HEAD, Choices("seed", ("0", "1", "2"), (0, 1, 2), ordered=True))
    first = study(tmp_path, "random", space, pruner="median")
    jobs = [first.ask(number) for number in range(3)]
    (tmp_path / "optuna.journal").unlink()
    anew = study(tmp_path, "random", space, pruner="median")
    known = [anew.adopt(job) for job in jobs]
    assert known == jobs == anew.begun()
    anew.tell(known[0], [0.5])
    anew.tell(known[1], None)
    anew.tell(known[2], [0.25], pruned=True)
    trials = anew.study.trials
    assert [(t.state.name, t.values) for t in trials] == [
        *(("COMPLETE", [0.5]), ("FAIL", None), ("PRUNED", None)),
    ]
    assert [t.params["optim.lr"] for t in trials] == [job.parameters["optim.lr"] for job in jobs]
    assert [anew.adopt(job) for job in jobs] == jobs and len(anew.study.trials) == 3
    with pytest.raises(SweepError, match="E174: head: job 7 has none of the values"):
        anew.adopt(Job(7, ("optim.lr=0.1", "seed=1"), {"optim.lr": 0.1, "seed": 1}))


def test_a_storage_that_fails_later_is_told_as_that(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/study.db"
    ours = Study(SweepSpec(sampler="random", n_trials=2), (RATE,), [ACC], url, "digits")
    ours.open("a", tmp_path)
    job = ours.ask(0)
    disconnect(ours)
    (tmp_path / "study.db").unlink()
    said = r"E160: sweep.storage: sqlite.* cannot be used \(.*no such table.*same command resumes"
    for call in (lambda: ours.ask(1), ours.begun, lambda: ours.tell(job, [1.0])):
        with pytest.raises(SweepError, match=said):
            call()
    disconnect(ours)


def test_only_finite_numbers_vary():
    for text in ("inf,0.1", "nan,1", "[1,.inf],[1,2]", "interval(0.1,inf)", "{a: -inf},{a: 1}"):
        (found,), _ = space_of(f"optim.lr={text}")
        assert is_finite(found) == (text == "[1,.inf],[1,2]")  # that is a text in Hydra's grammar
    assert is_finite(RATE) and is_finite(HEAD)


@pytest.mark.parametrize(
    "text", ["[1e-3,2]", "010", "yes", "1e-3", "null", "'1'", "{a: 1e-5}", "a b"]
)
def test_a_baseline_is_read_as_the_parameters_of_jobs_are(text: str):
    (found,), _ = space_of(x=text)
    wanted = read([f"x={text}"], NO_LOADER)
    assert unmatched([found], wanted) == "" and wanted["x"] == found.values[0]
    # And the leaderboard finds it again in sweep.json.
    assert of_the_leaderboard([f"x={flow_text(wanted['x'])}"]) == wanted


def test_a_baseline_that_no_job_has_says_why():
    seeds = Choices("seed", ("0", "1"), (0, 1))
    space = (RATE, HEAD, seeds)
    assert unmatched(space, {"optim.lr": 0.01, "head": "mlp"}) == ""
    assert "does not say head" in unmatched(space, {"optim.lr": 0.01})
    assert "no job has head=keep" in unmatched(space, {"optim.lr": 0.01, "head": "keep"})
    assert "no job has optim.lr=1" in unmatched(space, {"optim.lr": 1, "head": "mlp"})
    for text, number in (("head=a,b", 175), ("head=(", 165)):
        with pytest.raises(SweepError, match=f"E{number}: sweep.baseline"):
            read([text], NO_LOADER)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("other")])
def test_a_finished_job_whose_files_are_gone_or_changed_is_told(tmp_path: Path, spoil):
    folder = Ledger(tmp_path).prepare(JOB)
    (folder / "metrics.csv").write_text("epoch\n")
    digest = file_sha256(folder / "metrics.csv")
    status(folder, state="finished", exit=0, files={"metrics.csv": digest})
    Ledger(tmp_path).check(1)
    spoil(folder / "metrics.csv")
    with pytest.raises(ResumeError, match=r"E521: .*since then metrics\.csv"):
        Ledger(tmp_path).check(1)


@pytest.mark.parametrize("text", ["[]", '{"job": "1"}', '{"job": -1, "overrides": 1}', "[" * 3000])
def test_what_no_sweep_writes_is_no_job(tmp_path: Path, text: str):
    folder = Ledger(tmp_path).prepare(JOB)
    for name in ("job.json", "status.json", "plan.json"):
        (folder / name).write_text(text)
    ledger = Ledger(tmp_path)
    assert list(ledger.jobs()) == [] and ledger.state(1) == "missing" and ledger.code(1) == 0
    ledger.prepare(JOB)


def test_a_job_is_finished_when_it_has_done_all_stages(tmp_path: Path):
    folder = Ledger(tmp_path).prepare(JOB)
    plan = {"fingerprint": "a", "config": {"stages": ["fit", "evaluate"]}}
    (folder / "plan.json").write_text(json.dumps(plan))
    status(folder, state="finished", exit=0)
    for stages in ((), ("fit",), ("evaluate", "fit")):
        ledger = Ledger(tmp_path, stages)
        ledger.check(1)
        assert ledger.state(1) == "finished" and ledger.finished() == {1}
    with pytest.raises(ResumeError, match=r"E513: .*stages=\[fit,evaluate,export\]'"):
        Ledger(tmp_path, ("fit", "export")).check(1)
    more = Ledger(tmp_path, ("fit", "evaluate", "export"))
    more.check(1)
    assert more.state(1) == "interrupted" and not more.finished()
    (folder / "metrics.csv").write_text("epoch\n")
    more.prepare(JOB)
    # It goes on where it stands.
    assert more.state(1) == "running" and (folder / "metrics.csv").exists()


def test_any_storage_url_of_optuna_will_do(tmp_path: Path):
    sweep = SweepSpec(sampler="random", n_trials=2)
    url = f"sqlite:///{tmp_path}/study.db"
    for number in range(2):
        ours = Study(sweep, (RATE,), [ACC], url, "digits")
        ours.open("a", tmp_path)
        ours.tell(ours.ask(number), [0.5])
        assert len(ours.study.trials) == number + 1
        disconnect(ours)
    with pytest.raises(SweepError, match="cannot be used"):
        Study(sweep, (RATE,), [ACC], "nosuch://x", "digits").open("a", tmp_path)


def test_a_storage_that_others_reach_serves_one_folder(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/study.db"
    sweep = SweepSpec(sampler="random", n_trials=2, storage=url)
    ours = [Study(sweep, (RATE,), [ACC], url, "digits") for _ in range(2)]
    for _ in range(2):
        ours[0].open("a", tmp_path / "first")
        disconnect(ours[0])
    with pytest.raises(
        SweepError, match=r"E169: .*belongs to the sweep .*first.*sweep.dir=.*first"
    ):
        ours[1].open("a", tmp_path / "second")
    disconnect(ours[1])


@pytest.mark.parametrize(("count", "share"), [(0, 1), (-1, 1), (None, 0)])
def test_slots_are_counted_from_one(count: int | None, share: int):
    with pytest.raises(SweepError, match=r"E171: hydra\.launcher"):
        divide(count, share, "cpu")


def test_a_pruner_needs_what_every_epoch_logs():
    with pytest.raises(SweepError, match=r"E170: sweep\.pruner"):
        SweepSpec(
            sampler="tpe", n_trials=3, pruner="median", objectives={"params.trainable": "minimize"}
        )


@pytest.mark.parametrize(
    "options",
    [
        {"n_trials": 3},
        {"sampler": "tpe"},
        {"pruner": "median"},
        {"storage": "sqlite:///x"},
        {
            "sampler": "cmaes",
            "n_trials": 3,
            "objectives": {"val_acc": "maximize", "params.total": "minimize"},
        },
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict):
    with pytest.raises(SweepError):
        SweepSpec(**options)


def test_an_objective_that_is_never_logged_is_refused():
    fit = ("fit", "evaluate")
    assert objectives({}, ("val_loss", "min"), fit) == (Objective("val_loss", "minimize"),)
    assert objectives({"params.total": "minimize"}, ("val_acc", "max"), fit)
    acc = ("val_acc", "max")
    assert objectives({}, acc, ("evaluate",), True) == (Objective("scores.val.acc", "maximize"),)
    assert objectives({}, acc, ("predict",)) == ()
    for asked, monitor, stages in (
        ({"val_accuracy": "maximize"}, acc, fit),
        ({}, ("val_accuracy", "max"), fit),
        ({}, acc, ("predict",)),
    ):
        with pytest.raises(SweepError, match="never logged"):
            objectives(asked, monitor, stages, True)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="never logged"):
        objectives({"scores.val.acc": "maximize"}, ("val_acc", "max"), ("fit",))


def test_objectives_are_those_of_the_best_epoch(tmp_path: Path):
    facts = {"best": {"metric": "val_acc", "value": 0.75, "epoch": 2}, "params": {"total": 9}}
    (tmp_path / "result.json").write_text(json.dumps(facts))
    (tmp_path / "metrics.csv").write_text("epoch,val_loss\n1,0.1\n2,0.5\n")
    names = ("val_acc", "val_loss", "params.total", "timing.fit_s")
    wanted = [Objective(name, "maximize") for name in names]
    assert values(tmp_path, wanted[:3]) == [0.75, 0.5, 9.0]
    assert values(tmp_path, wanted) is None


def test_what_the_benchmark_measured_of_a_file_is_an_objective(tmp_path: Path):
    stages, acc = ("fit", "export", "benchmark"), ("val_acc", "max")
    asked = {"val_acc": "maximize", "benchmark.model.onnx.ms": "minimize"}
    exported = ("model.onnx", "model.safetensors")
    both = objectives(asked, acc, stages, True, exported)  # type: ignore[arg-type]
    assert [(o.metric, o.is_time) for o in both] == [(name, name != "val_acc") for name in asked]
    for name, files, said in (
        ("benchmark.model.pt2.ms", exported, "did you mean 'benchmark.model.onnx.ms'"),
        ("benchmark.model.safetensors.ms", exported, "never logged"),  # nothing runs that file
        ("benchmark.model.onnx.ms", (), "type export=onnx, and add export,benchmark to stages"),
        ("benchmark.torch.ms", (), "type export=onnx"),  # no file, so that nothing is measured
    ):
        with pytest.raises(SweepError, match=said):
            objectives({name: "minimize"}, acc, stages, True, files)
    with pytest.raises(SweepError, match="never logged"):
        objectives(asked, acc, ("fit", "export"), True, exported)  # type: ignore[arg-type]

    (tmp_path / "result.json").write_text("{}")
    names = ("benchmark.torch.ms", "benchmark.model.onnx.ms", "benchmark.model.onnx.bytes")
    wanted = [Objective(name, "minimize") for name in names]
    assert values(tmp_path, wanted) is None
    rows = [
        {"name": "torch, eager", "bytes": 9, "ms": 3.5},
        {"name": "model.onnx", "bytes": 7, "ms": 1.5},
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps(rows))
    assert values(tmp_path, wanted) == [3.5, 1.5, 7]
    assert values(tmp_path, [Objective("benchmark.model.pt2.ms")]) is None


def test_the_table_is_redrawn_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "metrics.csv").write_text("epoch\n1\n2\n")
    first_job, second_job = (
        Job(n, (f"head={head}",), {}) for n, head in ((3, "linear"), (7, "mlp"))
    )
    table = LiveTable(shown=True)
    table.draw({1: (second_job, tmp_path), 0: (first_job, tmp_path / "none")})
    table.clear()
    first, second, end = capsys.readouterr().out.split("\n")
    assert first.startswith("  slot 0  job 3  epoch 0") and first.endswith("head=linear")
    assert second.startswith("  slot 1  job 7  epoch 2")
    assert end == "\x1b[2A\x1b[J"
    LiveTable(shown=False).draw({0: (first_job, tmp_path)})
    assert capsys.readouterr().out == ""


def test_slots_share_no_core_and_refuse_what_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("xfer.sweep.executors.slots.usable_cores", lambda: [0, 1, 4, 5, 6])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    slots = divide(2, 1, "auto")
    assert [slot.cores for slot in slots] == [(0, 1), (4, 5, 6)]
    assert [slot.environment()["OMP_NUM_THREADS"] for slot in slots] == ["2", "3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert [slot.threads for slot in slots] == [1, 1]
    assert len(divide(None, 1, "auto")) == 1
    with pytest.raises(SweepError, match="6 slots need as many cores, there are 5"):
        divide(6, 1, "auto")


def test_slots_take_turns_on_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("xfer.sweep.executors.slots.usable_cores", lambda: list(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    slots = divide(None, 2, "auto")
    assert [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "2", "3", "3"]
    assert sorted(core for slot in slots for core in slot.cores) == list(range(8))
    assert [slot.gpu for slot in divide(3, 1, "cpu")] == [None] * 3
    with pytest.raises(SweepError, match="room for 2: 2 GPUs with 1 job each"):
        divide(3, 1, "auto")
    with pytest.raises(SweepError, match="a slot has one GPU"):
        divide(None, 1, "auto", devices=2)


JOB = Job(1, ("optim.lr=0.1",), {"optim.lr": 0.1})


def status(folder: Path, **facts: object) -> None:
    (folder / "status.json").write_text(json.dumps(facts))


def test_a_job_that_can_go_on_keeps_its_folder_and_another_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ledger = Ledger(tmp_path)
    folder = ledger.prepare(JOB)
    (folder / "output.log").write_text("said\n")
    (folder / "metrics.csv").write_text("epoch\n")
    assert ledger.prepare(JOB) == folder and not (folder / "metrics.csv").exists()
    (folder / "metrics.csv").write_text("epoch\n")
    (folder / "plan.json").write_text('{"fingerprint": "a"}')
    ledger.prepare(JOB)
    assert (folder / "metrics.csv").exists()
    status(folder, state="failed", exit=ResumeError.exit)
    held = (folder / ".lock").stat().st_ino

    def emptied(path: Path) -> None:
        assert is_live(folder), "a process of an earlier sweep may begin here"
        path.unlink()

    monkeypatch.setattr("xfer.sweep.ledger.remove", emptied)
    ledger.prepare(JOB)
    assert {p.name for p in folder.iterdir()} == {".lock", "job.json", "output.log"}
    assert (folder / ".lock").stat().st_ino == held and not is_live(folder)
    facts = json.loads((folder / "job.json").read_text())
    assert facts == {"job": 1, "overrides": ["optim.lr=0.1"], "parameters": {"optim.lr": 0.1}}
    assert list(ledger.jobs()) == [JOB]


def test_a_job_in_which_a_process_has_just_begun_waits_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ledger, waiting = Ledger(tmp_path), [JOB]
    with monkeypatch.context() as asked, lock(ledger.prepare(JOB)):
        asked.setattr("xfer.sweep.ledger.is_live", lambda folder: False)
        assert ledger.take(waiting) is None and waiting == [JOB]
    assert ledger.take(waiting) == JOB and not waiting


def test_the_status_is_true_whatever_became_of_a_job(tmp_path: Path):
    ledger = Ledger(tmp_path)
    folder = ledger.prepare(JOB)
    (folder / "output.log").write_text("xfer: error E401: a: goes on... Fix: bring it\n")
    assert ledger.settle(1, 4) == "xfer: error E401: a: goes on... Fix: bring it"
    assert json.loads((folder / "status.json").read_text())["message"] == "a: goes on..."
    status(folder, state="running")
    (folder / "output.log").write_text("xfer: error E401: a: is gone. Fix: bring it\nlast\n")
    line = "xfer: error E401: a: is gone. Fix: bring it"
    assert ledger.settle(1, 4) == line
    found = json.loads((folder / "status.json").read_text())
    assert (found["state"], found["code"], found["exit"]) == ("failed", 401, 4)
    assert (found["message"], found["remedy"]) == ("a: is gone", "bring it")
    status(folder, state="running")
    (folder / "output.log").write_text("")
    assert "killed by signal 9" in ledger.settle(1, 137)
    assert ledger.state(1) == "failed"
    status(folder, state="running")
    ledger.settle(1, 143)
    assert ledger.state(1) == "interrupted"
    # SIGUSR1 and SIGUSR2 ask a job to stop as well, also one that does not listen yet.
    for number in (10, 12):
        status(folder, state="running")
        ledger.settle(1, 128 + number)
        assert (ledger.state(1), ledger.code(1)) == ("interrupted", 143)
    status(folder, state="finished")
    assert ledger.settle(1, 137) == "" and ledger.state(1) == "finished"


def test_a_further_attempt_does_not_tell_what_the_one_before_it_ended_with(tmp_path: Path):
    ledger = Ledger(tmp_path)
    folder = ledger.prepare(JOB)
    (folder / "plan.json").write_text('{"fingerprint": "a"}')
    (folder / "output.log").write_text("xfer: error E301: a: is gone. Fix: bring it\n")
    status(folder, state="failed", exit=8, code=803, message="memory", remedy="take less")
    ledger.prepare(JOB)
    assert ledger.state(1) == "running"
    assert "killed by signal 9" in ledger.settle(1, 137) and ledger.code(1) == 137


def test_the_sweep_to_go_on_with_is_found_by_what_it_is(tmp_path: Path):
    for name, mark in (("2026-01-01", "a"), ("2026-01-02", "a"), ("2026-01-03", "b")):
        (tmp_path / name).mkdir()
        Ledger(tmp_path / name).open(SweepFacts("digits", "c", (ACC,), (), 3, 1, mark))
    assert find(None, True, tmp_path, "a") == tmp_path / "2026-01-02"
    assert find(None, False, tmp_path, "a") is None
    with hold(tmp_path / "2026-01-02"):
        assert find(None, True, tmp_path, "a") == tmp_path / "2026-01-01"
        with pytest.raises(ResumeError, match="another sweep works here"):
            hold(tmp_path / "2026-01-02")
    with pytest.raises(ResumeError, match="holds another sweep"):
        find(str(tmp_path / "2026-01-03"), False, tmp_path, "a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ResumeError, match="holds files but no sweep"):
        find(str(tmp_path / "other"), False, tmp_path, "a")
    assert find(str(tmp_path / "2026-01-03"), False, tmp_path, "b") == tmp_path / "2026-01-03"


def test_another_number_of_threads_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for threads in (2, 1):
        Ledger(tmp_path).open(SweepFacts("digits", "c", (ACC,), (), 3, threads, "a"))
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["objectives"] == [{"metric": "val_acc", "direction": "maximize"}]
    assert (facts["format"], facts["jobs"], facts["baseline"]) == (1, 3, None)
    assert "threads of a job was 2 and is now 1:" in caplog.text
    Ledger(tmp_path).open(SweepFacts("digits", "c", (ACC,), (), 3, None, "a"))
    assert "was 1 and is now left to torch:" in caplog.text
