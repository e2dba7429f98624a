"""Choosing among candidates: the rounds, the folds that judge it, and what its interval covers."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
import yaml
from PIL import Image
from runs import finish, kill, wait_for
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from xfer.config.choose import Choice, refuse_choice
from xfer.config.hydra import compose_specs
from xfer.config.verbs import spelt_out
from xfer.core.errors import CombinationError, CommandError, DataError, DivergedError
from xfer.evaluation.statistics import wilson
from xfer.models.head import Knn, Mlp, Prototype
from xfer.plan.make import make_plan
from xfer.plan.resume import fingerprint
from xfer.sweep.choosing.candidates import Candidate, Weighted, listed
from xfer.sweep.choosing.choice_page import summary
from xfer.sweep.choosing.clock import TimeIsOver, TimeLimit
from xfer.sweep.choosing.halving import (
    Halving,
    Learned,
    growing,
    halve,
    judge,
    worth,
)
from xfer.sweep.choosing.learners import FilledLearner, SolvedLearner, Steps, TrainedLearner
from xfer.sweep.choosing.measure import Accuracy, MeanAveragePrecision
from xfer.sweep.choosing.pricing import Contender, Price, Scales, _step, admitted, planned
from xfer.sweep.choosing.run_choice import experiment_of, last_lines
from xfer.sweep.choosing.session import Session
from xfer.training import logistic
from xfer.training.cross_validation import HeadProblem
from xfer.training.feature_moments import moments
from xfer.training.loss import CrossEntropy
from xfer.training.optim import AdamW
from xfer.training.schedule import Cosine
from xfer.workflow import run

NONE = np.empty(0, np.int64)


def blobs(n: int, width: int, classes: int, seed: int = 0, apart: float = 1.5):
    drawn = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = drawn.normal(size=(classes, width)) * apart / np.sqrt(width) ** 0.5
    return (drawn.normal(size=(n, width)) + centres[labels]).astype(np.float32), labels


def solved(name: str, features, labels, strengths=logistic.STRENGTHS) -> SolvedLearner:
    weigh, classes = CrossEntropy().weights, int(labels.max()) + 1
    how = (weigh, False, 0.0, strengths, 5, 0)
    return SolvedLearner(name, HeadProblem([features], features, labels, (), classes, *how))


@dataclass
class Guess:
    """Right with a probability of its own, whatever it is fitted to; it notes what it was shown."""

    name: str
    labels: np.ndarray
    skill: float
    seed: int = 0
    seen: list[np.ndarray] = field(default_factory=list)
    tested: list[np.ndarray] = field(default_factory=list)

    def learn(self, rows, folds, test) -> Learned:
        self.seen.append(rows)
        self.tested.append(test)
        drawn = np.random.default_rng([self.seed, len(self.seen)])
        answer = lambda at: self._logits(self.labels[at], drawn)  # noqa: E731
        return Learned(answer(rows), answer(test))

    def _logits(self, labels, drawn):
        wrong = drawn.random(len(labels)) > self.skill
        said = np.where(wrong, 1 - labels, labels)
        return np.eye(2, dtype=np.float32)[said] * 2


def guesses(n: int, *skills: float) -> tuple[list[Guess], np.ndarray]:
    labels = np.arange(n) % 2
    return [Guess(f"g{i}", labels, skill, i) for i, skill in enumerate(skills)], labels


def test_rounds_grow_by_two_within_each_other_and_share_every_class() -> None:
    labels = np.repeat([0, 1, 2], [200, 80, 3])
    rows = np.arange(len(labels))[::-1]
    rounds = growing(labels, rows, Halving(rungs=3))
    assert [np.bincount(labels[part]).tolist() for part in rounds] == [
        [50, 20, 3],
        [100, 40, 3],
        [200, 80, 3],
    ]
    assert set(rounds[0]) < set(rounds[1]) < set(rounds[2]) == set(rows)
    again = growing(labels, rows, Halving(rungs=3))
    assert all((a == b).all() for a, b in zip(rounds, again, strict=True))
    assert [len(part) for part in growing(labels, rows[:24], Halving(rungs=3))] == [13, 14, 24]


def test_half_of_the_candidates_go_after_every_round_and_the_last_two_stay() -> None:
    candidates, labels = guesses(400, 0.55, 0.95, 0.6, 0.9, 0.5, 0.65)
    halved = halve(candidates, labels, np.arange(300), np.arange(300, 400), Halving())
    assert [len(g.seen) for g in candidates] == [1, 3, 1, 3, 1, 2]
    assert [s.name for s in halved.standings[:3]] == ["g1", "g3", "g5"]
    assert [s.images for s in halved.standings] == [300, 300, 150, 76, 76, 76]
    assert halved.winner.score == pytest.approx(0.95, abs=0.05)
    # The images to be answered are shown in the last round alone, and to those that are in it.
    assert [len(test) for test in candidates[1].tested] == [0, 0, 100]
    assert halved.answers.shape == (100, 2)


def test_the_interval_of_a_candidate_is_that_of_its_folds() -> None:
    (guess,), labels = guesses(60, 0.8)
    shown = []
    learn = guess.learn
    guess.learn = lambda rows, folds, test: shown.append(folds) or learn(rows, folds, test)
    winner = halve([guess], labels, np.arange(60), NONE, Halving(rungs=1)).winner
    (folds,) = shown
    scores = [winner.right[folds == k].mean() for k in range(5)]
    assert winner.ci95 == Accuracy().interval(winner.score, scores, 60, 5)
    assert winner.ci95[0] < winner.score < winner.ci95[1]


def test_loss_and_accuracy_each_decide_where_they_are_asked_to() -> None:
    labels = np.arange(100) % 2
    eye = np.eye(2, dtype=np.float32)

    @dataclass
    class Fixed:
        name: str
        logits: np.ndarray

        def learn(self, rows, folds, test) -> Learned:
            return Learned(self.logits[rows], self.logits[test])

    sure = eye[np.where(np.arange(100) < 4, 1 - labels, labels)] * 30
    modest = eye[np.where(np.arange(100) < 8, 1 - labels, labels)] * 2
    both = [Fixed("sure", sure), Fixed("modest", modest)]
    rows = np.arange(100)
    assert halve(both, labels, rows, NONE, Halving(by="acc")).winner.name == "sure"
    assert halve(both, labels, rows, NONE, Halving(by="loss")).winner.name == "modest"
    losses = torch.nn.functional.cross_entropy(torch.tensor(modest), torch.tensor(labels))
    best = halve(both, labels, rows, NONE, Halving(by="loss")).winner
    assert best.loss == pytest.approx(float(losses), rel=1e-6)


class Fails(Guess):
    def learn(self, rows, folds, test) -> Learned:
        raise DivergedError("fit", "the loss is NaN", "lower optim.lr", 1)


class Explodes(Guess):
    def learn(self, rows, folds, test) -> Learned:
        learned = super().learn(rows, folds, test)
        return replace(learned, held_out=np.full_like(learned.held_out, np.inf))


def test_a_candidate_that_fails_or_explodes_is_dropped_with_its_reason() -> None:
    (good,), labels = guesses(100, 0.9)
    others = [Fails("fails", labels, 1.0), Explodes("explodes", labels, 1.0)]
    halved = halve([*others, good], labels, np.arange(100), NONE, Halving())
    assert halved.winner.name == "g0"
    problems = {s.name: s.problem for s in halved.standings}
    assert problems == {
        "g0": "",
        "fails": "the loss is NaN",
        "explodes": "its answers are NaN or Inf",
    }
    with pytest.raises(DivergedError):
        halve(others[:1], labels, np.arange(100), NONE, Halving())
    with pytest.raises(DataError, match="E367"):
        halve(others[1:], labels, np.arange(100), NONE, Halving())


def test_classes_of_one_image_each_cannot_be_judged() -> None:
    (good,), _ = guesses(4, 0.9)
    with pytest.raises(DataError, match="no class has a second image to hold out"):
        halve([good], np.arange(4), np.arange(4), NONE, Halving())


def test_an_outer_fold_takes_no_part_in_the_choosing() -> None:
    candidates, labels = guesses(100, 0.7, 0.8)
    done = judge(candidates, labels, Halving(), 0)
    for guess in candidates:
        seen = iter(zip(guess.seen, guess.tested, strict=True))
        for rows, test in seen:
            assert not set(rows) & set(test)
    last = [test for test in candidates[0].tested if len(test)]
    assert sorted(np.concatenate(last).tolist()) == list(range(100))
    assert len(done.winners) == 5 and len(done.promised) == 5
    assert len(done.scores) == 5 and done.sizes == (20,) * 5
    assert np.mean(done.scores) == pytest.approx(0.8, abs=0.15)


def test_choosing_among_guesses_is_flattered_and_the_outer_folds_say_by_how_much() -> None:
    candidates, labels = guesses(60, *[0.7] * 12)
    rules = Halving(by="acc", rungs=1)
    found = worth([judge(candidates, labels, rules, number) for number in range(12)], Accuracy())
    assert found
    assert found.n == 60 and found.folds == 5 and found.repeats == 12
    assert sum(found.winners.values()) == 60
    # The best of twelve shares of 48 images lies 1.6 deviations up: 0.7 is promised as 0.81.
    assert found.score == pytest.approx(0.7, abs=0.05)
    assert found.optimism == pytest.approx(0.107, abs=0.05)
    assert found.ci95[0] < 0.7 < found.ci95[1]


def test_a_draw_of_the_folds_is_a_function_of_the_seed_and_its_number() -> None:
    features, labels = blobs(40, 4, 2)
    few = (1.0, 0.1)
    learners = [solved(name, features, labels, strengths=few) for name in "ab"]
    rules = Halving(rungs=1)
    ours, theirs = ([judge(learners, labels, rules, i) for i in (0, 1)] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        assert a == b
    other = judge(learners, labels, replace(rules, seed=1), 0)
    assert len({ours[0].scores, ours[1].scores, other.scores}) == 3


def test_images_of_a_group_are_held_out_together() -> None:
    """Frames of a film are alike, and what is in them is of the film alone: nothing to learn."""
    drawn = np.random.default_rng(0)
    groups = [f"film {i}" for i in np.repeat(np.arange(30), 6)]
    labels = np.repeat(np.arange(30) % 2, 6)
    films = drawn.normal(size=(30, 40))
    frames = (np.repeat(films, 6, axis=0) + 0.1 * drawn.normal(size=(180, 40))).astype(np.float32)
    learner = solved("a", frames, labels, strengths=(1.0, 0.1))
    apart, rules = judge([learner], labels, Halving(rungs=1), 0), Halving(rungs=1, groups=groups)
    together = judge([learner], labels, rules, 0)
    assert np.mean(apart.scores) > 0.95 and np.mean(apart.promised) > 0.95
    assert np.mean(together.scores) < 0.75 and np.mean(together.promised) < 0.75
    for measure, said in (
        (Accuracy(), labels),
        (MeanAveragePrecision(), np.eye(2, dtype=int)[labels]),
    ):
        fold_of = rules.folds_of(measure, said, np.arange(180), 0)
        held = {name: set(fold_of[np.array(groups) == name]) for name in groups}
        assert all(len(folds) == 1 for folds in held.values()) and set(fold_of) == set(range(5))


def test_the_interval_is_wilsons_with_the_corrected_number_of_images() -> None:
    scores = [0.9] * 20
    share = 5 * (1 / 20 + 1 / 4)
    expected = wilson(0.9 * 100 / share, 100 / share, stats.t.ppf(0.975, 19))
    assert Accuracy().interval(0.9, scores, 100, 5) == pytest.approx(expected)
    # Folds that differ by more than chance widen it; where all are right it is not empty.
    wild = [0.7, 1.0, 0.8, 1.0, 1.0] * 4
    low, high = Accuracy().interval(0.9, wild, 100, 5)
    assert low < expected[0] and high > expected[1]
    low, high = Accuracy().interval(1.0, [1.0] * 5, 50, 5)
    assert 0.7 < low < 0.95 and high == pytest.approx(1.0)
    assert Accuracy().interval(0.9, [0.9], 20, 1) is None


def test_the_solved_learner_answers_as_scikit_learns_regression_does() -> None:
    features, labels = blobs(120, 20, 3)
    rows, test = np.arange(90), np.arange(90, 120)
    folds = logistic.folds(labels[rows], 5, 0)
    learner = solved("a", features, labels, strengths=(0.01,))
    learned = learner.learn(rows, folds, test)
    mean, std = moments([features[rows]])
    z = (features - mean) / std
    theirs = LogisticRegression(C=1 / (0.01 * 90), tol=1e-10, max_iter=20000)
    theirs.fit(z[rows], labels[rows])
    wanted = theirs.predict_log_proba(z[test])
    ours = torch.log_softmax(torch.tensor(learned.answers), 1).numpy()
    # The path goes on below the given strength only while the loss falls.
    best = logistic.solve(
        logistic.TrainingRows(
            [features[rows]], features[rows], labels[rows], np.ones(90), np.ones(3), 0.0, folds
        ),
        (0.01,),
    )
    if best.path[best.best].l2 == 0.01:
        assert np.allclose(ours, wanted, atol=2e-3)
    assert (ours.argmax(1) == wanted.argmax(1)).mean() > 0.9
    assert (learned.held_out == best.held_out).all()


STEPS = Steps(Mlp(hidden=16), CrossEntropy(), AdamW(lr=0.03), Cosine(), epochs=40, batch_size=40)


def test_a_head_trained_on_features_learns_what_no_line_can() -> None:
    drawn = np.random.default_rng(0)
    features = drawn.normal(size=(240, 3)).astype(np.float32) * 3 + 100
    labels = ((features[:, 0] > 100) ^ (features[:, 1] > 100)).astype(np.int64)
    rows, test = np.arange(160), np.arange(160, 240)
    folds = logistic.folds(labels[rows], 2, 0)
    mlp = TrainedLearner("mlp", [features], features, labels, 2, STEPS)
    line = solved("line", features, labels, strengths=(1.0, 0.1))
    bent, straight = (one.learn(rows, folds, test) for one in (mlp, line))
    right = [(one.answers.argmax(1) == labels[test]).mean() for one in (bent, straight)]
    assert right[0] > 0.8 > 0.7 > right[1]
    assert np.isfinite(bent.held_out).all()
    again = mlp.learn(rows, folds, test)
    assert (again.answers == bent.answers).all()
    assert halve([line, mlp], labels, rows, NONE, Halving(folds=2)).winner.name == "mlp"


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_baselines_answer_as_scikit_learns_do(distance: str) -> None:
    features, labels = blobs(140, 12, 3)
    rows, test = np.arange(100), np.arange(100, 140)
    folds = logistic.folds(labels[rows], 4, 0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    x = unit if distance == "cosine" else features
    for spec, theirs in (
        (Knn(k=7, distance=distance), KNeighborsClassifier(7)),
        (Prototype(distance=distance), NearestCentroid()),
    ):
        learner = FilledLearner("a", features, labels, 3, spec)
        learned = learner.learn(rows, folds, test)
        wanted = theirs.fit(x[rows], labels[rows]).predict(x[test])
        ties = (learned.answers == learned.answers.max(1, keepdims=True)).sum(1) > 1
        assert (learned.answers.argmax(1) == wanted)[~ties].all() and ties.mean() < 0.2
        for k in range(4):
            known, held = rows[folds != k], rows[folds == k]
            wanted = theirs.fit(x[known], labels[known]).predict(x[held])
            given = learned.held_out[folds == k]
            ties = (given == given.max(1, keepdims=True)).sum(1) > 1
            assert (given.argmax(1) == wanted)[~ties].all()


def test_more_neighbours_than_images_are_all_of_them() -> None:
    features, labels = blobs(8, 3, 2)
    learner = FilledLearner("a", features, labels, 2, Knn(k=50))
    learned = learner.learn(np.arange(6), np.full(6, -1), np.array([6, 7]))
    assert learned.answers.shape == (2, 2) and np.isfinite(learned.answers).all()


def test_a_job_of_a_sweep_does_not_choose() -> None:
    refuse_choice(False)
    with pytest.raises(CombinationError, match=r"E043.*drop -m, or type choose=none"):
        refuse_choice(True)


def test_the_verb_is_a_command_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    whole = ["choose=cached", "data.root=photos", "choose.minutes=10", "seed=1"]
    assert spelt_out(["choose", "photos", "minutes=10", "seed=1"]) == whole
    typed = spelt_out(["choose", "data.root=photos", "minutes=10", "seed=1"])
    assert sorted(typed) == sorted(whole)
    for words in ([], ["minutes=10"], ["choose.folds=3"]):
        with pytest.raises(CommandError, match=r"E076: choose: .* type xfer choose DATA minutes"):
            spelt_out(["choose", *words])


DIGITS = ["choose=cached", "experiment=digits_freeze", "export=safetensors"]


def refused(*words: str) -> str:
    with pytest.raises(CombinationError) as caught:
        run(compose_specs([*DIGITS, *words]))
    return str(caught.value)


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


def test_too_few_minutes_are_refused_with_what_one_candidate_needs(
    nothing_cached: None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("choose.minutes=0.001", "choose.heads=[linear]", "choose.freezes=[head_only]")
    assert "E044: choose.minutes: 0.06 s do not pay for one candidate" in said
    needed = re.search(r"takes about (\d+) s\. Fix: type choose\.minutes=([\d.]+)$", said)
    assert needed and int(needed[1]) < 60 * float(needed[2]) < 2 * int(needed[1]) + 7
    shown = capsys.readouterr().out
    costs = r"costs \d+ s and its model \d+ s, and 0 s are left"
    assert re.search(rf"\ndigits_resnet\n  linear head_only .*ms\n    left out: {costs}\n", shown)
    assert not Path("outputs").exists()


def test_what_contradicts_a_choice_is_refused(nothing_cached: None) -> None:
    assert "E046: head: head is what choose decides. Fix: type 'choose.heads=[...]'" in refused(
        "head=mlp"
    )
    assert "E046: stages: choose ends with a model that is fitted" in refused("stages=[evaluate]")
    assert "E046: checkpoint.resume: a choice is not resumed" in refused("checkpoint.resume=auto")
    with pytest.raises(CombinationError, match=r"E045.*'choose.sources=\{BACKBONE: FILE\}'"):
        run(compose_specs(["choose=cached", "data=digits"]))
    with pytest.raises(CombinationError, match=r"E043: choose: -m starts several runs"):
        refuse_choice(compose_specs(DIGITS).choose.chooses)


def test_a_rule_about_weights_names_no_candidate(nothing_cached: None) -> None:
    asked = ["choose=cached", "data=digits", "choose.sources={resnet34: a.pt}"]
    for more, first in (("source.match=order", []), ("backbone=resnet18", ["resnet18"])):
        specs = compose_specs([*asked, more])
        names = dict.fromkeys(one.weighted.name for one in listed(specs, specs.choose))
        assert list(names) == [*first, "resnet34"]


def test_the_groups_of_a_choice_are_those_of_the_training_images(tmp_path: Path) -> None:
    lines = ["path,label,film"]
    for i in range(24):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},film {i // 3}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    data = ["data=csv", f"data.file={tmp_path / 'images.csv'}", "data.group=film"]
    specs = compose_specs([*DIGITS, *data, "data.leakage=ignore"])
    plan, session = make_plan(specs), Session.of(specs, 0.0)
    session.contenders = [SimpleNamespace(plan=plan, problem="")]
    train, groups = plan.split("train"), session._rules().groups
    assert [*groups] == [f"film {int(Path(name).stem) // 3}" for name in train.names]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which candidates were chosen among, one of which is broken, and what that
    printed."""
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "broken.safetensors").write_bytes(b"no weights")
    words = ["choose.minutes=20", "choose.repeats=1", "choose.folds=2", "choose.rungs=1"]
    words += ["data.val_fraction=0.8"]  # 179 images to choose and fit on
    words += ["choose.sources={squeezenet1_0: broken.safetensors}", "choose.freezes=[head_only]"]
    words += ["choose.by=acc", "stages=[fit,evaluate,report]"]
    process = warm.start(folder, *DIGITS, *words, **homes(folder))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return folder, output


