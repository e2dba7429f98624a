"""What follows a fit with several labels an image: folds, calibration, views, comparison."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import labelled
import numpy as np
import pytest
import warm
from browser import chromium
from sklearn import metrics

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import CommandError, DataError
from xfer.core.files import read_json
from xfer.evaluation.onnx_session import open_session
from xfer.plan.make import make_plan
from xfer.plan.teacher_plan import teacher_lines
from xfer.report.comparison import read_all
from xfer.report.comparison.paired import check_together, pairs

NETWORK = ["experiment=digits_freeze", "data=csv", "task=multilabel"]


def ran(place: Path, name: str, *typed: str) -> Path:
    run = warm.start(place, *typed, f"run.dir={name}")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    return place / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded")
    rows = labelled.digits(folder / "images", 140, unlabelled=10)
    named = [(f"images/{name}", labels) for name, labels in rows]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.1)
    labelled.write_cells(folder / "cells.csv", named)
    return folder


@pytest.fixture(scope="module")
def folded(place: Path) -> Path:
    typed = [*NETWORK, "data.file=columns.csv", "data.folds=3", "data.repeats=2"]
    return ran(
        place, "folded", *typed, "optim=exact", "optim.folds=2", "stages=[fit,evaluate,report]"
    )


@pytest.fixture(scope="module")
def stepwise(place: Path) -> Path:
    options = ["freeze=none", "optim=adamw", "loss=asymmetric", "augment=mixed"]
    options += ["trainer.max_epochs=3", "calibration=vector", "data.workers=0"]
    stages = "stages=[fit,evaluate,export,report]"
    # A scale and a shift a class ask for ten images of each side of it in val.
    rows = labelled.digits(place / "more", 200, unlabelled=10)
    more = [(f"more/{name}", labels) for name, labels in rows]
    labelled.write_columns(place / "more.csv", more, unknown=0.1)
    return ran(place, "stepwise", *NETWORK, "data.file=more.csv", *options, stages)


@pytest.fixture(scope="module")
def solved(place: Path) -> Path:
    return ran(place, "solved", *NETWORK, "data.file=columns.csv", "export=onnx")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_pooled_table_has_every_image_once_a_repeat_and_says_its_score(folded: Path) -> None:
    rows, cv = table(folded / "predictions_oof.csv"), read_json(folded / "result.json")["cv"]
    assert list(rows[0])[:5] == ["path", "repeat", "fold", "label", "prediction"]
    assert len(rows) == 300 and len({(r["path"], r["repeat"]) for r in rows}) == 300
    names = read_json(folded / "plan.json")["classes"]
    each, right = [], 0
    for repeat in "01":
        for fold in "012":
            some = [r for r in rows if (r["repeat"], r["fold"]) == (repeat, fold)]
            areas = []
            for name in names:
                known = [r for r in some if f"?{name}" not in r["label"].split("|")]
                truth = [name in r["label"].split("|") for r in known]
                areas.append(
                    metrics.average_precision_score(truth, [float(r[f"p_{name}"]) for r in known])
                )
            each.append(np.mean(areas))
    for row in rows:
        has, said = (set(row[key].split("|")) - {""} for key in ("label", "prediction"))
        unknown = {name[1:] for name in has if name.startswith("?")}
        right += {n for n in has if not n.startswith("?")} == said - unknown
    assert cv["map"] == pytest.approx(np.mean(each), abs=1e-4) and cv["map"] > 0.7
    assert cv["acc"] == pytest.approx(right / 300)
    low, high = cv["map_ci95"]
    assert 0 < low < cv["map"] < high <= 1
    text = (folded / "report.md").read_text()
    assert "Cross-validated mAP" in text and "| class | have it | known | AP |" in text


def test_combinations_of_labels_are_spread_over_the_folds(place: Path, folded: Path) -> None:
    rows = [r for r in table(folded / "predictions_oof.csv") if r["repeat"] == "0"]
    typed = [*NETWORK, f"data.file={place / 'cells.csv'}", "data.folds=3"]
    samples = make_plan(compose_specs(typed)).split("train")
    assert samples.folds is not None and len(rows) == 150
    for kind in np.unique(samples.labels, axis=0):
        inside = (samples.labels == kind).all(axis=1)
        sizes = np.bincount(samples.folds[0, inside], minlength=3)
        assert inside.sum() >= 3 and sizes.max() - sizes.min() <= 1
    lines = (place / "cells.csv").read_text().splitlines()
    (place / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    typed[3] = f"data.file={place / 'turned.csv'}"
    turned = make_plan(compose_specs(typed)).split("train")
    one, two = (dict(zip(s.names, s.folds[0], strict=True)) for s in (samples, turned))
    assert one == two


@pytest.mark.slow
def test_a_fold_is_answered_by_the_fit_on_the_others(place: Path, folded: Path) -> None:
    """The same by a run of that fold alone, whose val the fold is."""
    typed = [*NETWORK, "data.file=columns.csv", "data.folds=3", "data.repeats=2", "data.fold=4"]
    typed += ["optim=exact", "optim.folds=2"]
    alone = ran(place, "alone", *typed, "stages=[fit,evaluate]")
    mine = {r["path"]: r for r in table(alone / "predictions_val.csv")}
    rows = table(folded / "predictions_oof.csv")
    pooled = [r for r in rows if (r["repeat"], r["fold"]) == ("1", "1")]
    assert {r["path"] for r in pooled} == set(mine)
    names = read_json(folded / "plan.json")["classes"]
    one, two = (
        np.array([[float(r[f"p_{name}"]) for name in names] for r in some])
        for some in (pooled, [mine[r["path"]] for r in pooled])
    )
    # The strength of either is chosen by inner folds that are drawn apart.
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.97


def test_a_label_that_one_fold_takes_away_is_refused(place: Path) -> None:
    rows = [(f"images/{i:04}.png", ["even"] if i % 2 else []) for i in range(40)]
    rows[3] = (rows[3][0], ["even", "rare"])
    labelled.write_cells(place / "rare.csv", rows)
    typed = [*NETWORK, f"data.file={place / 'rare.csv'}", "data.folds=4", "data.leakage=ignore"]
    with pytest.raises(DataError, match=r"error E351: .*label 'rare' .* are in one fold"):
        make_plan(compose_specs(typed))
    with pytest.raises(DataError, match=r"error E350: .*type data.folds=40") as caught:
        make_plan(compose_specs([*typed[:-2], "data.folds=41", "data.leakage=ignore"]))
    assert "40 training images cannot be divided into 41 folds" in str(caught.value)


def test_a_solved_head_is_calibrated_and_its_thresholds_go_with_it(solved: Path) -> None:
    result = read_json(solved / "result.json")
    made, score = result["calibration"], result["scores"]["val"]
    assert made["fitted_on"] == "cv" and set(made["per_class"]) == set(score["per_class"])
    assert made["after"]["loss"] <= made["before"]["loss"] + 0.01
    # The labels that are said of held-out images are those of before: the scale is monotone.
    held = table(solved / "predictions_cv.csv")
    scale = made.get("scale", [1 / made.get("temperature", 1)] * len(score["thresholds"]))
    shift = made.get("shift", [0.0] * len(scale))
    for c, (name, cut) in enumerate(score["thresholds"].items()):
        p = np.clip([float(row[f"p_{name}"]) for row in held], 1e-7, 1 - 1e-7)
        after = 1 / (1 + np.exp(-(np.log(p / (1 - p)) * scale[c] + shift[c])))
        said = np.array([name in row["prediction"].split("|") for row in held])
        assert (said == (after >= cut))[np.abs(after - cut) > 1e-4].all()
    text = (solved / "report.md").read_text()
    assert "Calibration error by class" in text
    session = open_session(solved / "export/model.onnx")  # of a run without a certificate
    assert [o.name for o in session.get_outputs()] == ["logits", "probabilities", "labels"]


@pytest.mark.slow
def test_step_by_step_calibration_moves_thresholds_too(stepwise: Path) -> None:
    result = read_json(stepwise / "result.json")
    made, score = result["calibration"], result["scores"]["val"]
    assert (made["method"], made["fitted_on"]) == ("vector", "val")
    rows = table(stepwise / "predictions_val.csv")
    for name, row in score["per_class"].items():
        known = [r for r in rows if f"?{name}" not in r["label"].split("|")]
        truth = np.array([name in r["label"].split("|") for r in known])
        p = np.array([float(r[f"p_{name}"]) for r in known])
        best = max(metrics.f1_score(truth, p >= t) for t in np.unique(p))
        assert row["f1"] == pytest.approx(best, abs=1e-6)
        # Chosen on val: the mean probability of yes is the share of yes, as Platt's scaling has it.
        assert p.mean() == pytest.approx(truth.mean(), abs=0.02)


@pytest.mark.slow
def test_approximate_files_and_the_service_pass_their_gates(solved: Path) -> None:
    typed = ["checkpoint.path=solved", "data=csv", "data.file=columns.csv", "stages=[export]"]
    export = ["export=[int8,onnx_fp16,service]", "export.max_drop=0.05"]
    files = ran(solved.parent, "files", *typed, *export) / "export"
    rows = {row["file"]: row for row in read_json(files / "parity.json")}
    assert set(rows) == {"model_int8.onnx", "model_fp16.onnx", "service"}
    for name in ("model_int8.onnx", "model_fp16.onnx"):
        facts = rows[name]["facts"]
        assert facts["map_network"] - facts["map"] <= 0.05 and facts["probabilities_apart"] < 0.05
    score = read_json(solved / "result.json")["scores"]["val"]
    assert rows["model_fp16.onnx"]["acc_network"] == pytest.approx(1 - score["hamming"])
    assert rows["model_fp16.onnx"]["facts"]["map_network"] == pytest.approx(score["map"])
    assert rows["service"]["facts"]["labels_agree"] == 1
    want = read_json(files / "service" / "expected.json")["probabilities"]
    assert sum(want.values()) != pytest.approx(1, abs=1e-3)


def test_views_are_averaged_a_class_at_a_time(solved: Path) -> None:
    model, image = xfer.load(solved), solved.parent / "images" / "0003.png"
    from PIL import Image, ImageOps

    flipped = ImageOps.mirror(Image.open(image).convert("RGB"))
    plain, other = model.predict([image])[0], model.predict([np.asarray(flipped)])[0]
    both = model.predict([image], tta="flip")[0]
    for name, share in both.probabilities.items():
        mean = (plain.probabilities[name] + other.probabilities[name]) / 2
        assert share == pytest.approx(mean, abs=1e-5)
    answers = []
    for i, which in enumerate(("checkpoint.path=solved", "predict.model=solved/export/model.onnx")):
        typed = ["stages=[predict]", which, "predict.input=images/000*.png", "tta=flip"]
        answers.append(table(ran(solved.parent, f"views{i}", *typed) / "predictions.csv"))
    assert [r["prediction"] for r in answers[0]] == [r["prediction"] for r in answers[1]]
    assert answers[0][0]["views"] == "2"
    row = next(r for r in answers[0] if r["path"].endswith("0003.png"))
    assert float(row["p_even"]) == pytest.approx(both.probabilities["even"], abs=1e-5)


def test_two_runs_are_compared_by_exact_match_and_map(solved: Path) -> None:
    typed = [
        *NETWORK,
        "data.file=columns.csv",
        "optim=exact",
        "optim.l2=30",
        "stages=[fit,evaluate]",
    ]
    other = ran(solved.parent, "other", *typed)
    runs = read_all([str(solved), str(other)])
    (pair,) = pairs(runs)
    one, two = (table(run / "predictions_val.csv") for run in (solved, other))
    right = []
    for rows in (one, two):
        hits = []
        for row in rows:
            has, said = (set(row[key].split("|")) - {""} for key in ("label", "prediction"))
            unknown = {name[1:] for name in has if name.startswith("?")}
            hits.append({n for n in has if not n.startswith("?")} == said - unknown)
        right.append(np.array(hits))
    assert (
        pair.first == (right[0] & ~right[1]).sum() and pair.second == (right[1] & ~right[0]).sum()
    )
    scores = [run.scores["val"]["map"] for run in runs]
    assert pair.gap is not None and pair.gap.gap == pytest.approx(scores[0] - scores[1], abs=2e-4)
    page = ran(solved.parent, "page", "stages=[compare]", "compare.runs=[solved,other]")
    text = (page / "compare.md").read_text()
    assert "Validation mAP: A" in text and "exact match, first less second" in text
    assert "paired bootstrap" in text and "true labels" in text
    assert "the product, over every class, of the probability of what it said" in text
    with pytest.raises(CommandError, match="has one label an image"):
        check_together([replace(runs[0], several=False), runs[1]])
    with chromium() as browser:
        for width in (360, 1280, 1400):
            browser.look(width)
            browser.open(page / "compare.html")
            cut = "filter(e => e.scrollWidth > e.clientWidth).length"
            assert browser.run(f"return [...document.querySelectorAll('.wide')].{cut}") == 0, (
                "a score is cut"
            )


def test_a_teacher_without_a_split_held_out_is_worth_what_its_folds_say(folded: Path) -> None:
    cv = read_json(folded / "result.json")["cv"]
    data = f"data.file={folded.parent / 'columns.csv'}"
    plan = make_plan(compose_specs([*NETWORK, data, "loss=distill", f"loss.teacher={folded}"]))
    said = f"mAP {cv['map']:.3f} cross-validated on the 150 images of its run"
    assert plan.teacher and said in teacher_lines(plan.teacher, plan.dataset, follows=False)[0]


def test_a_head_that_begins_solved_says_its_map(place: Path, solved: Path) -> None:
    typed = ["trainer.head_start=solved", "freeze=none", "optim=adamw", "trainer.max_epochs=1"]
    run = ran(place, "begun", *NETWORK, "data.file=columns.csv", *typed, "stages=[fit]")
    (begun,) = re.findall(r"the head begins solved: .*, (.*)", (run / "run.log").read_text())
    (alone,) = re.findall(r"solved: l2 .*, (mAP .*) on 120", (solved / "run.log").read_text())
    assert begun == alone


def test_a_card_is_drawn_anew(solved: Path, folded: Path) -> None:
    for run in (solved, folded):
        before = (run / "report.md").read_text()
        done = warm.start(run.parent, "report", run.name)
        said, _ = done.communicate()
        assert done.returncode == 0, said
        after = (run / "report.md").read_text()
        assert "Drawn anew from what was on disk" in after
        for part in ("## Scores", "## Classes", "## Confidence", "## Cross-validation"):
            assert (part in before) == (part in after), (run, part)
