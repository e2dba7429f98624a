from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from xfer.core.seeds import derive
from xfer.core.types import InputSpec, Samples
from xfer.data.augment import AugMix, AutoAugment, Plain, Standard, Strong, TrivialAugment
from xfer.data.image import Files
from xfer.data.loader import TrainLoader, train_images
from xfer.data.preprocess import prepare

SPEC = InputSpec((24, 32), 28, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 1.5, "hue": 0.2}
ALL_KEYS = {"vertical_flip": 0.5, "rotation": 30.0, "grey": 0.3, **JITTER}
NEW = [
    Standard(**ALL_KEYS),
    AutoAugment(),
    AutoAugment(policy="svhn", erasing=0.5),
    TrivialAugment(),
    TrivialAugment(**ALL_KEYS),
    AugMix(),
    AugMix(severity=10, width=2, depth=4, alpha=0.5),
]
KINDS = [Plain(), Standard(), Strong(), Strong(erasing=1, operations=4, magnitude=30), *NEW]


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
        random.seed(torch.seed())
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


BILINEAR = InterpolationMode.BILINEAR
POLICIES: list[tuple[Standard, Callable[[], Any]]] = [
    (Strong(erasing=0), lambda: v2.RandAugment(2, 9, interpolation=BILINEAR)),
    (AutoAugment(), lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, BILINEAR)),
    (
        AutoAugment(policy="cifar10"),
        lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, BILINEAR),
    ),
    (AutoAugment(policy="svhn"), lambda: v2.AutoAugment(v2.AutoAugmentPolicy.SVHN, BILINEAR)),
    (TrivialAugment(), lambda: v2.TrivialAugmentWide(interpolation=BILINEAR)),
    (AugMix(), lambda: v2.AugMix()),
    (
        AugMix(severity=7, width=2, depth=4, alpha=0.3),
        lambda: v2.AugMix(severity=7, mixture_width=2, chain_depth=4, alpha=0.3),
    ),
]


def cropped_and_flipped(image: Image.Image) -> Image.Image:
    crop = v2.RandomResizedCrop(
        (24, 32), (0.08, 1), (0.75, 1.333), interpolation=InterpolationMode.BICUBIC
    )
    flipped: Image.Image = v2.RandomHorizontalFlip()(crop(image))
    return flipped


def as_input(image: Image.Image) -> np.ndarray[Any, Any]:
    """torchvision's, in floating point, where xfer looks pixels up in a table."""
    pixels = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
    array: np.ndarray[Any, Any] = v2.functional.normalize(
        pixels, list(SPEC.mean), list(SPEC.std)
    ).numpy()
    return array


IDS = [f"{type(kind).__name__} {i}" for i, (kind, _) in enumerate(POLICIES)]


@pytest.mark.parametrize(("kind", "theirs"), POLICIES, ids=IDS)
def test_a_policy_gives_the_pixels_of_torchvisions(
    kind: Standard, theirs: Callable[[], Any]
) -> None:
    transform, image = kind.transform(SPEC), picture(1, (100, 60))
    for seed in range(30):
        torch.manual_seed(seed)
        expected = as_input(theirs()(cropped_and_flipped(image)))
        torch.manual_seed(seed)
        np.testing.assert_allclose(transform(image), expected, atol=1e-5)


