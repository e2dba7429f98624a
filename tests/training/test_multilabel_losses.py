"""Losses of several labels: against torch's and against the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.transforms import v2

from xfer.core.errors import LabelsError
from xfer.training.loss import AsymmetricLoss, CrossEntropy
from xfer.training.multilabel_losses import Asymmetric, BinaryCrossEntropy, mixed

LABELS = torch.tensor([[1, 0, -1], [0, 1, 1], [0, 0, 0], [-1, -1, 1]])


def logits() -> torch.Tensor:
    return (3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()


def test_masked_cross_entropy_is_torchs_over_the_known() -> None:
    z, weights = logits(), [2.0, 1.0, 0.5]
    known = LABELS >= 0
    each = binary_cross_entropy_with_logits(
        z, LABELS.clamp(min=0).float(), pos_weight=torch.tensor(weights), reduction="none"
    )
    loss = BinaryCrossEntropy(weights, 0.0)(z, LABELS)
    assert loss.item() == pytest.approx(each[known].mean().item())
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()


def test_a_batch_without_a_known_label_teaches_nothing() -> None:
    z = logits()
    for loss in (BinaryCrossEntropy([1.0] * 3, 0.0), Asymmetric(0, 4, 0.05)):
        value = loss(z, torch.full((4, 3), -1))
        (gradient,) = torch.autograd.grad(value, z)
        assert value.item() == 0 and (gradient == 0).all()


def test_asymmetric_is_the_papers_formula_and_its_gradient_the_authors() -> None:
    z, positive, negative, margin = logits(), 1.0, 4.0, 0.05
    loss = Asymmetric(positive, negative, margin)(z, LABELS)
    total, slopes, count = 0.0, torch.zeros(4, 3), int((LABELS >= 0).sum())
    for i in range(4):
        for c in range(3):
            label, p = int(LABELS[i, c]), float(z[i, c].detach().sigmoid())
            q = max(p - margin, 0.0)
            if label == 1:
                total -= (1 - p) ** positive * math.log(p)
                slopes[i, c] = -((1 - p) ** positive) * (1 - p)  # d log p / dz = 1 - p
            elif label == 0:
                total -= q**negative * math.log(1 - q)
                # d log(1 - q) / dz = -p (1 - p) / (1 - q), and the factor is a constant.
                slopes[i, c] = q**negative * p * (1 - p) / (1 - q) * (q > 0)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.allclose(gradient, slopes / count, atol=1e-6)


def test_without_powers_and_margin_it_is_cross_entropy() -> None:
    z = logits()
    plain = BinaryCrossEntropy([1.0] * 3, 0.0)(z, LABELS)
    assert Asymmetric(0.0, 0.0, 0.0)(z, LABELS).item() == pytest.approx(plain.item())


@pytest.mark.parametrize(
    "spec",
    [
        CrossEntropy(),
        CrossEntropy(class_weights="balanced", label_smoothing=0.1),
        CrossEntropy(class_weights=(2.0, 1.0, 0.5)),
        AsymmetricLoss(),
        AsymmetricLoss(positive=1, negative=2, margin=0.1),
    ],
)
def test_guessing_is_the_loss_of_logits_that_are_zero(spec: CrossEntropy | AsymmetricLoss) -> None:
    has, lacks = (LABELS == 1).sum(0).tolist(), (LABELS == 0).sum(0).tolist()
    loss = spec.of_labels(has, lacks)(torch.zeros(4, 3), LABELS)
    assert spec.guessing_labels(has, lacks) == pytest.approx(loss.item(), rel=1e-5)


def test_balanced_weighs_both_sides_the_same() -> None:
    assert CrossEntropy(class_weights="balanced").positive_weights([1, 4], [9, 4]) == [9.0, 1.0]


def test_asymmetric_is_of_several_labels_alone() -> None:
    for call in (AsymmetricLoss().build, AsymmetricLoss().guessing):
        with pytest.raises(LabelsError, match="task=single has one"):
            call([3, 4])


def test_mixed_images_have_shares_of_labels_and_what_is_unknown_of_a_part_is_unknown() -> None:
    labels = torch.tensor([[1, 0, -1], [0, 0, 1], [1, -1, 1], [1, 1, 0]])
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    pictures, shares = mixed(v2.MixUp(alpha=1.0, num_classes=6), images, labels)
    rolled = images.roll(1, 0)
    lam = float(((pictures - rolled) / (images - rolled)).median())
    assert 0.05 < lam < 0.95
    for i in range(4):
        for c in range(3):
            ours, theirs = int(labels[i, c]), int(labels[i - 1, c])
            expected = -1.0 if min(ours, theirs) < 0 else lam * ours + (1 - lam) * theirs
            assert float(shares[i, c]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("spec", [CrossEntropy(), AsymmetricLoss(positive=1.0)])
def test_the_loss_of_a_share_is_that_of_both_answers(spec: CrossEntropy | AsymmetricLoss) -> None:
    loss, z, share = spec.of_labels([4] * 3, [4] * 3), logits()[:1].detach(), 0.3
    yes, no = (float(loss(z, torch.full((1, 3), value))) for value in (1.0, 0.0))
    both = float(loss(z, torch.full((1, 3), share)))
    assert both == pytest.approx(share * yes + (1 - share) * no, rel=1e-5)
    hard = loss(z, torch.ones((1, 3), dtype=torch.int64))
    assert float(hard) == yes