def outcome(folder: Path) -> dict:
    (file,) = folder.glob("outputs/choose/*/choose.json")
    return json.loads(file.read_text())


def test_candidates_are_priced_before_anything_starts(chosen: tuple[Path, str]) -> None:
    lines = chosen[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("candidate"))
    end = next(i for i, line in enumerate(lines) if line.startswith("measured on two images"))
    listed = lines[start + 1 : end]
    assert [line for line in listed if line[0] != " "] == ["digits_resnet", "squeezenet1_0"]
    ours, theirs = listed[1:5], listed[6:]
    price = r" +[\d.]+ s +[\d.]+ s +[\d.]+ s +[\d.]+ ms"
    for i, head in enumerate(("linear", "mlp", "knn", "prototype")):
        assert re.fullmatch(rf"  {head} head_only{price}  takes part", ours[i])
        assert theirs[2 * i].startswith(f"  {head} head_only")
        assert theirs[2 * i + 1] == "    left out: as above" or not i
    assert re.fullmatch(r"    left out: is a text file .*; give the file of weights", theirs[1])
    assert all(len(line) <= 80 for line in lines[start : end - len(theirs)])
    assert not any("features at" in line for line in lines[:end])


def test_the_winner_is_an_ordinary_run_and_its_experiment_is_the_same_run(
    chosen: tuple[Path, str],
) -> None:
    folder, output = chosen
    facts = outcome(folder)
    rows = {row["name"]: row for row in facts["candidates"]}
    assert rows[facts["winner"]]["state"] == "winner"
    scores = {n: row["cv_acc"] for n, row in rows.items() if row["cv_acc"] is not None}
    assert len(scores) == 4 and scores[facts["winner"]] == max(scores.values())
    second = sorted(scores.values())[-2]
    assert facts["runner_up"]["acc"] == pytest.approx(second - max(scores.values()))
    model = folder / facts["model"]
    for ended, typed in ((facts["model"], model.name), ("my_choice/model", "my_choice/model")):
        told = last_lines({**facts, "model": ended}, Path("my_choice"))
        assert f"\nnext: xfer predict {typed} IMAGES\n" in told
    result = json.loads((model / "result.json").read_text())
    assert result["status"] == "finished" and result["scores"]["val"]["acc"] > 0.75
    card = (model / "report.md").read_text()
    first = result["chosen"]["worth"]["acc"]  # judged once, before the model was made
    assert first == facts["worth"]["acc"] and result["chosen"]["candidates"] == 4
    assert f"accuracy {scores[facts['winner']]:.3f} is flattered by that: the choice" in card
    assert f"is worth {first:.3f} (95 % interval" in card
    assert json.loads((model / "status.json").read_text())["state"] == "finished"
    assert "read from the cache" in output  # the features that were computed to choose
    (conf,) = folder.glob("outputs/choose/*/conf")
    again = compose_specs(["experiment=chosen"], [str(conf)])
    plan = json.loads((model / "plan.json").read_text())
    assert fingerprint(again.config) == plan["fingerprint"]
    assert again.stages == ("fit", "evaluate", "report")
    assert f"--config-dir={conf.relative_to(folder)} experiment=chosen" in output


