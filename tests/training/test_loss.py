from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xfer.core.errors import ConfigError
from xfer.training.loss import CrossEntropy

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.1, -1.0, 3.0]])
LABELS = torch.tensor([1, 0])


def test_the_plain_loss_is_the_mean_negative_log_probability() -> None:
    expected = -LOGITS.log_softmax(1)[[0, 1], LABELS].mean()
    torch.testing.assert_close(CrossEntropy().build([1, 1, 1])(LOGITS, LABELS), expected)


def test_balanced_weights_are_inverse_to_the_share_of_images() -> None:
    weights = CrossEntropy(class_weights="balanced").weights([10, 30])
    assert weights == pytest.approx([2.0, 2 / 3])
    assert sum(w * n for w, n in zip(weights or [], [10, 30], strict=True)) / 40 == pytest.approx(1)


def test_given_weights_and_smoothing_reach_the_loss() -> None:
    loss = CrossEntropy(label_smoothing=0.2, class_weights=(1.0, 2.0, 3.0)).build([1, 1, 1])
    expected = F.cross_entropy(
        LOGITS, LABELS, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.2
    )
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)


def test_class_probabilities_are_targets_too() -> None:
    loss = CrossEntropy().build([1, 1, 1])
    torch.testing.assert_close(loss(LOGITS, F.one_hot(LABELS, 3).float()), loss(LOGITS, LABELS))


def test_weights_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 2 numbers for 3 classes"):
        CrossEntropy(class_weights=(1.0, 2.0)).build([1, 1, 1])