def test_rotation_colour_and_grey_give_the_pixels_of_torchvision_for_what_was_drawn() -> None:
    kind = Standard(**ALL_KEYS)
    transform, image = kind.transform(SPEC), picture(2, (100, 60))
    turn, jitter = v2.RandomRotation(30), v2.ColorJitter(0.4, 0.3, 1.5, 0.2)
    changes = v2.functional
    operations = [
        (changes.adjust_brightness, "brightness_factor"),
        (changes.adjust_contrast, "contrast_factor"),
        (changes.adjust_saturation, "saturation_factor"),
        (changes.adjust_hue, "hue_factor"),
    ]
    flipped = grey = 0
    for seed in range(40):
        torch.manual_seed(seed)
        view = cropped_and_flipped(image)
        if torch.rand(1) < 0.5:
            view, flipped = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM), flipped + 1
        angle = turn.make_params([view])["angle"]
        assert -30 <= angle <= 30
        view = changes.rotate(view, angle, interpolation=BILINEAR)
        drawn = jitter.make_params([view])
        assert 0 <= drawn["saturation_factor"] <= 2.5 and abs(drawn["hue_factor"]) <= 0.2
        for number in drawn["fn_idx"]:
            operation, name = operations[number]
            view = operation(view, drawn[name])
        if torch.rand(1) < 0.3:
            view, grey = view.convert("L").convert("RGB"), grey + 1
        torch.manual_seed(seed)
        np.testing.assert_allclose(transform(image), as_input(view), atol=1e-5)
    assert 10 < flipped < 30 and 5 < grey < 20


@pytest.mark.parametrize("key", ["vertical_flip", "rotation", "grey", *JITTER])
def test_each_key_acts_alone_and_what_is_off_draws_nothing(key: str) -> None:
    image = picture(1, (100, 60))
    torch.manual_seed(5)
    expected = as_input(cropped_and_flipped(image))
    torch.manual_seed(5)
    np.testing.assert_allclose(Standard().transform(SPEC)(image), expected, atol=1e-5)
    torch.manual_seed(5)
    strongest = {"hue": 0.5, "grey": 1.0, "vertical_flip": 1.0}.get(key, 0.9)
    one = Standard(**{key: strongest if key != "rotation" else 40.0}).transform(SPEC)(image)
    assert not np.allclose(one, expected, atol=1e-2)


def modes(folder: Path) -> Files:
    """Files of every kind of pixel, odd and tiny sizes among them."""
    pictures = [
        *(picture(i, (40, 30)).convert(mode) for i, mode in enumerate(("L", "P", "1", "CMYK"))),
        *(picture(9, (33, 7)).convert(mode) for mode in ("RGBA", "LA")),
        Image.fromarray(np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)),
        *(picture(3, size) for size in ((1, 1), (1, 50), (333, 7), (31, 1))),
    ]
    for i, image in enumerate(pictures):
        image.save(folder / f"{i:02d}.{'tif' if image.mode == 'CMYK' else 'png'}")
    return Files(tuple(sorted(folder.iterdir())))


@pytest.mark.parametrize("kind", NEW, ids=lambda it: repr(it)[:40])
def test_pictures_depend_on_epoch_image_and_seed_and_not_on_the_workers(
    kind: Standard, tmp_path: Path
) -> None:
    images = modes(tmp_path)
    names = tuple(path.name for path in images.paths)
    samples = Samples(names, np.zeros(len(names), np.int64), images, "")
    pictures = train_images(samples, SPEC, kind)
    views: dict[int, torch.Tensor] = {}
    for workers in (0, 2):
        loader = TrainLoader(pictures, 4, workers, pin=False, seed=1)
        loader.order.set_epoch(3)
        torch.manual_seed(workers)  # what the process has drawn so far changes nothing
        views[workers] = torch.cat([batch for batch, _ in loader])
    assert torch.equal(views[0], views[2]) and torch.isfinite(views[0]).all()
    assert views[0].shape == (len(names), 3, 24, 32)
    first, again, other = (pictures[view, 0][0] for view in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    torch.manual_seed(derive("augment", kind.seed, 0, 0))
    assert np.array_equal(first, kind.transform(SPEC)(images[0]))


def test_the_picture_of_the_page_is_drawn_by_its_script_and_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = Path(__file__).parents[2] / "docs"
    drawn, shown = tmp_path / "augment.jpg", docs / "images" / "augment.jpg"
    monkeypatch.setattr(sys, "argv", ["augmentations.py", str(drawn)])
    runpy.run_path(str(docs / "augmentations.py"), run_name="__main__")
    with Image.open(drawn) as ours, Image.open(shown) as theirs:
        assert ours.size == theirs.size
    assert shown.stat().st_size < 100_000