def test_a_runner_up_that_is_no_worse_costs_no_negative_nothing(
    chosen: tuple[Path, str],
) -> None:
    facts = outcome(chosen[0])

    def said(acc: float, ms: float | None) -> str:
        other = {**facts["runner_up"], "name": "other", "acc": acc, "ms": ms}
        line = next(t for t in summary({**facts, "runner_up": other}) if "runner-up" in t)
        return line.removeprefix("the runner-up other ").partition(" (")[0]

    assert said(-0.049, 11.31) == "would cost 4.9 points of accuracy, +11.3 ms an image"
    assert said(0.0, -0.04) == said(-0.0004, 0.0) == "has the same accuracy and is as fast"
    for optimism, words in (
        (0.0104, "1.0 points;"),
        (-0.0002, "none;"),
        (-0.0101, "none, the winners held 1.0 points more than their folds promised;"),
    ):
        judged = {**facts, "worth": {**facts["worth"], "optimism": optimism}}
        assert f"optimism of choosing: {words} the same" in summary(judged)[2]
    assert said(0.021, None) == "would gain 2.1 points of accuracy"
    why = "its log loss is larger, and that decided (choose.by=loss)"
    for by, acc in (("loss", 0.021), ("loss", -0.021), ("acc", 0.021)):
        text = summary({**facts, "by": by, "runner_up": {**facts["runner_up"], "acc": acc}})
        assert (why in " ".join(text)) == (by == "loss" and acc > 0)


