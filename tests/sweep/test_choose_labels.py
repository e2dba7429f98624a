"""Choosing among candidates where an image has several labels: what they are judged by, how images
are dealt out, and a choice that is made; and temperatures, of either task."""

from __future__ import annotations

import json
from pathlib import Path

import labelled
import numpy as np
import pytest
import warm
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from test_choose import NONE, Guess, blobs, solved

from xfer.config.hydra import compose_specs
from xfer.core.errors import ChoiceError, DataError
from xfer.evaluation.task import Multilabel
from xfer.models.head import Knn, Linear, Mlp, Prototype
from xfer.plan.make import make_plan
from xfer.plan.resume import fingerprint
from xfer.report.card import verdict
from xfer.sweep.choosing.halving import Halving, Learned, Round, growing, halve, judge, worth
from xfer.sweep.choosing.learners import (
    FilledLearner,
    ScaledLearner,
    SolvedLearner,
    Steps,
    TrainedLearner,
)
from xfer.sweep.choosing.measure import MeanAveragePrecision
from xfer.sweep.choosing.session import _calibrated
from xfer.training.feature_moments import moments
from xfer.training.loss import CrossEntropy
from xfer.training.multilabel_logistic import LabelHeads, label_folds
from xfer.training.optim import AdamW
from xfer.training.schedule import Cosine
from xfer.workflow import run

CLASSES = 3


def several(n: int, width: int = 12, seed: int = 0, unknown: float = 0.1):
    drawn = np.random.default_rng(seed)
    labels = (drawn.random((n, CLASSES)) < [0.5, 0.3, 0.1]).astype(np.int64)
    around = np.random.default_rng(9).normal(size=(CLASSES, width))
    features = drawn.normal(size=(n, width)) + labels @ around
    labels[drawn.random(labels.shape) < unknown] = -1
    return features.astype(np.float32), labels


def of_labels(name: str, features, labels, strengths=(0.1, 0.01)) -> SolvedLearner:
    weigh = lambda some: [1.0] * some.shape[1]  # noqa: E731
    return SolvedLearner(
        name, LabelHeads([features], features, labels, weigh, 0.0, strengths, 5, 0)
    )


class Fixed:
    """Answers that are what they are, whatever is fitted to."""

    def __init__(self, name: str, logits) -> None:
        self.name, self.logits = name, logits.astype(np.float32)

    def learn(self, rows, folds, test) -> Learned:
        return Learned(self.logits[rows], self.logits[test])


def test_candidates_are_judged_by_known_labels_fold_by_fold() -> None:
    _, labels = several(120)
    drawn, every = np.random.default_rng(1), np.arange(120)
    noise = drawn.normal(size=labels.shape)
    near, far = (Fixed(name, labels * s + noise) for name, s in (("near", 3.0), ("far", 1.0)))
    halved = halve([far, near], labels, every, NONE, Halving(by="map", rungs=1))
    assert [s.name for s in halved.standings] == ["near", "far"]
    fold_of = MeanAveragePrecision().folds(labels, 5, 0)
    made = MeanAveragePrecision().of(near.logits, labels, fold_of)
    each = []
    for k in range(5):
        by_class = []
        for c in range(CLASSES):
            held = (fold_of == k) & (labels[:, c] >= 0)
            if 0 < labels[held, c].sum() < held.sum():
                by_class.append(average_precision_score(labels[held, c], near.logits[held, c]))
        each.append(np.mean(by_class))
    assert made.score == pytest.approx(np.mean(each), rel=1e-9)
    known = labels >= 0
    assert made.loss == pytest.approx(
        log_loss(labels[known], expit(near.logits[known].astype(float))), rel=1e-6
    )
    # Unknown labels could be anything.
    other = np.where(known, near.logits, 100 * noise).astype(np.float32)
    assert MeanAveragePrecision().of(other, labels, fold_of) == made


def test_a_ranking_and_a_loss_each_decide_where_they_are_asked_to() -> None:
    _, labels = several(200, unknown=0.0)
    noise = np.random.default_rng(1).normal(size=labels.shape)
    # The same order, but sure of it where it is wrong.
    sure, modest = (labels * 2 + noise * 1.0 - 1) * 20, labels * 1.5 + noise - 1
    both, every = [Fixed("sure", sure), Fixed("modest", modest)], np.arange(200)
    assert halve(both, labels, every, NONE, Halving(by="map")).winner.name == "sure"
    assert halve(both, labels, every, NONE, Halving(by="loss")).winner.name == "modest"


