"""A cross-validation on cached features: whole runs, and what no fold may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import facts, table

import xfer
from xfer.core.errors import CombinationError, DataError
from xfer.data.folds import divided
from xfer.training import logistic
from xfer.training.cross_validation import HeadProblem
from xfer.training.feature_moments import moments
from xfer.training.head_problem import out_of_fold

L2 = ["optim=exact", "optim.l2=0.01"]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folded")
    options = [*L2, "data.folds=3", "data.repeats=2", "stages=[fit,evaluate,report]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return (place / xfer.run("digits_freeze", options).folder).resolve()


def test_the_result_is_what_the_table_says(folded: Path) -> None:
    rows, cv = table(folded, "predictions_oof.csv"), facts(folded)["cv"]
    assert len(rows) == 2 * 896 and cv["n"] == 896
    assert (cv["folds"], cv["repeats"]) == (3, 2)
    right = [row["label"] == row["prediction"] for row in rows]
    assert cv["acc"] == pytest.approx(np.mean(right))
    losses = [-np.log(max(float(row[f"p_{row['label']}"]), 5e-7)) for row in rows]
    assert cv["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    low, high = cv["acc_ci95"]
    assert 0 < low < cv["acc"] < high < 1
    assert cv["used_for_selection"] is False and cv["final_epochs"] is None
    assert facts(folded)["scores"] == {}, "no image is left to score the final model on"


def test_a_fold_alone_answers_as_it_does_in_the_whole(folded: Path, tmp_path: Path) -> None:
    options = [*L2, "data.folds=3", "data.repeats=2", "data.fold=4", "stages=[fit,evaluate]"]
    alone = xfer.run("digits_freeze", [*options, f"run.dir={tmp_path / 'alone'}"]).folder
    rows = table(folded, "predictions_oof.csv")
    ours = {r["path"]: r for r in rows if (r["repeat"], r["fold"]) == ("1", "1")}
    theirs = {r["path"]: r for r in table(alone, "predictions_val.csv")}
    assert ours.keys() == theirs.keys() and len(ours) in (298, 299)
    for name, row in theirs.items():
        for key in ("p_5", "p_9"):
            assert float(ours[name][key]) == pytest.approx(float(row[key]), abs=2e-3)
    assert facts(alone)["cv"] is None
    logits = np.load(alone / "logits_val.npy")
    assert logits.shape == (len(theirs), 5) and logits.dtype == np.float32


def test_the_final_model_is_that_of_all_images(folded: Path) -> None:
    plan = facts(folded, "plan.json")
    assert {name: split["n"] for name, split in plan["splits"].items()} == {"train": 896}
    assert plan["folds"]["sizes"] == [[299, 299, 298]] * 2
    checkpoint = xfer.load(folded)
    assert dict(checkpoint.card.splits) == {"train": plan["splits"]["train"]["sha256"]}
    assert facts(folded)["solved"]["n"] == 896


def test_the_card_says_which_number_belongs_to_what(folded: Path) -> None:
    text = (folded / "report.md").read_text()
    assert "**Cross-validated accuracy 0." in text and "## Cross-validation" in text
    assert "The final model was fitted on all 896 of these images and is not scored on" in text
    assert "Nadeau and Bengio" in text and "No split was scored" not in text
    assert "of fits that had not seen the image" in text
    page = (folded / "report.html").read_text()
    assert "By fold" in page and "(6 rows)" not in page
    for name in ("confusion_matrix", "prediction_grid", "curves", "batch_grid"):
        assert (folded / "figures" / f"{name}.png").is_file()


def test_the_last_lines_show_the_accuracy_with_its_interval(folded: Path) -> None:
    cv = facts(folded)["cv"]
    log = (folded / "run.log").read_text()
    low, high = cv["acc_ci95"]
    assert f"cv accuracy  {cv['acc']:.4f} (896 images in 3 folds, 2 times; 95 %" in log
    assert f"{low:.4f} to {high:.4f}" in log


def test_a_split_of_the_images_that_it_was_fitted_on_is_warned_of(folded: Path) -> None:
    again = ["stages=[evaluate]", f"checkpoint.path={folded}"]
    warned = facts(xfer.run("digits_freeze", again).folder)["warnings"]
    assert any("179 of 179 images have the names of images" in line for line in warned)
    with pytest.raises(DataError) as caught:
        xfer.run("digits_freeze", [*again, "data.folds=3"])
    assert caught.value.number == 355


def problem(x: np.ndarray, y: np.ndarray, groups: tuple[str, ...] = (), **more) -> HeadProblem:
    strengths = more.pop("strengths", (1.0, 0.1, 0.01))
    count = int(y.max()) + 1
    return HeadProblem([x], x, y, groups, count, lambda n: None, False, 0.0, strengths, 3, 0)


def noise(n: int = 60, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return (drawn.normal(size=(n, d)) + y[:, None] * 0.7).astype(np.float32), y


def test_what_a_fold_holds_out_changes_nothing_of_its_answers_but_its_own() -> None:
    x, y = noise()
    folds = np.array([divided(y, None, 4, 0)])
    before = out_of_fold(problem(x, y), folds)
    (held,) = np.flatnonzero(folds[0] == 2)[:1]
    other, label = x.copy(), y.copy()
    other[held] += 100
    after = out_of_fold(problem(other, y), folds)
    same = (folds[0] == 2) & (np.arange(60) != held)
    assert (before[0, same] == after[0, same]).all(), "the held-out image was seen"
    label[held] = 1 - label[held]
    flipped = out_of_fold(problem(x, label), folds)
    assert (before[0, folds[0] == 2] == flipped[0, folds[0] == 2]).all(), "its label was seen"
    assert not (before[0, folds[0] != 2] == flipped[0, folds[0] != 2]).all()


def test_the_answers_are_those_of_a_fit_on_the_other_folds_by_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = noise(90)
    folds = np.array([divided(y, None, 3, 5)])
    ours = out_of_fold(problem(x, y, strengths=(0.1,)), folds)[0]
    for fold in range(3):
        held = folds[0] == fold
        mean, std = moments([x[~held]])
        z = (x - mean) / std
        # Half the squared weights of two classes is a quarter of the squared difference.
        model = LogisticRegression(C=1 / (0.1 / 2 * (~held).sum()), tol=1e-10, max_iter=10000)
        model.fit(z[~held], y[~held])
        theirs = model.decision_function(z[held])
        assert ours[held, 1] - ours[held, 0] == pytest.approx(theirs, abs=2e-3)


def test_chance_is_chance_where_labels_are_drawn() -> None:
    """The strength is chosen inside, so that nothing is gained from labels without meaning."""
    right = []
    for seed in range(6):
        drawn = np.random.default_rng(seed)
        x, y = drawn.normal(size=(80, 30)).astype(np.float32), drawn.permutation(np.arange(80) % 2)
        folds = np.array([divided(y, None, 4, seed)])
        right.append((out_of_fold(problem(x, y), folds)[0].argmax(axis=1) == y).mean())
    assert 0.38 < np.mean(right) < 0.58


def test_no_strength_can_be_chosen_where_a_part_has_one_group_a_class() -> None:
    x, y = noise(40)
    groups = tuple(f"{label}{i // 2 % 2}" for i, label in enumerate(y))
    folds = np.array([[int(name[1]) for name in groups]])
    with pytest.raises(CombinationError) as caught:
        out_of_fold(problem(x, y, groups), folds)
    assert caught.value.number == 9 and "optim=exact optim.l2=0.1" in caught.value.fix
    assert np.isfinite(out_of_fold(problem(x, y, groups, strengths=(0.1,)), folds)).all()


def test_the_order_of_loss_is_unchanged_by_fewer_steps() -> None:
    x, y = noise(120, 20, 3)
    whole = problem(x, y, strengths=logistic.STRENGTHS)
    exact, near = (
        logistic.solve(whole.rows(part), whole.strengths, nearly)
        for part, nearly in ((None, False), (np.arange(120), True))
    )
    assert [row.l2 for row in exact.path] == [row.l2 for row in near.path]
    assert near.path[near.best].cv_loss == pytest.approx(exact.path[exact.best].cv_loss, abs=1e-3)
