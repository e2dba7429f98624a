from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from xfer.core.errors import ConfigError
from xfer.core.types import InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import fit_to_size, normalise, of_timm, of_torchvision, prepare, restore

SIZES = [(375, 500), (501, 333), (224, 224), (100, 80), (57, 301), (1000, 400)]
TORCHVISION = ["squeezenet1_0", "resnet50", "inception_v3", "efficientnet_b0", "maxvit_t"]
TIMM = [
    "resnet18",
    "vit_small_patch16_224",
    "convnext_tiny",
    "mobilenetv3_large_100",
    "volo_d4_448",
]


@pytest.fixture(scope="session")
def photographs(assets: Path) -> list[Image.Image]:
    """Real ones as they are, and cut to odd, upright, wide and small sizes."""
    files = sorted((assets / "Canidae" / "val").rglob("*.jpg"))[::20][:3]
    real = [decode(file) for file in files]
    return real + [real[0].resize(size) for size in SIZES]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_weights_see_what_their_own_transform_gives(
    name: str, photographs: list[Image.Image]
) -> None:
    from torchvision import models

    theirs = models.get_model_weights(name).DEFAULT.transforms()
    spec = of_torchvision(theirs)
    for image in photographs:
        np.testing.assert_allclose(prepare(image, spec), theirs(image).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
def test_timm_weights_see_what_their_own_transform_gives(
    name: str, photographs: list[Image.Image]
) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.get_pretrained_cfg(name).to_dict()
    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=config))
    spec = of_timm(config)
    for image in photographs:
        np.testing.assert_allclose(prepare(image, spec), theirs(image).numpy(), atol=1e-5)


def test_a_squash_before_a_crop_is_refused() -> None:
    import timm

    with pytest.raises(ConfigError, match="squash before a crop"):
        of_timm(timm.get_pretrained_cfg("dm_nfnet_f0").to_dict())


def test_a_border_crop_is_refused() -> None:
    import timm

    config = timm.get_pretrained_cfg("resnet18").to_dict() | {"crop_mode": "border"}
    with pytest.raises(ConfigError, match="border"):
        of_timm(config)


@pytest.mark.parametrize("resize", [216, 219, 220, 221, 223, 224, 225, 227, 256])
def test_crops_larger_and_smaller_than_the_image_start_where_torchvisions_do(resize: int) -> None:
    from torchvision.transforms import v2

    spec = InputSpec((224, 224), resize, "bilinear", (0.5,) * 3, (0.5,) * 3)
    theirs = v2.Compose([v2.Resize(resize), v2.CenterCrop(224)])
    for size in [(300, 300), (301, 300), (200, 333)]:
        image = picture(3, size)
        assert np.array_equal(fit_to_size(image, spec), theirs(image))


def test_without_a_resize_the_image_is_squashed_to_height_and_width() -> None:
    spec = InputSpec((20, 30), None, "bicubic", (0.0,) * 3, (1.0,) * 3)
    image = picture(2, (100, 50))
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    found = prepare(image, spec)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected / 255, atol=1e-6)


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_restore_gives_back_every_colour_exactly(mean: tuple[float, float, float]) -> None:
    spec = InputSpec((256, 256), 256, "bilinear", mean, (0.229, 0.224, 0.225))
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), ramp[None] ^ ramp[:, None]], 2
    )
    assert np.array_equal(restore(normalise(Image.fromarray(pixels), spec), spec), pixels)


def test_a_recipe_at_another_size_keeps_its_share_of_the_crop() -> None:
    spec = InputSpec((224, 224), 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert (spec.scaled(112).size, spec.scaled(112).resize) == ((112, 112), 128)
    assert InputSpec.from_plain(spec.to_plain()) == spec


def test_every_value_of_a_pixel_becomes_what_the_formula_gives() -> None:
    spec = InputSpec((16, 16), None, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([grey, grey[::-1], grey.T], axis=2)
    mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    expected = (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
    found = normalise(Image.fromarray(pixels), spec)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert np.array_equal(found, expected)