def test_an_experiment_names_its_files_wherever_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["data=folder", "data.root=images", "source=file", "source.path=here/net.safetensors"]
    wanted = [str(tmp_path / "images"), str(tmp_path / "here/net.safetensors")]
    made = yaml.safe_load(experiment_of(compose_specs(typed), "named"))
    assert [made["data"]["root"], made["source"]["path"]] == wanted
    hub = ["source=hub", "source.path=hf://timm/resnet18.a1_in1k/model.safetensors"]
    made = yaml.safe_load(experiment_of(compose_specs([*typed[:2], *hub]), "named"))
    assert made["source"]["path"] == hub[1].partition("=")[2]


def test_what_the_choice_is_worth_is_printed_with_its_optimism(chosen: tuple[Path, str]) -> None:
    folder, output = chosen
    worthy = outcome(folder)["worth"]
    assert worthy["n"] == 179 and worthy["folds"] == 2 and worthy["repeats"] == 1
    assert sum(worthy["winners"].values()) == 2
    assert worthy["ci95"][0] < worthy["acc"] < worthy["ci95"][1]
    # Of fits to 90 images; the model, fitted to 179, gets 0.8 of other images right.
    assert worthy["acc"] == pytest.approx(0.75, abs=0.12)
    assert f"worth {worthy['acc']:.4f} on images that chose nothing" in output
    points = round(100 * worthy["optimism"], 1)
    assert f"optimism of choosing: {f'{points} points' if points > 0 else 'none'}" in output
    assert "everything was tried, so it ends earlier" in output
    page = next(folder.glob("outputs/choose/*/choose.html"))
    assert f"\npage: {page.relative_to(folder)}\n" in output
    text = page.with_suffix(".md").read_text()
    assert text.count("| squeezenet1_0 ") == 4 and "optimism of choosing" in text
    links = re.findall(r'href="([^"]+)"', page.read_text())
    assert [(page.parent / link).resolve() for link in links] == [
        (folder / outcome(folder)["model"] / "report.html").resolve()
    ]
    status = json.loads(next(folder.glob("outputs/choose/*/status.json")).read_text())
    assert status["state"] == "finished" and "choose.json" in status["files"]


