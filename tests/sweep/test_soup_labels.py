"""A soup of networks that give an image several labels: judged by mAP, with its own thresholds."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import labelled
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_soup import altered

from xfer.config.hydra import compose_specs
from xfer.config.verbs import spelt_out
from xfer.core.errors import SafetyError, SweepError
from xfer.core.types import Dataset, Predictions, Samples
from xfer.evaluation.multilabel_metrics import best_thresholds
from xfer.models.restore import open_checkpoint
from xfer.plan.table import brief
from xfer.sweep.leaderboard.read_sweep import read
from xfer.sweep.soup.greedy import halves, label_verdict, tables_of
from xfer.sweep.soup.members import members_of
from xfer.sweep.soup.soup_stage import plan_soup
from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot
from xfer.workflow import run

JOBS = (["optim.lr=0.05"], ["optim.lr=0.050005"], ["optim.lr=0.02"])
NAMES = tuple(labelled.LABELS)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of three jobs, made one after the other in this process."""
    folder = tmp_path_factory.mktemp("swept")
    rows = labelled.digits(folder / "images", 220, unlabelled=10)
    named = [(f"images/{name}", labels) for name, labels in rows]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.1)
    sweep = folder / "outputs" / "multirun" / "digits" / "2026-01-01_00-00-00_aaaaaa"
    words = ["experiment=digits_freeze", "task=multilabel", "data=csv", "data.leakage=ignore"]
    words += [f"data.file={folder / 'columns.csv'}", "data.test_fraction=0.3"]
    # The head alone trains, so that two that are all but equal go together.
    words += ["optim=adamw", "trainer.max_epochs=3", "stages=[fit,evaluate]"]
    for number, typed in enumerate(JOBS):
        place = sweep / str(number)
        run(compose_specs([*words, *typed, f"run.dir={place}"]))
        parameters = dict(text.split("=") for text in typed)
        facts = {"job": number, "overrides": typed, "parameters": parameters}
        (place / "job.json").write_text(json.dumps(facts))
        # Thresholds that are not those of the soup, by which nothing is judged.
        snapshot = read_snapshot(place / "checkpoints" / "best.ckpt")
        task = {**snapshot.card.task, "thresholds": [0.9] * 4}
        snapshot = replace(snapshot, card=replace(snapshot.card, task=task))
        write_snapshot(place / "checkpoints" / "best.ckpt", snapshot)
    record = {"format": 1, "objectives": [{"metric": "val_map", "direction": "maximize"}]}
    record |= {"experiment": "digits", "jobs": 3}
    (sweep / "sweep.json").write_text(json.dumps(record))
    return sweep


@pytest.fixture(scope="module")
def souped(swept: Path) -> Path:
    folder = swept.parents[3] / "soup"
    words = spelt_out(["soup", str(swept), "sweep.soup_least=-1", "export=safetensors"])
    run(compose_specs([*words, "report.maps=0", f"run.dir={folder}"]))
    return folder


def table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels (n, classes) of a table of predictions."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    p = [[float(row[f"p_{name}"]) for name in NAMES] for row in rows]
    cells = [row["label"].split("|") for row in rows]
    labels = [[-1 if f"?{n}" in each else int(n in each) for n in NAMES] for each in cells]
    return np.array(p), np.array(labels)


def mean_ap(path: Path) -> float:
    p, labels = table(path)
    known = labels >= 0
    each = [
        average_precision_score(labels[known[:, c], c], p[known[:, c], c])
        for c in range(len(NAMES))
    ]
    return float(np.mean(each))


def test_members_and_soup_are_judged_by_map_on_images_that_chose_nothing(
    swept: Path, souped: Path
) -> None:
    result = json.loads((souped / "result.json").read_text())
    soup = result["soup"]
    alone = {row["job"]: row["map"] for row in soup["members"]}
    wanted = {j: mean_ap(swept / str(j) / "predictions_val.csv") for j in range(3)}
    assert alone == pytest.approx(wanted, abs=1e-3)  # probabilities have six digits
    best = soup["best"]["job"]
    assert alone[best] == max(alone.values()) and len(soup["jobs"]) > 1
    assert soup["soup"]["map"] == pytest.approx(mean_ap(souped / "predictions_test.csv"), abs=1e-3)
    assert soup["soup"]["map"] == pytest.approx(result["scores"]["test"]["map"])
    member = mean_ap(swept / str(best) / "predictions_test.csv")
    assert soup["best"]["map"] == pytest.approx(member, abs=1e-3)
    difference = soup["difference"]
    assert difference["map"] == pytest.approx(soup["soup"]["map"] - soup["best"]["map"])
    assert difference["ci95"][0] <= difference["map"] <= difference["ci95"][1]
    assert "acc" not in soup["soup"] and "gained" not in difference


