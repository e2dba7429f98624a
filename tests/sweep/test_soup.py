"""A soup of a sweep's members: the recipe, its statistics, what is refused, and a real one."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from browser import check_page
from scipy import stats
from torch import nn
from torch.optim.swa_utils import update_bn

from xfer.config.hydra import compose_specs
from xfer.config.verbs import spelt_out
from xfer.core.errors import CommandError, SafetyError, SweepError
from xfer.core.types import Samples
from xfer.evaluation.statistics import paired_difference
from xfer.models.restore import open_checkpoint
from xfer.sweep.leaderboard.read_sweep import read
from xfer.sweep.soup.averaging import Averages, set_statistics
from xfer.sweep.soup.greedy import Taste, greedy, halves, tables_of, verdict
from xfer.sweep.soup.members import check_tensors, members_of
from xfer.sweep.soup.soup_stage import (
    AveragedNetwork,
    plan_soup,
    refuse_soup_in_a_sweep,
    remarks,
)
from xfer.workflow import run

DIGITS = ["experiment=digits_finetune", "data.test_fraction=0.3"]
# Two are all but equal, so that they go together whatever the processor rounds.
JOBS = (["optim.lr=0.05"], ["optim.lr=0.050005"], ["optim.lr=0.02"])


def test_members_join_in_their_order_where_the_average_gets_no_worse() -> None:
    alone = {0: Taste(0.7, 0.9), 1: Taste(0.9, 0.3), 2: Taste(0.8, 0.5), 3: Taste(0.8, 0.4)}
    worth = {(1, 3): 0.9, (1, 3, 2): 0.89, (1, 3, 0): 0.91}
    asked = []

    def taste(jobs):
        asked.append(jobs)
        return Taste(worth[jobs], 0.2)

    tries = greedy(alone, taste)
    assert asked == [(1, 3), (1, 3, 2), (1, 3, 0)]  # of equals the one of the smaller loss first
    assert [(t.job, t.joins) for t in tries] == [(1, True), (3, True), (2, False), (0, True)]
    assert tries[0].together is None
    assert tries[1].together == Taste(0.9, 0.2)


def test_an_average_that_overflows_never_joins() -> None:
    alone = {0: Taste(0.5, 0.7), 1: Taste(0.5, 0.7)}
    tries = greedy(alone, lambda jobs: Taste(1.0, math.nan))
    assert [t.joins for t in tries] == [True, False]


def test_halves_are_stratified_and_depend_on_names_alone() -> None:
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 3, 61)
    names = tuple(f"{i:03d}.png" for i in range(61))
    samples = Samples(names, labels, (), "")  # type: ignore[arg-type]
    first, second = halves(samples, 0)
    assert sorted([*first, *second]) == list(range(61))
    for label in range(3):
        counts = [(labels[part] == label).sum() for part in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1
    assert abs(len(first) - len(second)) <= 1
    # Another order of the same files: the same images choose.
    order = drawn.permutation(61)
    moved = Samples(tuple(names[i] for i in order), labels[order], (), "")  # type: ignore[arg-type]
    again, _ = halves(moved, 0)
    assert {moved.names[i] for i in again} == {names[i] for i in first}
    assert {names[i] for i in halves(samples, 1)[0]} != {names[i] for i in first}


def test_the_interval_of_pairs_is_that_of_the_table_with_half_an_image_more() -> None:
    n, gained, lost = 100, 12, 5
    table = np.array([[70.5, gained + 0.5], [lost + 0.5, n - 70 - gained - lost + 0.5]])
    shares = table / table.sum()
    # The variance of the mean of draws of +1, -1 and 0 with these shares.
    values, weights = np.array([0, 1, -1, 0]), shares.ravel()
    mean = (values * weights).sum()
    variance = ((values - mean) ** 2 * weights).sum() / table.sum()
    assert paired_difference(gained, lost, n) == pytest.approx(
        stats.norm.interval(0.95, mean, math.sqrt(variance)), rel=1e-9
    )
    assert paired_difference(0, 0, 30)[0] < 0 < paired_difference(0, 0, 30)[1]
    assert paired_difference(lost, gained, n) == pytest.approx(
        tuple(-end for end in reversed(paired_difference(gained, lost, n)))
    )


def test_the_interval_of_pairs_covers() -> None:
    drawn = np.random.default_rng(0)
    for gained, lost in ((0.1, 0.05), (0.03, 0.02)):
        inside = 0
        for first, second, _ in drawn.multinomial(90, [gained, lost, 1 - gained - lost], 2000):
            low, high = paired_difference(first, second, 90)
            inside += low <= gained - lost <= high
        assert 0.935 <= inside / 2000 <= 0.985


def test_a_verdict_is_about_the_images_that_one_alone_got_right() -> None:
    member = np.arange(100) < 80
    soup = np.arange(100) < 92
    found = verdict(soup, member)
    assert (found.gained, found.lost, found.n) == (12, 0, 100)
    assert found.score == pytest.approx(0.12)
    assert found.pays(0.0) and not verdict(member, member).pays(0.0)
    assert not found.pays(found.ci95[0])


def normed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)]
    return nn.Sequential(*layers, nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))


def test_an_average_is_the_mean_of_each_tensor_however_it_is_asked_for() -> None:
    states = {job: normed(job).state_dict() for job in range(3)}
    states[2]["1.running_mean"] += 1
    read_jobs = []

    def load(job):
        read_jobs.append(job)
        return states[job]

    averages = Averages(load)
    for jobs in [(0,), (1,), (0, 1), (0, 2), (0, 2, 1), (0, 2), (2,), (1, 0)]:
        mean, moved = averages.of(jobs)
        for name, tensor in mean.items():
            wanted = torch.stack([states[job][name].double() for job in jobs]).mean(0)
            assert torch.equal(tensor, wanted.to(tensor.dtype)), (jobs, name)
        assert moved == ({"1"} if 2 in jobs and len(jobs) > 1 else set())
    # The soup so far is not read again for the next one to be tried.
    read_jobs.clear()
    averages.of((0, 1, 2))
    read_jobs.clear()
    averages.of((0, 1, 2))
    assert read_jobs == [2]


def test_statistics_are_those_that_torch_computes() -> None:
    batches = torch.randn(5, 8, 3, 9, 9) * 3 + 1
    ours, theirs = normed(0), normed(0)
    set_statistics(ours, ["1", "4"], [*batches, batches[0][:1]])
    update_bn(batches, theirs)
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor.double(), theirs.state_dict()[name].double(), atol=1e-6), name
    assert not ours.training and ours[1].momentum == 0.1
    # A layer that is not named stays as it was.
    one = normed(0)
    set_statistics(one, ["4"], batches)
    assert torch.equal(one[1].running_mean, torch.zeros(4))
    assert one[4].running_mean.abs().max() > 0


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which there is a sweep of three jobs, made one after the other in this
    process, as a sweep leaves it."""
    folder = tmp_path_factory.mktemp("swept")
    sweep = folder / "outputs" / "multirun" / "digits" / "2026-01-01_00-00-00_aaaaaa"
    for number, typed in enumerate(JOBS):
        place = sweep / str(number)
        words = [*DIGITS, "trainer.max_epochs=3", "stages=[fit,evaluate]", *typed]
        run(compose_specs([*words, f"run.dir={place}"]))
        parameters = dict(text.split("=") for text in typed)
        facts = {"job": number, "overrides": typed, "parameters": parameters}
        (place / "job.json").write_text(json.dumps(facts))
    record = {"format": 1, "objectives": [{"metric": "val_acc", "direction": "maximize"}]}
    record |= {"experiment": "digits", "jobs": 3}
    (sweep / "sweep.json").write_text(json.dumps(record))
    return sweep