def test_rounds_hold_ten_images_with_each_label_and_ten_without_it() -> None:
    _, labels = several(400, unknown=0.0)
    labels[:, 2] = 0
    labels[:12, 2] = 1
    rows = np.arange(400)[::-1]
    rounds = growing(labels, rows, Halving(rungs=3))
    assert set(rounds[0]) < set(rounds[1]) < set(rounds[2]) == set(rows)
    assert len(rounds[0]) < 130
    for part in rounds:
        for side in (0, 1):
            assert (labels[part] == side).sum(axis=0).min() >= 10
    share = [labels[part, 0].mean() for part in rounds]
    assert max(share) - min(share) < 0.08


def test_an_outer_fold_takes_no_part_and_its_interval_is_of_the_folds() -> None:
    features, labels = several(90)
    seen: list[tuple[set[int], set[int]]] = []

    class Watched(SolvedLearner):
        def learn(self, rows, folds, test) -> Learned:
            seen.append((set(rows.tolist()), set(test.tolist())))
            return super().learn(rows, folds, test)

    plain = of_labels("solved", features, labels)
    filled = FilledLearner("knn", features, labels, CLASSES, Knn(multilabel=True))
    rules = Halving(rungs=1, folds=3)
    rounds = [judge([Watched("solved", plain.problem), filled], labels, rules, i) for i in (0, 1)]
    assert all(not rows & test for rows, test in seen)
    assert sorted(i for _, test in seen[:3] for i in test) == list(range(90))
    scores = [score for done in rounds for score in done.scores]
    found = worth(rounds, MeanAveragePrecision())
    assert found and found.n == 90 and (found.folds, found.repeats) == (3, 2)
    assert found.score == pytest.approx(np.mean(scores)) and found.score > 0.7
    promised = np.mean([p for done in rounds for p in done.promised])
    assert found.optimism == pytest.approx(promised - found.score)
    half = stats.t.ppf(0.975, 5) * np.sqrt((1 / 6 + 1 / 2) * np.var(scores, ddof=1))
    assert found.ci95 == pytest.approx((found.score - half, min(1, found.score + half)))


def test_a_fold_that_ranks_nothing_is_left_out_of_the_worth() -> None:
    one = Round((0.8, np.nan, 0.6), (5, 5, 5), ("a", "a", "b"), (0.9, 0.7, 0.8))
    found = worth([one], MeanAveragePrecision())
    assert found and found.score == pytest.approx(0.7) and found.optimism == pytest.approx(0.1)
    assert (
        worth([Round((np.nan,) * 2, (5, 5), ("a", "a"), (0.9, 0.7))], MeanAveragePrecision())
        is None
    )


def test_labels_that_no_fold_can_rank_cannot_be_judged() -> None:
    labels = np.ones((30, 2), np.int64)
    with pytest.raises(DataError, match="no fold holds out images with a label beside images"):
        halve([Fixed("a", np.zeros((30, 2)))], labels, np.arange(30), NONE, Halving())


def test_the_solved_learner_answers_as_scikit_learns_regressions_do() -> None:
    features, labels = several(150)
    rows, test = np.arange(110), np.arange(110, 150)
    folds = label_folds(labels[rows], 5, 0)
    learned = of_labels("a", features, labels, strengths=(0.01,)).learn(rows, folds, test)
    mean, std = moments([features[rows]])
    z = (features - mean) / std
    for c in range(CLASSES):
        known = rows[labels[rows, c] >= 0]
        theirs = LogisticRegression(C=1 / (0.01 * len(known)), tol=1e-10, max_iter=20000)
        theirs.fit(z[known], labels[known, c])
        wanted = theirs.decision_function(z[test])
        assert np.allclose(learned.answers[:, c], wanted, atol=5e-3)
    assert np.isfinite(learned.held_out).all()


def test_a_label_that_only_the_held_out_fold_has_is_neither_yes_nor_no() -> None:
    features, labels = several(60, unknown=0.0)
    labels[:, 2] = 0
    labels[7, 2] = 1
    folds = np.arange(60) % 3
    learned = of_labels("a", features, labels).learn(np.arange(60), folds, NONE)
    inside = folds == folds[7]
    assert (learned.held_out[inside, 2] == 0).all() and np.isfinite(learned.held_out).all()
    assert (learned.held_out[~inside, 2] != 0).all()


@pytest.mark.parametrize("spec", [Knn(k=7, multilabel=True), Prototype(multilabel=True)])
def test_baselines_leave_each_fold_out(spec) -> None:
    features, labels = several(100)
    rows, folds = np.arange(80), label_folds(labels[:80], 4, 0)
    test = np.arange(80, 100)
    learner = FilledLearner("a", features, labels, CLASSES, spec)
    learned = learner.learn(rows, folds, test)
    assert learned.answers.shape == (20, CLASSES)
    for k in range(4):
        others = learner.learn(rows[folds != k], np.full((folds != k).sum(), -1), rows[folds == k])
        assert np.array_equal(learned.held_out[folds == k], others.answers)


