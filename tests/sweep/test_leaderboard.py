"""The leaderboard of a sweep: real jobs and handmade ones, numbers computed in other ways."""

from __future__ import annotations

import csv
import html
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from scipy.stats import binomtest

import xfer
from xfer.core.errors import ConfigError
from xfer.evaluation.statistics import mcnemar
from xfer.sweep.leaderboard import write
from xfer.sweep.leaderboard.ranking import baseline, groups
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective

BASIC = ("hydra/sweeper=basic", "hydra/launcher=basic")
SPACE = list(itertools.product((0.1, 0.01), (0, 1)))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """Four short runs of the digits, one after the other, with what a sweep writes beside them."""
    here = tmp_path_factory.mktemp("sweep")
    command = "-m experiment=digits_sgd optim.lr=0.1,0.01 seed=0,1 trainer.max_epochs=1"
    # Hydra's own sweeper and launcher run the jobs in one process, which is quicker.
    run = warm.start(here, *command.split(), "stages=[fit,evaluate]", *BASIC)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    (folder,) = (here / "outputs" / "multirun" / "digits_sgd").iterdir()
    for number, (lr, seed) in enumerate(SPACE):
        asked = {"optim.lr": lr, "seed": seed}
        texts = [f"{key}={value}" for key, value in asked.items()]
        facts(folder / str(number) / "job.json", job=number, overrides=texts, parameters=asked)
    head(folder, baseline=["optim.lr=0.1"], jobs=4, experiment="digits_sgd")
    return folder


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(swept, tmp_path / "sweep"))


def facts(path: Path, **known) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known))


def head(folder: Path, *metrics: str, **known) -> None:
    """``sweep.json``; a metric with a minus in front is minimised."""
    objectives = [
        {
            "metric": metric.lstrip("-"),
            "direction": "minimize" if metric.startswith("-") else "maximize",
        }
        for metric in metrics or ("val_acc",)
    ]
    whole = {"experiment": "hand", "command": "python -m xfer -m", "objectives": objectives}
    facts(folder / "sweep.json", **{"format": 1, "baseline": None, "jobs": None, **whole, **known})


def job(folder: Path, number: int, value: float | None, state: str = "finished", **parameters):
    """A handmade job whose monitored val_acc on 100 images is ``value``."""
    own = folder / str(number)
    texts = [f"{key}={value}" for key, value in parameters.items()]
    facts(own / "job.json", job=number, overrides=texts, parameters=parameters)
    facts(own / "status.json", state=state, code=None, message=None)
    if value is not None:
        best = {"metric": "val_acc", "value": value, "epoch": 2, "checkpoint": "checkpoints/b.ckpt"}
        scores = {"val": {"n": 100, "acc": value}}
        command = f"python -m xfer n={number}"
        facts(own / "result.json", best=best, scores=scores, command=command, params={"total": 9})
    return own


def answers(run: Path, predicted: dict[str, str], label: str = "cat") -> None:
    rows = [f"{path},{label},{answer},1.0" for path, answer in predicted.items()]
    (run / "predictions_val.csv").write_text(
        "\n".join(["path,label,prediction,confidence", *rows, ""])
    )


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def board(folder: Path) -> tuple[list[dict[str, str]], str]:
    """The rows of the CSV, and the text of the page, which the HTML file must hold as well."""
    write(folder)
    text = (folder / "leaderboard.md").read_text()
    return table(folder), text.replace("\\", "")


def test_a_real_sweep_is_ranked_by_what_its_runs_measured(swept: Path) -> None:
    rows, text = board(swept)
    results = [json.loads((swept / str(n) / "result.json").read_text()) for n in range(4)]
    values = [result["best"]["value"] for result in results]
    assert [float(row["val_acc"]) for row in rows] == sorted(values, reverse=True)
    for row in rows:
        result = results[int(row["job"])]
        assert [float(row[f"val_acc_{end}"]) for end in ("low", "high")] == pytest.approx(
            result["scores"]["val"]["acc_ci95"], abs=1e-12
        )
        assert row["images"] == "179" and row["epoch"] == "1" and row["state"] == "finished"
        assert int(row["params_total"]) == result["params"]["total"]
        assert int(row["params_trainable"]) == result["params"]["trainable"]
        assert float(row["total_s"]) == result["timing"]["total_s"]
    best = results[int(rows[0]["job"])]
    assert f"optim.lr={rows[0]['optim.lr']} " in best["command"]
    assert str(swept / rows[0]["job"] / "checkpoints" / "best.ckpt") in text
    assert "best of 4 jobs" in text and "179 val images" in text