FEW = [*DIGITS, "choose.minutes=20", "choose.repeats=1", "choose.folds=2", "choose.rungs=1"]
FEW += ["choose.heads=[prototype]", "choose.freezes=[head_only]", "stages=[fit]"]
FEW += ["data.val_fraction=0.8"]


def homes(folder: Path) -> dict[str, str]:
    """Caches of its own for a process."""
    names = {"XFER_CACHE": "cache", "HF_HUB_CACHE": "hub", "TORCH_HOME": "torch"}
    return {name: str(folder / place) for name, place in names.items()}


@pytest.mark.parametrize("place", ["xfer.sweep.choosing.session.halve", "xfer.workflow._stages"])
def test_a_choice_that_is_interrupted_says_what_is_kept(tmp_path: Path, place: str) -> None:
    """While it chooses, and in the run that trains the winner."""
    hook = (
        f"import os, signal, time, {place.rpartition('.')[0]}\n"
        f"{place} = lambda *given: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60))\n"
    )
    process = warm.start(tmp_path, *FEW, script=hook + warm.COMMAND, **homes(tmp_path))
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert [line for line in said.splitlines() if line.startswith("stopped")] == [
        "stopped by SIGINT; the features that were computed are cached, and the same command "
        "begins anew"
    ]


def test_a_choice_that_was_killed_begins_anew_and_says_so(tmp_path: Path) -> None:
    words, own = FEW, homes(tmp_path)
    process = warm.start(tmp_path, *words, **own)
    wait_for(lambda: [*tmp_path.glob("outputs/choose/*/config.yaml")], process)
    kill(process)
    (dead,) = tmp_path.glob("outputs/choose/*")
    before = {path: path.read_bytes() for path in dead.rglob("*") if path.is_file()}
    assert json.loads((dead / "status.json").read_text())["state"] == "running"
    output = finish(warm.start(tmp_path, *words, **own))
    assert f"{dead.relative_to(tmp_path)} was killed before it ended and stays as it is" in output
    assert {path: path.read_bytes() for path in before} == before
    (alive,) = set(tmp_path.glob("outputs/choose/*")) - {dead}
    assert json.loads((alive / "choose.json").read_text())["model"]
    # In a folder that was named, what is left of it is in the way.
    again = warm.start(tmp_path, *words, f"run.dir={dead}", **own)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 9
    assert "already holds files. Fix: choose another run.dir, or remove the folder" in said