def test_a_head_is_trained_by_steps_on_known_labels() -> None:
    drawn = np.random.default_rng(0)
    features = drawn.normal(size=(240, 3)).astype(np.float32)
    bent = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).astype(np.int64)
    labels = np.stack([bent, (features[:, 2] > 0).astype(np.int64)], axis=1)
    masked = labels.copy()
    masked[::3, 0] = -1
    masked[(labels[:, 1] == 1) & (np.arange(240) % 4 > 0), 1] = -1  # absent, they would outvote
    how = (CrossEntropy(), AdamW(lr=0.03), Cosine(), 40, 40, 0, Multilabel())
    rows, test = np.arange(160), np.arange(160, 240)
    right = []
    for head in (Mlp(hidden=16), Linear()):
        learner = TrainedLearner("a", [features], features, masked, 2, Steps(head, *how))
        learned = learner.learn(rows, np.full(160, -1), test)
        right.append(((learned.answers > 0) == labels[test]).mean(axis=0))
    assert right[0][0] > 0.8 > 0.7 > right[1][0] and right[1][1] > 0.65


def test_a_candidate_is_compared_as_its_calibrated_model_will_answer() -> None:
    """What a fold held out is scaled by the other folds' temperature, which lowers the loss of a
    head that is too sure, and by no answer of its own; images to be answered by that of all."""
    for labels in (np.arange(200) % 2, several(200)[1]):
        classes = 2 if labels.ndim == 1 else CLASSES
        drawn = np.random.default_rng(3)
        truth = np.eye(2)[labels] if labels.ndim == 1 else labels == 1
        logits = 40 * (truth + drawn.normal(size=(200, classes)) - 0.5)
        plain, rows = Fixed("a", logits), np.arange(150)
        scaled = ScaledLearner(plain, labels, "auto")
        folds = np.arange(150) % 3
        test = np.arange(150, 200)
        before, after = (one.learn(rows, folds, test) for one in (plain, scaled))
        assert scaled.name == "a"
        factors = []
        for k in range(3):
            inside = folds == k
            ratio = after.held_out[inside] / before.held_out[inside]
            assert np.allclose(ratio, ratio.flat[0], rtol=1e-5)
            factors.append(float(ratio.flat[0]))
        whole = after.answers / before.answers
        assert np.allclose(whole, whole.flat[0], rtol=1e-5) and 0 < whole.flat[0] < 0.3
        assert len({*factors, float(whole.flat[0])}) == 4
        # The temperature of a fold is not moved by the answers in it.
        moved = logits.copy()
        moved[rows[folds == 0]] *= -5
        again = ScaledLearner(Fixed("a", moved), labels, "auto").learn(rows, folds, test)
        inside = folds == 0
        assert np.allclose(again.held_out[inside], after.held_out[inside] * -5, rtol=1e-4)
        losses = [
            halve([one], labels, np.arange(200), NONE, Halving(rungs=1)).winner.loss
            for one in (plain, scaled)
        ]
        assert losses[1] < losses[0] / 2