def test_the_command_on_the_page_runs_the_best_job_again(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, text = board(swept)
    (command,) = re.findall(r"^    python -m xfer (.*)$", text, re.M)
    monkeypatch.chdir(tmp_path)
    result = xfer.run(None, shlex.split(command)).facts
    assert result["best"]["value"] == float(rows[0]["val_acc"])


def test_seeds_have_the_mean_and_deviation_that_numpy_computes(swept: Path) -> None:
    rows, text = board(swept)
    for lr in ("0.1", "0.01"):
        values = [float(row["val_acc"]) for row in rows if row["optim.lr"] == lr]
        wanted = f"| {lr} | 2 | {np.mean(values):.4f} | {np.std(values, ddof=1):.4f} |"
        assert wanted in text


def test_the_first_two_are_tested_on_their_real_answers(swept: Path) -> None:
    rows, text = board(swept)
    right = []
    for row in rows[:2]:
        with (swept / row["job"] / "predictions_val.csv").open() as stream:
            right.append([r["label"] == r["prediction"] for r in csv.DictReader(stream)])
    one, other = (np.array(hits) for hits in right)
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    p = binomtest(first, first + second).pvalue
    assert f"{first} were right in job {rows[0]['job']} alone and {second} in job" in text
    assert f"p = {p:.2g}." in text


def test_the_baseline_is_marked_with_each_of_its_seeds(swept: Path) -> None:
    rows, text = board(swept)
    assert {row["optim.lr"] for row in rows if row["baseline"] == "yes"} == {"0.1"}
    assert text.count("(baseline)") == 2


def test_without_a_named_baseline_the_experiments_own_values_are_one(sweep: Path) -> None:
    head(sweep, jobs=4, experiment="digits_sgd")
    assert not any(row["baseline"] for row in board(sweep)[0])
    xfer.run(None, ["stages=[leaderboard]", f"sweep.dir={sweep}"])
    # digits_sgd has optim.lr=0.1; trainer.max_epochs was given to all jobs.
    assert {row["optim.lr"] for row in table(sweep) if row["baseline"] == "yes"} == {"0.1"}
    assert len([row for row in table(sweep) if row["baseline"] == "yes"]) == 2


def test_the_page_needs_nothing_else_and_says_what_the_text_says(swept: Path) -> None:
    _, text = board(swept)
    page = (swept / "leaderboard.html").read_text()
    assert "default-src 'none'" in page and "<svg viewBox" in page
    # Nothing but the run cards of the jobs, which lie below the page.
    assert not re.search(r"""(src|href)=["'](?!data:|\d+/report\.html)""", page)
    for line in re.findall(r"^- (.{20,})$", text, re.M):
        assert line.partition(": ")[2] in html.unescape(page).replace("\xa0", " ")


def test_the_stage_imports_no_torch(swept: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from xfer.__main__ import _main; "
        f"code = _main(['stages=[leaderboard]', 'sweep.dir={swept}']); "
        "sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert f"leaderboard: {swept / 'leaderboard.html'}" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_no_job_is_hidden_whatever_became_of_it(tmp_path: Path) -> None:
    head(tmp_path, jobs=8)
    job(tmp_path, 0, 0.5, lr=1)
    job(tmp_path, 1, 0.6, lr=2)
    facts(job(tmp_path, 2, None, lr=3) / "status.json", state="failed", code=701, message="NaN!")
    facts(job(tmp_path, 3, 0.9, lr=4) / "status.json", state="running")
    (job(tmp_path, 4, 0.9, lr=5) / "result.json").write_text("{torn")
    (job(tmp_path, 5, None, lr=6) / "status.json").unlink()
    job(tmp_path, 6, None, lr=7)
    rows, text = board(tmp_path)
    found = {int(row["job"]): (row["rank"], row["state"], row["why"]) for row in rows}
    assert found[1][:2] == ("1", "finished") and found[0][:2] == ("2", "finished")
    assert found[2] == ("", "failed", "E701: NaN!")
    assert found[3] == ("", "unfinished", "at work, or killed")
    assert found[4][1] == "failed" and "result.json cannot be read" in found[4][2]
    assert found[5] == ("", "not started", "") and found[7] == ("", "not started", "")
    assert found[6] == ("", "failed", "there is no result.json")
    assert "8 jobs: 2 finished, 3 failed, 1 unfinished, 2 not started" in text
    assert "| 2 | failed | lr=3 | E701: NaN! |" in text


def test_a_sweep_in_which_nothing_finished_has_a_page(tmp_path: Path) -> None:
    head(tmp_path, jobs=2)
    facts(job(tmp_path, 0, None, lr=3) / "status.json", state="failed", code=301, message="gone")
    rows, text = board(tmp_path)
    assert [row["state"] for row in rows] == ["failed", "not started"]
    assert "No job has a value yet" in text and "Run it again" not in text
    assert "Jobs in their order" not in text and not (tmp_path / "figures").exists()


def test_jobs_with_the_same_value_share_their_rank(tmp_path: Path) -> None:
    head(tmp_path)
    for number, value in enumerate((0.5, 0.9, 0.9, 0.7)):
        job(tmp_path, number, value, lr=number)
    rows, text = board(tmp_path)
    assert [(row["job"], row["rank"]) for row in rows] == [
        *(("1", "1"), ("2", "1")),
        *(("3", "3"), ("0", "4")),
    ]
    assert "tied with job 2" in text


def test_a_metric_to_minimise_puts_the_smallest_first_and_has_no_interval(tmp_path: Path) -> None:
    head(tmp_path, "-val_loss")
    for number, loss in enumerate((0.7, 0.2, 1.5)):
        own = job(tmp_path, number, 0.5, lr=number)
        (own / "metrics.csv").write_text(f"epoch,val_loss\n1,9.0\n2,{loss}\n3,0.0\n")
    rows, text = board(tmp_path)
    assert [float(row["val_loss"]) for row in rows] == [0.2, 0.7, 1.5]
    assert "val_loss_low" not in rows[0] and "95 % interval" not in text


def test_two_objectives_are_ranked_by_how_many_jobs_are_better_in_both(tmp_path: Path) -> None:
    draw = random.Random(0)
    head(tmp_path, "val_acc", "-timing.fit_s")
    known = [(draw.randint(1, 9) / 10, draw.randint(1, 9)) for _ in range(14)]
    for number, (value, seconds) in enumerate(known):
        path = job(tmp_path, number, value, lr=number) / "result.json"
        facts(path, **json.loads(path.read_text()), timing={"fit_s": seconds})
    rows, text = board(tmp_path)
    found = {int(row["job"]): row["rank"] for row in rows}
    for number, (value, seconds) in enumerate(known):
        as_good = [pair for pair in known if pair[0] >= value and pair[1] <= seconds]
        assert found[number] == str(1 + len(as_good) - as_good.count((value, seconds)))
    front = [number for number, rank in found.items() if rank == "1"]
    assert (
        f"{len(front)} of 14 jobs {'is' if len(front) == 1 else 'are'} on the Pareto front" in text
    )
    assert "## Pareto front" in text and not (tmp_path / "figures").exists()
    head(tmp_path)
    assert "## Pareto front" not in board(tmp_path)[1]


def test_a_pruned_job_says_so_and_keeps_its_value(tmp_path: Path) -> None:
    head(tmp_path)
    job(tmp_path, 0, 0.9, lr=1)
    facts(job(tmp_path, 1, 0.8, lr=2) / "pruned.json", epoch=1)
    rows, text = board(tmp_path)
    assert [(row["state"], row["rank"]) for row in rows] == [("finished", "1"), ("pruned", "2")]
    assert "2 jobs: 1 finished, 1 pruned" in text


def test_the_command_leaves_out_where_the_sweep_put_the_job(tmp_path: Path) -> None:
    head(tmp_path)
    path = job(tmp_path, 0, 0.9, lr=1) / "result.json"
    words = [
        "python",
        "-m",
        "xfer",
        "data.root=my images",
        "run.dir='a/0'",
        "checkpoint.resume=auto",
    ]
    facts(path, **{**json.loads(path.read_text()), "command": shlex.join(words)})
    assert "\n    python -m xfer 'data.root=my images'\n" in board(tmp_path)[1]
    facts(path, **{**json.loads(path.read_text()), "command": "python 'torn"})
    assert "\n    python 'torn\n" in board(tmp_path)[1]


def test_a_job_without_the_objective_is_listed_without_rank(tmp_path: Path) -> None:
    head(tmp_path, "scores.test.acc")
    job(tmp_path, 0, 0.9, lr=1)
    rows, _ = board(tmp_path)
    assert rows[0]["rank"] == "" and rows[0]["why"] == "has no scores.test.acc"


HOSTILE = '=HYPERLINK("x")<script>alert(1)</script>|a\n| b |\x1b[31m'


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    head(tmp_path, experiment=HOSTILE, jobs=None)
    job(tmp_path, 0, 0.9, **{HOSTILE: HOSTILE, "lr": 1})
    job(tmp_path, 1, 0.8, **{HOSTILE: "-2+3", "lr": 2})
    own = job(tmp_path, 2, None, lr=3)
    facts(own / "status.json", state="failed", code=1, message=HOSTILE)
    path = tmp_path / "0" / "result.json"
    facts(path, **{**json.loads(path.read_text()), "command": f"python {HOSTILE}"})
    rows, text = board(tmp_path)
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("<script") == 1, "one that is not ours"
    # Code, which begins with four spaces, is shown as it is.
    marked = re.sub(r"^    .*", "", (tmp_path / "leaderboard.md").read_text(), flags=re.M)
    assert not re.search(r"(?<!\\)[<|]script", marked)
    assert "\x1b" not in page + text
    cells = [cell for row in rows for pair in row.items() for cell in pair if cell]
    assert not [cell for cell in cells if cell[0] in "=+@" or cell[:1] == "-"]
    assert {"'-2+3", "'" + HOSTILE} <= set(cells)
    # A line break in a name does not end the row of a table.
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 2 + 1


def spread(folder: Path, count: int, value, **columns) -> None:
    head(folder)
    for number in range(count):
        parameters = {key: column(number) for key, column in columns.items()}
        job(folder, number, value(number), **parameters)


def test_importance_finds_the_parameter_that_decides(tmp_path: Path) -> None:
    draw = random.Random(1)
    noise = [draw.random() for _ in range(30)]
    spread(
        tmp_path, 30, lambda n: 0.2 + 0.03 * (n % 10), noise=lambda n: noise[n],
        kind=lambda n: f"kind{n % 10}", same=lambda n: 7,
    )  # fmt: skip
    _, text = board(tmp_path)
    from xfer.sweep.leaderboard.importance import importance
    from xfer.sweep.leaderboard.read_sweep import read

    found = importance(read(tmp_path))
    assert list(found.drops) == ["kind", "noise"]
    assert found.drops["kind"][0] > 10 * abs(found.drops["noise"][0])
    assert importance(read(tmp_path)) == found
    assert "Permutation importance for val_acc" in text and "random forest" in text
    drop, spread_ = found.drops["kind"]
    assert f"kind {drop:.3f}, sd {spread_:.3f}; noise " in text


@pytest.mark.parametrize(
    ("count", "value", "why"),
    [
        (9, lambda n: n / 10, "9 jobs have a value, and at least 10 are needed"),
        (12, lambda n: 0.5, "all jobs have the same value"),
        (12, lambda n: random.Random(n + 100).random(), "no better than their mean"),
    ],
)
def test_importance_is_left_out_where_nothing_can_be_learnt(
    tmp_path: Path, count: int, value, why: str
) -> None:
    spread(tmp_path, count, value, lr=lambda n: random.Random(n).random())
    _, text = board(tmp_path)
    assert "Left out: " in text and why in text
    assert "when shuffled" not in text


def test_the_same_images_in_another_order_are_the_same(tmp_path: Path) -> None:
    head(tmp_path)
    one, other = (job(tmp_path, n, 0.9 - n / 10, lr=n) for n in (0, 1))
    answers(one, {"a": "cat", "b": "cat", "c": "dog", "d": "cat"})
    answers(other, {"d": "dog", "c": "cat", "b": "dog", "a": "dog"})
    _, text = board(tmp_path)
    assert "3 were right in job 0 alone and 1 in job 1 alone" in text
    assert f"p = {binomtest(3, 4).pvalue:.2g}." in text


def test_answers_to_other_images_are_not_compared(tmp_path: Path) -> None:
    head(tmp_path)
    one, other = (job(tmp_path, n, 0.9 - n / 10, lr=n) for n in (0, 1))
    answers(one, {"a": "cat", "b": "cat"})
    assert "Not tested: job 1 has no readable predictions_val.csv." in board(tmp_path)[1]
    answers(other, {"a": "cat", "c": "cat"})
    assert "they did not answer the same images" in board(tmp_path)[1]
    answers(other, {"a": "cat", "b": "cat"}, label="dog")
    assert "with the same labels: 2 and 2, of which 2 share" in board(tmp_path)[1]


def test_different_validation_images_are_told(tmp_path: Path) -> None:
    head(tmp_path)
    for number in (0, 1):
        own = job(tmp_path, number, 0.9, lr=number)
        facts(own / "plan.json", splits={"val": {"n": 100, "sha256": str(number)}})
    text = board(tmp_path)[1]
    assert "2 different sets of val images" in text and "on the same" not in text
    facts(own / "plan.json", splits={"val": {"n": 100, "sha256": "0"}})
    text = board(tmp_path)[1]
    assert "chosen on the same 100 val images" in text and "different sets" not in text


def test_an_epoch_is_told_where_one_was_chosen(tmp_path: Path) -> None:
    head(tmp_path)
    path = job(tmp_path, 0, 0.9, lr=1) / "result.json"
    result = json.loads(path.read_text())
    assert "The best of" not in board(tmp_path)[1]  # it is alone
    job(tmp_path, 1, 0.8, lr=2)
    result["best"] = {"metric": "val_acc", "value": 0.9, "epoch": 7}
    result["scores"]["val"]["used_for_selection"] = True
    facts(path, **result)
    (row, _), text = board(tmp_path)
    assert "as was its epoch" in text and row["epoch"] == "7"
    result["scores"]["val"]["used_for_selection"] = False
    facts(path, **result, solved={"chosen_by": "cv_loss"})
    (row, _), text = board(tmp_path)
    assert "as was its epoch" not in text and row["epoch"] == ""


def test_a_test_split_that_chose_nothing_is_shown_beside_the_choice(tmp_path: Path) -> None:
    head(tmp_path)
    path = job(tmp_path, 0, 0.9, lr=1) / "result.json"
    result = json.loads(path.read_text())
    result["scores"]["test"] = {"n": 50, "acc": 0.8, "used_for_selection": False}
    facts(path, **result)
    assert (
        "On the 50 test images, which chose nothing, job 0 has an accuracy of 0.8000 (40"
        in (board(tmp_path)[1])
    )
    result["scores"]["test"]["used_for_selection"] = True
    facts(path, **result)
    assert "chose nothing, job 0" not in board(tmp_path)[1]


@pytest.mark.parametrize("first", [0, 1, 5, 40])
@pytest.mark.parametrize("second", [0, 2, 5, 60, 3000])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    wanted = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(wanted, rel=1e-9)


def refused(*overrides: str) -> tuple[int, str]:
    with pytest.raises(ConfigError) as caught:
        xfer.run(None, ["stages=[leaderboard]", *overrides])
    assert caught.value.exit == 2
    return caught.value.number, str(caught.value)


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    assert refused()[0] == 203
    assert refused(f"sweep.dir={tmp_path / 'nowhere'}")[0] == 277
    assert refused(f"sweep.dir={tmp_path}")[0] == 278
    (tmp_path / "12").mkdir()
    assert refused(f"sweep.dir={tmp_path}")[0] == 278
    assert refused(f"sweep.dir={tmp_path}", "stages=[fit,leaderboard]")[0] == 276


@pytest.mark.parametrize(
    "text",
    [
        "{torn",
        "[]",
        '{"format": 2}',
        '{"format": 1}',
        '{"format": 1, "objectives": []}',
        '{"format": 1, "objectives": [{"metric": "val_acc", "direction": "up"}]}',
        '{"format": 1, "objectives": ["val_acc"]}',
    ],
)
def test_a_record_at_fault_is_one_clear_error(tmp_path: Path, text: str) -> None:
    job(tmp_path, 0, 0.5, lr=1)
    (tmp_path / "sweep.json").write_text(text)
    number, told = refused(f"sweep.dir={tmp_path}")
    assert number == 279 and "sweep.json" in told


def test_a_job_that_was_proposed_twice_is_no_second_seed(tmp_path: Path) -> None:
    values = {(0, 0): 0.5, (1, 0): 0.5, (2, 1): 0.7}
    jobs = tuple(
        JobRecord(
            n, tmp_path, "finished", "", {"optim.lr": 0.1, "seed": seed}, (), {}, (v,), None, None
        )
        for (n, seed), v in values.items()
    )
    sweep = SweepRecord(tmp_path, "digits", (Objective("val_acc"),), None, jobs)
    (found,) = groups(sweep)
    assert found.n == 2 and found.means == (pytest.approx(0.6),)


def test_a_number_with_an_exponent_names_the_baseline(tmp_path: Path) -> None:
    job = JobRecord(0, tmp_path, "finished", "", {"optim.lr": 0.001}, (), {}, (0.5,), None, None)
    sweep = SweepRecord(tmp_path, "digits", (Objective("val_acc"),), ("optim.lr=1e-3",), (job,))
    assert baseline(sweep, None) == {0}
