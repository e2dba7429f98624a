from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import picture

from xfer.core.types import InputSpec
from xfer.data.augment import Plain, Standard, Strong
from xfer.data.preprocess import prepare

SPEC = InputSpec((24, 32), 28, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
KINDS = [Plain(), Standard(), Strong(), Strong(erasing=1, operations=4, magnitude=30)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(100, 60), (7, 50), (1, 1)])
def test_every_recipe_gives_the_input_that_the_network_wants(
    kind: Plain | Standard, size: tuple[int, int]
) -> None:
    found = kind.transform(SPEC)(picture(1, size))
    assert found.shape == (3, 24, 32) and found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_is_drawn_depends_on_torchs_generator_alone(kind: Standard) -> None:
    transform, image = kind.transform(SPEC), picture(1, (100, 60))

    def draw(seed: int) -> list[bytes]:
        np.random.seed(torch.seed() % 2**31)
        torch.manual_seed(seed)
        return [transform(image).tobytes() for _ in range(3)]

    assert draw(1) == draw(1) != draw(2)
    assert len(set(draw(1))) == 3


def test_without_augmentation_training_sees_what_validation_sees() -> None:
    image = picture(1, (100, 60))
    assert np.array_equal(Plain().transform(SPEC)(image), prepare(image, SPEC))
    assert Plain().mix(3) is None and Standard().mix(3) is None and Strong().mix(3) is None


def test_the_fields_of_the_standard_recipe_act() -> None:
    image = picture(1, (32, 24))
    whole = Standard(scale=(1.0, 1.0), ratio=(32 / 24, 32 / 24), flip=0.0).transform(SPEC)(image)
    flipped = Standard(scale=(1.0, 1.0), ratio=(32 / 24, 32 / 24), flip=1.0).transform(SPEC)(image)
    assert np.array_equal(whole[:, :, ::-1], flipped) and not np.array_equal(whole, flipped)


@pytest.mark.parametrize(
    "kind", [Strong(mixup=0.2), Strong(cutmix=1.0), Strong(mixup=0.2, cutmix=1)]
)
def test_mixed_batches_come_with_class_probabilities(kind: Strong) -> None:
    mix = kind.mix(3)
    assert mix is not None
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(3)
    mixed, shares = mix(images, labels)
    assert mixed.shape == images.shape and shares.shape == (6, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert (shares >= 0).all() and not torch.equal(mixed, images)
    torch.manual_seed(3)
    assert torch.equal(mix(images, labels)[0], mixed)