@pytest.fixture(scope="module")
def souped(swept: Path) -> tuple[Path, str]:
    """The run folder of a soup that may be worse than its best member, and what was printed."""
    folder = swept.parents[3] / "soup"
    words = spelt_out(["soup", str(swept), "sweep.soup_least=-1", "export=onnx"])
    words.append("report.maps=0")
    with redirect_stdout(StringIO()) as printed:
        run(compose_specs([*words, f"run.dir={folder}"]))
    return folder, printed.getvalue()


def test_the_soup_is_the_mean_of_the_members_that_it_names(
    swept: Path, souped: tuple[Path, str]
) -> None:
    folder, _ = souped
    result = json.loads((folder / "result.json").read_text())
    soup, make = result["soup"], compose_specs(DIGITS).make
    assert soup["pays"] and len(soup["jobs"]) > 1
    net, card = open_checkpoint(folder, make)
    states = [open_checkpoint(swept / str(j), make)[0].state_dict() for j in soup["jobs"]]
    for name, parameter in net.named_parameters():
        wanted = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.allclose(parameter.double(), wanted, atol=1e-7), name
    # Statistics are computed anew: the mean of the members' would be others.
    name = next(n for n, _ in net.named_buffers() if n.endswith("running_var"))
    means = torch.stack([state[name] for state in states]).mean(0)
    assert not torch.allclose(net.state_dict()[name], means, rtol=1e-3)
    plan = json.loads((folder / "plan.json").read_text())
    assert soup["batch_norm"]["images"] == plan["splits"]["train"]["n"]
    assert card.source["soup"]["jobs"] == soup["jobs"]
    assert not card.calibration and card.certificate is None


