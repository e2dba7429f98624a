"""The one evaluation transform: PIL image in, normalised array out. PIL and numpy only.

Sizes and offsets follow torchvision's ``Resize`` and ``CenterCrop`` on PIL images.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PIL
from PIL.Image import Image

from xfer.core.errors import ConfigError, DataError, printable
from xfer.core.types import InputSpec

_MAX_PIXELS = 64_000_000  # of an image after resizing, before the crop
_UNNAMED = "an image"


def fit_to_size(image: Image, spec: InputSpec) -> Image:
    """Resize and centre-crop an RGB image to ``spec.size``."""
    image = resized(image, spec)
    return image if spec.resize is None else centre_crop(image, spec)


def resized(image: Image, spec: InputSpec) -> Image:
    """An RGB image as its centre crop is cut out of it."""
    height, width = spec.size
    resampling = PIL.Resampling[spec.interpolation.upper()]
    if spec.resize is None:
        return image.resize((width, height), resampling)
    check_size(image.size, spec)
    return image.resize(_short_side(image.size, spec.resize), resampling)


def centre_crop(image: Image, spec: InputSpec) -> Image:
    """The centre of a resized image, ``spec.size`` large."""
    height, width = spec.size
    left, top = _margin(image.width, width), _margin(image.height, height)
    return image.crop((left, top, left + width, top + height))


def check_size(size: tuple[int, int], spec: InputSpec) -> None:
    """Raise DataError for an image of ``size`` (width, height) that resizing would make huge."""
    if spec.resize is None:
        return
    width, height = _short_side(size, spec.resize)
    if width * height > _MAX_PIXELS:
        sizes = f"{size[0]} x {size[1]} pixels are {width} x {height} after resizing"
        what = f"{sizes}; more than {_MAX_PIXELS} in all"
        raise DataError(_UNNAMED, what, "crop it, or remove it", 74)


def named(error: DataError, name: str) -> DataError:
    """``error`` with the name of the image, where it does not know it."""
    if error.where == _UNNAMED:
        error.where = printable(name)
    return error


def _margin(have: int, want: int) -> int:
    """Where a centre crop starts; below 0 it pads with black, as torchvision rounds both."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return short, max(1, int(short * height / width))
    return max(1, int(short * width / height)), short


def normalise(image: Image, spec: InputSpec) -> npt.NDArray[np.float32]:
    """An RGB image as float32 (3, height, width), less ``spec.mean``, divided by ``spec.std``."""
    pixels, table = np.asarray(image, np.uint8), _table(tuple(spec.mean), tuple(spec.std))
    array = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        # No index is out of range: ``clip`` only keeps numpy from a copy that guards ``out``.
        np.take(table[channel], pixels[:, :, channel], out=array[channel], mode="clip")
    return array


@cache
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """What becomes of each value of a pixel, (3, 256): looking it up is four times as fast as
    computing it for every pixel, and gives the same bits."""
    of_mean, of_std = (np.asarray(v, np.float32).reshape(3, 1) for v in (mean, std))
    values = np.arange(256, dtype=np.float32)
    return (values / np.float32(255) - of_mean) / of_std


def prepare(image: Image, spec: InputSpec) -> npt.NDArray[np.float32]:
    """The evaluation transform: RGB image in, float32 (3, height, width) out."""
    return normalise(fit_to_size(image, spec), spec)


def restore(array: npt.NDArray[np.float32], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """The picture in true colours, uint8 (height, width, 3): :func:`normalise` reversed."""
    mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    pixels = np.clip((array * std + mean) * 255, 0, 255)
    return np.asarray(np.round(pixels).transpose(1, 2, 0), np.uint8)


def of_timm(config: dict[str, Any]) -> InputSpec:
    """The input spec of a timm model's pretrained configuration.

    Raises ConfigError for a crop that xfer does not have.
    """
    from timm.data import resolve_data_config

    facts = resolve_data_config({}, pretrained_cfg=config)
    height, width = facts["input_size"][1:]
    if facts["crop_mode"] == "border":
        what = "its 'border' crop is not supported"
        raise ConfigError("backbone.name", what, "choose another", 12)
    squash = facts["crop_mode"] == "squash"
    if squash and facts["crop_pct"] != 1:
        what = "its squash before a crop is not supported"
        raise ConfigError("backbone.name", what, "choose another", 14)
    return InputSpec(
        size=(int(height), int(width)),
        resize=None if squash else int(min(height, width) / facts["crop_pct"]),
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )


def of_torchvision(recipe: Any) -> InputSpec:
    """The input spec of a torchvision weights' ``transforms()``."""
    return InputSpec(
        size=(int(recipe.crop_size[0]), int(recipe.crop_size[0])),
        resize=int(recipe.resize_size[0]),
        interpolation=recipe.interpolation.value,
        mean=tuple(recipe.mean),
        std=tuple(recipe.std),
    )