def test_its_weights_are_the_mean_and_its_thresholds_are_chosen_on_what_chose(
    swept: Path, souped: Path
) -> None:
    soup, make = json.loads((souped / "soup.json").read_text()), compose_specs([]).make
    net, card = open_checkpoint(souped, make)
    states = [open_checkpoint(swept / str(j), make)[0].state_dict() for j in soup["jobs"]]
    for name, parameter in net.named_parameters():
        wanted = sum(state[name].double() for state in states) / len(states)
        assert np.allclose(parameter.detach(), wanted, atol=1e-7), name
    p, labels = table(souped / "predictions_val.csv")
    p = np.clip(p, 1e-9, 1 - 1e-9)
    assert card.task["chosen_on"] == "val"
    wanted = best_thresholds(np.log(p) - np.log1p(-p), labels)
    assert card.task["thresholds"] == pytest.approx(wanted.tolist(), abs=2e-5)
    page = (souped / "report.md").read_text()
    assert "In the order of their mAP there" in page and "a paired bootstrap" in page
    assert "Thresholds chosen on val" in page and "accuracy" not in page
    scores = json.loads((souped / "result.json").read_text())["scores"]
    assert scores["val"]["used_for_selection"] and not scores["test"]["used_for_selection"]
    assert (souped / "export" / "model.safetensors").is_file()


def test_its_plan_says_where_thresholds_are_chosen(swept: Path) -> None:
    plan = plan_soup(compose_specs(spelt_out(["soup", str(swept), "sweep.soup_least=-1"])))
    assert "or none; a threshold a class by its F1 on the images that choose" in brief(plan)


def test_one_that_does_not_pay_is_refused_with_its_points_of_map(swept: Path) -> None:
    here = swept.parents[3]
    words = spelt_out(["soup", str(swept), "sweep.soup_least=0.5", "stages=[soup]"])
    with pytest.raises(SafetyError, match=r"E640: soup: does not pay: .* points against job"):
        run(compose_specs([*words, f"run.dir={here / 'refused'}"]))
    assert not (here / "refused" / "checkpoints").exists()


def test_the_verdict_is_about_the_ranking() -> None:
    drawn = np.random.default_rng(0)
    labels = (drawn.random((200, 2)) < 0.3).astype(np.int64)
    names = tuple(map(str, range(200)))
    noise = drawn.normal(size=(200, 2))

    def answers(strength: float) -> Predictions:
        logits = (labels * strength + noise).astype(np.float32)
        return Predictions(names, logits, labels, ("a", "b"), task={"kind": "multilabel"})

    found = label_verdict(answers(2), answers(1))
    assert found.pays(0.0) and found.ci95[0] < found.score < found.ci95[1] and found.n == 200
    assert not label_verdict(answers(1), answers(2)).pays(0.0)
    assert label_verdict(answers(1), answers(1)).score == 0


def test_halves_share_every_combination_of_labels() -> None:
    drawn = np.random.default_rng(0)
    labels = (drawn.random((83, 3)) < [0.5, 0.3, 0.1]).astype(np.int64)
    labels[drawn.random(labels.shape) < 0.05] = -1
    samples = Samples(tuple(f"{i}.png" for i in range(83)), labels, (), "")  # type: ignore[arg-type]
    first, second = halves(samples, 0)
    assert sorted([*first, *second]) == list(range(83)) and abs(len(first) - len(second)) <= 1
    for kind in np.unique(labels, axis=0):
        counts = [(labels[part] == kind).all(axis=1).sum() for part in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1


def test_images_that_rank_no_label_choose_no_soup() -> None:
    labels = np.ones((6, 2), np.int64)
    val = Samples(tuple("abcdef"), labels, (), "")  # type: ignore[arg-type]
    with pytest.raises(SweepError, match=r"E185: data: val has no label that some of its images"):
        tables_of(Dataset(("a", "b"), {"val": val, "test": val}), 0)


def test_networks_of_other_tasks_or_given_thresholds_have_no_mean(
    swept: Path, tmp_path: Path
) -> None:
    card = members_of(read(swept))[2].card
    given = {**card.task, "chosen_on": "given", "thresholds": [0.5] * 4}
    for name, task in (("single", {}), ("given", given)):
        changed = replace(card, task=task)
        sweep = altered(swept, tmp_path / name, 2, lambda s, card=changed: replace(s, card=card))
        with pytest.raises(SweepError, match=r"E181.*jobs 0 and 2 differ in task"):
            members_of(read(sweep))
    # Thresholds that were chosen differ from job to job, and are chosen anew.
    other = replace(card, task={**card.task, "thresholds": [0.1] * 4})
    sweep = altered(swept, tmp_path / "chosen", 2, lambda s: replace(s, card=other))
    assert len(members_of(read(sweep))) == 3
    shutil.rmtree(tmp_path / "chosen")