def right(path: Path) -> dict[str, bool]:
    with path.open(newline="") as stream:
        return {row["path"]: row["label"] == row["prediction"] for row in csv.DictReader(stream)}


def test_the_numbers_are_those_of_the_tables_of_answers(
    swept: Path, souped: tuple[Path, str]
) -> None:
    folder, output = souped
    result = json.loads((folder / "result.json").read_text())
    soup = result["soup"]
    best = soup["best"]["job"]
    val = {j: right(swept / str(j) / "predictions_val.csv") for j in range(3)}
    accs = {row["job"]: row["acc"] for row in soup["members"]}
    assert accs == pytest.approx({j: np.mean([*val[j].values()]) for j in range(3)})
    assert accs[best] == max(accs.values())
    ours = right(folder / "predictions_test.csv")
    theirs = right(swept / str(best) / "predictions_test.csv")
    gained = sum(ours[k] and not theirs[k] for k in ours)
    lost = sum(theirs[k] and not ours[k] for k in ours)
    difference = soup["difference"]
    assert (difference["gained"], difference["lost"]) == (gained, lost)
    assert difference["ci95"] == pytest.approx(paired_difference(gained, lost, len(ours)))
    assert soup["soup"]["acc"] == result["scores"]["test"]["acc"]
    assert not result["scores"]["test"]["used_for_selection"]
    assert result["scores"]["val"]["used_for_selection"]
    assert f"best member (job {best}) {soup['best']['acc']:.4f}" in output
    with (folder / "soup.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["job"]) for row in rows] == [row["job"] for row in soup["members"]]


def test_it_is_a_run_as_any_other(souped: tuple[Path, str], swept: Path, monkeypatch) -> None:
    folder, output = souped
    monkeypatch.chdir(swept.parents[3])
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished" and "soup.json" in status["files"]
    assert (folder / "export" / "model.onnx").is_file()
    page = (folder / "report.md").read_text()
    assert "## Soup" in page and "This run did not train" not in page
    n = {split: len(right(folder / f"predictions_{split}.csv")) for split in ("val", "test")}
    assert f"chosen on val ({n['val']}), judged on test ({n['test']})" in output
    for words in (["compare", str(folder), str(swept / "0")], ["report", str(folder)]):
        result = run(compose_specs(spelt_out(words)))
        assert result.folder.is_dir()
    assert "## Soup" in (folder / "report.md").read_text()
    again = ["stages=[evaluate]", f"checkpoint.path={folder}"]
    facts = run(compose_specs([*DIGITS, *again])).facts
    assert (
        facts["scores"]["test"]["acc"]
        == (json.loads((folder / "result.json").read_text())["scores"]["test"]["acc"])
    )


def test_axe_finds_nothing_serious_on_its_card(souped: tuple[Path, str]) -> None:
    check_page(souped[0] / "report.html")


def test_one_that_does_not_pay_is_refused_and_leaves_what_was_tried(swept: Path, monkeypatch):
    here = swept.parents[3]
    monkeypatch.chdir(here)
    typed = [*DIGITS, "stages=[soup]", f"sweep.dir={swept}"]
    with pytest.raises(SafetyError, match=r"E640: soup: does not pay: .* points against job") as e:
        run(compose_specs([*typed, "sweep.soup_least=0.5", f"run.dir={here / 'refused'}"]))
    assert e.value.exit == 6
    left = {path.name for path in (here / "refused").iterdir()}
    assert {"soup.json", "soup.csv", "status.json"} <= left and "checkpoints" not in left
    assert json.loads((here / "refused" / "status.json").read_text())["code"] == 640
    # What the message says works when typed.
    use, _, least = e.value.fix.partition("; or type ")
    words = spelt_out([*shlex.split(use.partition("xfer ")[2])[:2], "."])
    best = json.loads((here / "refused" / "soup.json").read_text())["best"]
    assert words[1] == f"checkpoint.path={swept / str(best['job'])}"
    facts = json.loads((here / "refused" / "soup.json").read_text())
    assert compose_specs([*typed, least]).sweep.soup_least < facts["difference"]["ci95"][0]


@pytest.mark.slow
def test_the_page_shows_a_soup_that_its_commands_make(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/soup.md").read_text()
    sweep, soup = re.findall(r"^\$ (?:python -m )?xfer (.*)$", page, re.M)[:2]
    (asked,) = re.findall(r"^\$ xfer (soup \S+ sweep\.soup_least=\S+)$", page, re.M)
    said = []
    for command, code in ((sweep, 0), (soup, 6), (asked, 0)):
        process = warm.start(tmp_path, *shlex.split(command))
        output, _ = process.communicate(timeout=1800)
        assert process.returncode == code, output
        said.append(output)
    assert "xfer: error E640: soup: does not pay" in said[1]
    assert all("Soup of 2 of 3 members (jobs 2, 1)" in text for text in (page, *said[1:]))
    (meant,) = re.findall(r"^\$ python -m xfer (.*stages=\[soup.*)$", page, re.M)
    assert f"$ python -m xfer {meant}\n" in said[1]


def test_without_a_test_split_a_half_of_val_judges_and_the_epochs_are_owned_up_to(
    swept: Path,
) -> None:
    plan = plan_soup(compose_specs([*DIGITS, "stages=[soup]", f"sweep.dir={swept}"]))
    assert plan.dataset is not None
    rest = {k: v for k, v in plan.dataset.splits.items() if k != "test"}
    tables = tables_of(replace(plan.dataset, splits=rest), 0)
    assert len(tables.choosing) + len(tables.judging) == len(rest["val"])
    assert abs(len(tables.choosing) - len(tables.judging)) <= 1
    assert not set(tables.choosing.names) & set(tables.judging.names)
    assert (tables.chosen_on, tables.judged_on) == ("a half of val", "the other half")
    with pytest.raises(SweepError, match="E185"):
        tables_of(replace(plan.dataset, splits={"train": rest["train"]}), 0)
    # The members' own answers to these images, as their runs have written them.
    members = {member.job: member for member in members_of(read(swept))}
    alone = AveragedNetwork(plan, members, tables).alone()
    for job, taste in alone.items():
        answers = right(swept / str(job) / "predictions_val.csv")
        assert taste.score == pytest.approx(np.mean([answers[n] for n in tables.choosing.names]))
    facts = {"epochs_chosen_on_val": True, "judged_on": {"images": tables.judged_on}}
    (said,) = remarks(facts, members)
    assert said.startswith("soup: the epoch of each member was chosen on all of val")
    assert remarks({**facts, "judged_on": {"images": "test"}}, members) == []


def altered(sweep: Path, target: Path, number: int, change) -> Path:
    """A copy of the sweep in which the card of a job is another."""
    from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot

    shutil.copytree(sweep, target)
    path = target / str(number) / "checkpoints" / "best.ckpt"
    snapshot = read_snapshot(path)
    write_snapshot(path, change(snapshot))
    return target


def of_card(**facts):
    return lambda snapshot: replace(snapshot, card=replace(snapshot.card, **facts))


def test_networks_without_a_mean_are_refused_by_what_they_differ_in(
    swept: Path, tmp_path: Path
) -> None:
    def refusal(name: str, change) -> str:
        with pytest.raises(SweepError) as caught:
            members_of(read(altered(swept, tmp_path / name, 2, change)))
        return str(caught.value)

    card = members_of(read(swept))[0].card
    classes = of_card(classes=card.classes[::-1])
    assert "E181" in refusal("classes", classes)
    assert "jobs 0 and 2 differ in classes" in refusal("classes2", classes)
    source = of_card(source={**card.source, "sha256": "0" * 64})
    assert "differ in source weights" in refusal("source", source)
    random = of_card(source={**card.source, "sha256": None})
    assert "E181: job 2: began from random weights" in refusal("random", random)
    backbone = of_card(backbone={**card.backbone, "name": "resnet50"})
    assert "differ in backbone" in refusal("backbone", backbone)
    knn = of_card(head={"_target_": "xfer.models.head.Knn"})
    assert "E182: job 2: its knn head holds training images" in refusal("knn", knn)


def test_tensors_of_other_shapes_are_refused(swept: Path, monkeypatch) -> None:
    members = members_of(read(swept))
    state = members[2].state(compose_specs(DIGITS).make)
    wider = {**state, "fc.weight": torch.zeros(7, 3)}
    states = {0: state, 1: state, 2: wider}
    monkeypatch.setattr("xfer.sweep.soup.members.Member.state", lambda self, make: states[self.job])
    with pytest.raises(SweepError, match=r"E181.*jobs 0 and 2 differ in the tensor fc.weight"):
        check_tensors(members, lambda *_: None)
    check_tensors(members[:2], lambda *_: None)


def test_what_has_no_soup_is_refused_before_anything_is_made(
    swept: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refusal(*words: str, sweep: Path = swept) -> str:
        with pytest.raises(SweepError) as caught:
            run(compose_specs([*DIGITS, f"sweep.dir={sweep}", "stages=[soup]", *words]))
        return str(caught.value)

    assert "E179: stages: a soup takes the place of a fit" in refusal("stages=[soup,fit]")
    assert "E179: checkpoint.path: a soup makes" in refusal(f"checkpoint.path={swept / '0'}")
    assert "E184: data: train is not what it was for job 0" in refusal("data.split_seed=5")
    one = tmp_path / "one"
    shutil.copytree(swept, one)
    for number in (1, 2):
        (one / str(number) / "status.json").unlink()
    assert "E180" in refusal(sweep=one)
    assert "1 of 3 jobs has finished" in refusal(sweep=one)
    folded = tmp_path / "folded"
    shutil.copytree(swept, folded)
    result = json.loads((folded / "1" / "result.json").read_text())
    (folded / "1" / "result.json").write_text(json.dumps({**result, "cv": {"n": 3}}))
    assert "E183: job 1: is a cross-validation" in refusal(sweep=folded)
    with pytest.raises(SweepError, match="E186: stages: -m starts several runs"):
        refuse_soup_in_a_sweep(["soup"])
    refuse_soup_in_a_sweep(["fit"])
    assert not (tmp_path / "outputs").exists()


def test_the_verb_takes_the_data_of_the_sweep(swept: Path, monkeypatch) -> None:
    monkeypatch.chdir(swept.parents[3])
    place = swept.relative_to(Path.cwd())
    whole = [*DIGITS, "stages=[soup,evaluate,export,report]", f"sweep.dir={place}"]
    for name in ("last", "aaaaaa", str(place)):
        assert spelt_out(["soup", name]) == whole
    with pytest.raises(CommandError, match="E050: bbb: is no folder of a sweep"):
        spelt_out(["soup", "bbb"])
    other = swept.parents[1] / "else" / "2026-01-02_00-00-00_aaaaaa"
    other.mkdir(parents=True)
    shutil.copy(swept / "sweep.json", other)
    with pytest.raises(CommandError, match="E050: aaaaaa: is the end of several sweeps"):
        spelt_out(["soup", "aaaaaa"])
    shutil.rmtree(other.parent)