@pytest.mark.slow
def test_a_policy_that_trains_the_backbone_is_chosen_for_real(tmp_path: Path, assets: Path) -> None:
    """Photographs and a pretrained SqueezeNet, of which every candidate trains all or the head."""
    for place in ("train/ants", "train/bees", "val/ants", "val/bees"):
        images = sorted((assets / "Hymenoptera" / place).iterdir())[:12]
        (tmp_path / "photos" / place).mkdir(parents=True)
        for path in images:
            shutil.copy(path, tmp_path / "photos" / place)
    weights = assets / "weights" / "squeezenet1_0_imagenet.safetensors"
    words = ["choose=cached", "data.root=photos", f"choose.sources={{squeezenet1_0: {weights}}}"]
    words += ["choose.minutes=30", "choose.folds=2", "choose.rungs=1", "choose.repeats=1"]
    words += ["choose.heads=[linear]", "choose.freezes=[lp_ft]", "trainer.max_epochs=2"]
    words += ["data.batch_size=8", "stages=[fit,evaluate]"]
    own = {"XFER_CACHE": str(tmp_path / "cache"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    output = finish(warm.start(tmp_path, *words, **own, TORCH_HOME=str(tmp_path / "torch")))
    facts = outcome(tmp_path)
    assert facts["winner"] == "squeezenet1_0 linear lp_ft" and facts["worth"]["n"] == 24
    assert facts["worth"]["acc"] > 0.6, output
    proof = json.loads((tmp_path / facts["model"] / "freeze_proof.json").read_text())
    assert [phase["phase"] for phase in proof["phases"]]
    assert not [*tmp_path.glob("outputs/choose/*/.fit_*")]


def priced(name: str, features: float, choosing: float, model: float, **more) -> Contender:
    backbone, head, freeze = name.split()
    candidate = Candidate(Weighted(backbone), head, freeze)
    return Contender(candidate, price=Price(features, choosing, model, 1.0), **more)


def test_the_cheapest_take_part_and_features_of_a_backbone_are_paid_once() -> None:
    contenders = [
        priced("a linear head_only", 30, 10, 8),
        priced("a mlp head_only", 30, 20, 8),
        priced("b linear head_only", 60, 5, 8),
        priced("b linear none", 0, 500, 100, kind="images"),
        priced("c linear head_only", 1, 1, 1, problem="its file is broken"),
    ]
    # 40 for the first, 20 for the second on the same features, and 1.25 times 8 for a model.
    whole = {c.name: c.problem for c in admitted(contenders, 70)}
    assert [name for name, problem in whole.items() if not problem] == [
        "a linear head_only",
        "a mlp head_only",
    ]
    assert whole["b linear head_only"] == "costs 65 s and its model 10 s, and 10 s are left"
    assert whole["c linear head_only"] == "its file is broken"
    short = admitted(contenders, 69.9)
    assert [c.name for c in short if not c.problem] == ["a linear head_only"]
    assert [c.problem for c in admitted(contenders, 760)][:4] == [""] * 4


def test_a_price_is_the_least_of_three_and_files_are_tried_on_the_images_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    took = cycle([100.0, 1.0, 7.0])  # of three things that are timed, the first is the slowest

    def timed(act: Callable[[], object]) -> float:
        act()
        return next(took)

    specs = compose_specs(["experiment=digits_freeze", "data.val_fraction=0.05", "export=onnx"])
    plan = make_plan(specs)
    train, val = len(plan.split("train")), len(plan.split("val"))
    assert val < specs.export.gate.images
    monkeypatch.setattr("xfer.sweep.choosing.pricing._timed", timed)
    assert _step(plan) == 0.5  # of two images
    candidate = Candidate(Weighted("digits_resnet"), "linear", "head_only")
    choice = Choice(folds=2, rungs=1)
    scales = Scales(choice)
    price = scales.price(planned(candidate, plan), 0.0).price
    assert price and price.ms == 500
    views = (specs.features.views_of(plan.specs.augment.random, 1_000_000) or 0) + 1
    assert price.features == pytest.approx(train * views + val)
    learnt = price.choosing / choice.folds
    assert price.model - learnt == pytest.approx(6 * 0.5 * val + val)


def test_the_time_limit_ends_what_takes_every_error_for_its_own() -> None:
    clock = TimeLimit(0.2 / 60, time.perf_counter())
    with (
        pytest.raises(TimeIsOver, match=r"E044.*ended before the model was finished"),
        clock.limit(),
    ):
        try:
            time.sleep(300)
        except Exception:  # as an export does it
            pytest.fail("the end was taken for an error")
        pytest.fail("it slept to its end")
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert clock.left < 0
    with pytest.raises(TimeIsOver), clock.limit():
        pytest.fail("nothing is begun when the time is over")


def test_an_end_that_rings_when_the_work_is_just_done_is_that_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setitimer = signal.setitimer

    def rings(which: int, seconds: float) -> None:
        if seconds == 0:
            signal.raise_signal(signal.SIGALRM)
        setitimer(which, seconds)

    monkeypatch.setattr("signal.setitimer", rings)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeIsOver), TimeLimit(60, time.perf_counter()).limit():
        pass
    setitimer(signal.ITIMER_REAL, 0)
    assert signal.getsignal(signal.SIGALRM) is before


class Slow:
    """What is raised while this is finalized is dropped by Python, which only says so."""

    def __del__(self) -> None:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass


def test_an_end_that_python_drops_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", dropped.append)
    clock = TimeLimit(0.2 / 60, time.perf_counter())
    told = r"E044.*, but for 0 s held back for the model, ended before one was chosen"
    with pytest.raises(TimeIsOver, match=told), clock.limit(reserve=0.1):
        Slow()
        time.sleep(5)
    assert not dropped
