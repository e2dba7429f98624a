from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xfer.core.types import Score
from xfer.evaluation.metrics import names, score, values
from xfer.evaluation.metrics import names as logged
from xfer.evaluation.statistics import apart, wilson


def answers(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + classes)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1
    return logits, labels


@pytest.mark.parametrize(("n", "classes"), [(40, 2), (200, 3), (300, 7)])
def test_every_metric_is_what_scikit_learn_says(n: int, classes: int) -> None:
    from sklearn import metrics as sk

    logits, labels = answers(n, classes)
    found = values(logits, labels)
    share = logits.softmax(1).double().numpy()
    share /= share.sum(1, keepdims=True)
    truth, chosen = labels.numpy(), logits.argmax(1).numpy()
    assert found["acc"] == pytest.approx(sk.accuracy_score(truth, chosen))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, chosen, average="macro"))
    assert found["loss"] == pytest.approx(sk.log_loss(truth, share), rel=1e-5)
    area = sk.roc_auc_score(truth, share[:, 1] if classes == 2 else share, multi_class="ovr")
    assert found["auroc"] == pytest.approx(area, abs=1e-6)
    assert ("top5" in found) == (classes > 5)
    if classes > 5:
        assert found["top5"] == pytest.approx(sk.top_k_accuracy_score(truth, share, k=5))
    assert {f"val_{name}" for name in found} | {"train_loss"} == set(names(classes))


def scored(right: int, n: int) -> Score:
    logits = np.where(np.arange(n)[:, None] < right, [0.0, 1.0], [1.0, 0.0])
    return score(logits, np.ones(n, np.int64), ("a", "b"), used_for_selection=False)


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    # Confidences 0.9, 0.9 (one right) and 0.6 (right): gaps 0.4 and 0.4 in bins of 2/3 and 1/3.
    share = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    found = values(share.log(), torch.tensor([0, 1, 1]))
    assert found["ece"] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilsons_interval_has_its_published_values(
    right: int, n: int, low: float, high: float
) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_a_test_split_of_another_kind_is_told_from_bad_luck() -> None:
    def scores(right: int, n: int) -> dict[str, Score]:
        return {"val": scored(81, 96), "test": scored(right, n)}

    (line,) = apart(scores(120, 240))
    assert "0.5000 of 240 images, 0.8438 of 96" in line
    assert apart(scores(180, 240)) == [] and apart(scores(240, 240)) == []
    assert apart({"val": scored(81, 96)}) == [] and apart({}) == []


def test_wilsons_interval_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_have_no_score(bad: float) -> None:
    logits, labels = answers(10, 6)
    logits[3, 2] = bad
    found = values(logits, labels)
    assert set(found) == {n.removeprefix("val_") for n in names(6)} - {"train_loss"}
    assert all(math.isnan(value) for value in found.values())


def test_a_class_without_images_has_no_area_and_the_rest_has_scores() -> None:
    logits, labels = torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 1])
    found = score(logits, labels, ("a", "b", "c"), False)
    assert found.auroc is None and found.acc == 1 and found.macro_f1 == pytest.approx(1)
    assert found.per_class["c"] == {"n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_a_score_counts_rows_by_truth_and_columns_by_answer() -> None:
    from sklearn import metrics as sk

    logits, labels = answers(120, 4)
    found = score(logits, labels, ("a", "b", "c", "d"), True)
    chosen = logits.argmax(1)
    assert np.array_equal(found.confusion, sk.confusion_matrix(labels, chosen))
    precision, recall, f1, n = sk.precision_recall_fscore_support(labels, chosen)
    for i, name in enumerate("abcd"):
        row = found.per_class[name]
        assert [row["precision"], row["recall"], row["f1"], row["n"]] == pytest.approx(
            [precision[i], recall[i], f1[i], n[i]]
        )
    assert found.acc_ci95 == wilson(int(np.trace(found.confusion)), 120)
    assert found.used_for_selection and found.to_plain()["acc_ci95"] == list(found.acc_ci95)


@pytest.mark.parametrize(("n", "classes"), [(40, 2), (200, 3), (300, 7), (400, 40)])
def test_ordinary_logits_score_as_torchmetrics_has_it(n: int, classes: int) -> None:
    from torchmetrics.functional import classification as tm

    logits, labels = answers(n, classes)
    found, share = values(logits, labels), logits.softmax(1)
    expected = {
        "macro_f1": tm.multiclass_f1_score(logits, labels, classes, average="macro"),
        "auroc": tm.multiclass_auroc(share, labels, classes, average="macro"),
        "ece": tm.multiclass_calibration_error(share, labels, classes, n_bins=15),
    }
    if classes > 5:
        expected["top5"] = tm.multiclass_accuracy(logits, labels, classes, average="micro", top_k=5)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=2e-6), name