def test_a_candidate_is_scaled_where_its_plan_calibrates(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["experiment=digits_freeze", "stages=[fit]"]
    plain = Fixed("a", np.zeros((4, 2)))
    scaled = _calibrated(plain, make_plan(compose_specs(typed)))
    assert isinstance(scaled, ScaledLearner) and scaled.learner is plain
    for words in (["calibration=none"], ["head=knn", "optim=auto"]):
        assert _calibrated(plain, make_plan(compose_specs([*typed, *words]))) is plain


def test_too_few_answers_have_no_temperature() -> None:
    features, labels = blobs(8, 3, 2)
    plain = solved("a", features, labels, (0.1,))
    folds = np.arange(8) % 2
    scaled = ScaledLearner(plain, labels, "temperature").learn(np.arange(8), folds, NONE)
    assert np.array_equal(scaled.held_out, plain.learn(np.arange(8), folds, NONE).held_out)
    guess = Guess("g", np.arange(40) % 2, 0.9)
    broken = Fixed("a", np.full((40, 2), np.nan))
    for one in (guess, broken):
        learned = ScaledLearner(one, guess.labels, "temperature").learn(
            np.arange(40), np.arange(40) % 4, NONE
        )
        assert np.isfinite(learned.held_out).all() == (one is guess)


@pytest.mark.parametrize(
    ("task", "by", "fix"), [("multilabel", "acc", "map"), ("single", "map", "acc")]
)
def test_a_score_of_the_other_task_is_refused_and_the_fix_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, by: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(f"images/{n}", names) for n, names in labelled.digits(tmp_path / "images", 60)]
    labelled.write_cells(tmp_path / "cells.csv", rows)
    data = ["task=multilabel", "data=csv", "data.file=cells.csv"] if task == "multilabel" else []
    typed = ["choose=cached", "experiment=digits_freeze", *data, "stages=[]", "choose.minutes=9"]
    typed += ["choose.heads=[prototype]", "choose.freezes=[head_only]", "data.leakage=ignore"]
    with pytest.raises(ChoiceError, match=rf"E134: choose\.by: {by} is no score of images") as e:
        run(compose_specs([*typed, f"choose.by={by}"]))
    assert e.value.fix == f"type choose.by={fix}, or choose.by=loss"
    for mended in (f"choose.by={fix}", "choose.by=loss"):
        run(compose_specs([*typed, mended]))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a choice with several labels an image, and what it printed."""
    folder = tmp_path_factory.mktemp("chosen")
    rows = labelled.digits(folder / "images", 160, unlabelled=8)
    named = [(f"images/{name}", labels) for name, labels in rows]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.1)
    words = ["choose=cached", "experiment=digits_freeze", "task=multilabel", "data=csv"]
    words += [f"data.file={folder / 'columns.csv'}", "data.leakage=ignore", "run.dir=choice"]
    words += ["choose.minutes=30", "choose.repeats=1", "choose.folds=2", "choose.rungs=1"]
    words += ["choose.heads=[linear,knn]", "choose.freezes=[head_only]", "choose.by=map"]
    words += ["stages=[fit,evaluate]"]
    own = {"XFER_CACHE": str(folder / "cache"), "HF_HUB_CACHE": str(folder / "hub")}
    process = warm.start(folder, *words, **own, TORCH_HOME=str(folder / "torch"))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return folder / "choice", output


def test_a_model_is_chosen_by_map_and_finished(chosen: tuple[Path, str]) -> None:
    folder, output = chosen
    facts = json.loads((folder / "choose.json").read_text())
    rows = {row["name"].split()[1]: row for row in facts["candidates"]}
    assert set(rows) == {"linear", "knn"}
    finalists = [r for r in rows.values() if r["state"] in ("winner", "finalist")]
    assert max(finalists, key=lambda row: row["cv_map"])["name"] == facts["winner"]
    judged = facts["worth"]
    assert judged["ci95"][0] < judged["map"] < judged["ci95"][1]
    plan = json.loads((folder / "model" / "plan.json").read_text())
    assert judged["n"] == plan["splits"]["train"]["n"]
    assert 0.6 < judged["map"] < 1
    result = json.loads((folder / "model" / "result.json").read_text())
    assert result["chosen"] == {
        "candidates": 2, "cv_map": next(r["cv_map"] for r in finalists if r["state"] == "winner"),
        "worth": judged,
    }  # fmt: skip
    assert result["scores"]["val"]["map"] > 0.6
    said = f"worth {judged['map']:.4f} on images that chose nothing (95 % interval"
    assert said in output and "cross-validated mAP" in output
    card = "\n".join(verdict(result))
    assert f"the choice is worth {judged['map']:.3f} (95 %" in card
    alone = {**result, "chosen": {**result["chosen"], "worth": {**judged, "ci95": None}}}
    assert f"is worth {judged['map']:.3f} on images that" in "\n".join(verdict(alone))
    page = (folder / "choose.md").read_text()
    assert "| candidate | state | images | mAP | 95 % interval | loss |" in page
    assert "accuracy" not in page and "mAP on images that chose" in page
    assert "points of mAP" in output


def test_its_experiment_is_the_same_run(chosen: tuple[Path, str], monkeypatch) -> None:
    folder, _ = chosen
    monkeypatch.chdir(folder.parent)
    again = compose_specs(["experiment=chosen"], [str(folder / "conf")])
    plan = json.loads((folder / "model" / "plan.json").read_text())
    assert fingerprint(again.config) == plan["fingerprint"] and again.task.several


@pytest.mark.slow
def test_policies_and_heads_that_train_by_steps_are_candidates_too(tmp_path: Path) -> None:
    rows = labelled.digits(tmp_path / "images", 120)
    labelled.write_cells(tmp_path / "cells.csv", [(f"images/{n}", names) for n, names in rows])
    words = ["choose=cached", "experiment=digits_freeze", "task=multilabel", "data=csv"]
    words += ["data.file=cells.csv", "data.leakage=ignore", "run.dir=choice", "choose.minutes=60"]
    words += ["choose.repeats=1", "choose.folds=2", "choose.rungs=1", "choose.heads=[linear,mlp]"]
    words += ["choose.freezes=[head_only,lp_ft]", "trainer.max_epochs=2", "export=onnx"]
    own = {"XFER_CACHE": str(tmp_path / "cache"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    process = warm.start(tmp_path, *words, **own, TORCH_HOME=str(tmp_path / "torch"))
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    facts = json.loads((tmp_path / "choice" / "choose.json").read_text())
    assert {row["state"] for row in facts["candidates"]} <= {"winner", "finalist"}, output
    assert len(facts["candidates"]) == 3 and facts["worth"]["map"] > 0.3
