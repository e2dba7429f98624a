from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xfer.logged import names
from xfer.metrics import score, values
from xfer.statistics import wilson


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