def test_f1_leaves_out_a_class_that_neither_occurs_nor_is_answered() -> None:
    from torchmetrics.functional.classification import multiclass_f1_score

    logits, labels = torch.eye(5)[[0, 1, 2, 1]], torch.tensor([0, 1, 1, 3])
    expected = multiclass_f1_score(logits, labels, 5, average="macro")
    assert values(logits, labels)["macro_f1"] == pytest.approx(float(expected))


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_answers_too_certain_for_a_softmax_are_ranked_all_the_same(classes: int) -> None:
    from sklearn import metrics as sk

    logits, labels = answers(300, classes)
    logits *= 200 / float(logits.max())
    assert (logits.softmax(1).amax(1) == 1).float().mean() > 0.5, "float32 would not saturate"
    found, truth, z = values(logits, labels), labels.numpy(), logits.double().numpy()
    areas = []
    for c in range(classes):
        rest = np.delete(z, c, axis=1)
        odds = z[:, c] - np.logaddexp.reduce(rest, axis=1)
        areas.append(sk.roc_auc_score(truth == c, odds))
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    saturated = [sk.roc_auc_score(truth == c, logits.softmax(1)[:, c]) for c in range(classes)]
    assert abs(found["auroc"] - np.mean(saturated)) > 1e-3
    losses = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), truth]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-12)
    # scikit-learn's loss takes no share below float64's precision for what it is.
    soft = losses < 30
    share = np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])[soft]
    expected = sk.log_loss(truth[soft], share, labels=range(classes))
    assert values(z[soft], truth[soft])["loss"] == pytest.approx(expected, rel=1e-9)


def test_a_logit_far_above_all_others_is_still_ranked() -> None:
    logits = np.array([[2000, 0, 0], [1900, 0, 0], [0, 10, 0], [0, 0, 10]], np.float32)
    # The first class's images are above the others, and so are those of the rest.
    assert values(logits, [0, 0, 1, 2])["auroc"] == 1
    # The surest answer is wrong: it is above the one image of its class, and no other is.
    assert values(logits, [2, 0, 1, 2])["auroc"] == pytest.approx((2 / 3 + 1 + 0.5) / 3)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_images_of_equal_log_odds_are_equals(classes: int) -> None:
    from sklearn import metrics as sk

    random = np.random.default_rng(classes)
    labels, logits = np.arange(200) % classes, random.integers(0, 3, (200, classes)) / 4
    logits[:100] += random.integers(0, 5, (100, 1))  # which changes no probability
    areas = []
    for c in range(classes):
        others = np.delete(logits, c, axis=1)
        odds = logits[:, c] - np.logaddexp.reduce(others, axis=1)
        areas.append(sk.roc_auc_score(labels == c, odds.round(9)))
    assert values(logits, labels)["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_equal_logits_are_ranked_half_and_answered_by_the_first_classes() -> None:
    labels = np.arange(8).repeat(2)
    found = values(np.full((16, 8), 3.0), labels)
    assert found["auroc"] == 0.5
    assert (found["acc"], found["top5"]) == (1 / 8, 5 / 8)
    assert found["loss"] == pytest.approx(math.log(8)) and found["ece"] == pytest.approx(0)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    # One that rounds to 1 and one that does not: a bin of its own for 1 would tell 0.5 and 0.5.
    logits = np.array([[1000, 0], [20, 0]])
    assert values(logits, [0, 1])["ece"] == pytest.approx(0.5)
    assert values(logits, [1, 1])["ece"] == pytest.approx(1)


def test_thousands_of_classes_cost_what_occurs(tmp_path) -> None:
    """The confusion of 20,000 classes would be 3.2 GB, a column for each of them 4 MB a row."""
    import csv

    from sklearn import metrics as sk

    from xfer.core.types import Predictions
    from xfer.evaluation.predict import write_predictions
    from xfer.report.confusion import condensed, pairs

    n, count = 300, 20_000
    rng = np.random.default_rng(0)
    names = tuple(f"c{i}" for i in range(count))
    labels = rng.integers(count, size=n)
    logits = rng.normal(size=(n, count)).astype(np.float32)
    logits[np.arange(n), np.where(np.arange(n) % 3, labels, (labels + 1) % count)] += 9
    labels[:9], logits[:9] = 5, 0
    logits[:9, 6] = 9
    found = score(logits, labels, names, False)
    chosen = logits.argmax(1)
    assert found.confusion is None and found.auroc is None
    assert found.acc == sk.accuracy_score(labels, chosen)
    occurring = np.union1d(labels, chosen)
    expected = sk.f1_score(labels, chosen, labels=occurring, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(expected)
    assert found.per_class["c5"]["recall"] == 0 and len(found.per_class) == count
    counts, shown = condensed(labels, chosen, names)
    assert counts.sum() == n and counts.shape == (40, 40) and shown[-1] == "(19,961 others)"
    assert pairs(counts, count)[0] == (shown.index("c5"), shown.index("c6"), 9)
    path = tmp_path / "predictions_val.csv"
    names_of = tuple(f"{i}.png" for i in range(n))
    write_predictions(Predictions(names_of, logits, labels, names), path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0])[:5] == ["path", "label", "prediction", "confidence", "top2"]
    order = np.argsort(-logits[20], kind="stable")
    assert [rows[20][f"top{k}"] for k in range(2, 6)] == [names[i] for i in order[1:5]]
    assert path.stat().st_size < 100_000
    assert "auroc" not in values(logits, labels) and "val_auroc" not in logged(count)


@pytest.mark.parametrize(("right", "said"), [(0, True), (1, False)])
def test_an_accuracy_that_the_largest_class_has_alone_says_so(right: int, said: bool) -> None:
    labels = np.repeat([0, 1], [9, 3])
    taken = np.where(np.arange(12) < 12 - right, 0, 1)
    found = score(np.eye(2, dtype=np.float32)[taken], labels, ("no", "yes"), False)
    assert ("; no better than 'no' for every image)" in found.in_words()) == said
    alone = score(np.eye(2, dtype=np.float32)[taken], 0 * labels, ("no", "yes"), False)
    assert "no better" not in alone.in_words()
