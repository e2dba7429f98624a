"""Test-time augmentation: the views of an image over which a network's answers are averaged. PIL
and numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image as PIL
from PIL.Image import Image

from xfer.core.errors import CombinationError, closest
from xfer.core.types import InputSpec, Plain, Tta
from xfer.data.preprocess import centre_crop, fit_to_size, normalise, resized

VIEWS: dict[Tta, int] = {"none": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}
"""How many views of an image each kind has."""


def prepare_views(image: Image, spec: InputSpec, tta: Tta) -> npt.NDArray[np.float32]:
    """The views of an RGB image as float32 (views, 3, height, width), first those of the image and
    then those of its mirror image.

    They are torchvision's ``FiveCrop`` and ``TenCrop`` of the resized image; ``flip`` is its centre
    crop and that mirrored. Raises DataError for an image that resizing would make huge.
    """
    if tta in ("none", "flip"):
        centre = fit_to_size(image, spec)
        views = [centre] if tta == "none" else [centre, _mirrored(centre)]
    else:
        whole = resized(image, spec)
        views = _five(whole, spec)
        # Of the mirror image, not mirrored: the centre of an odd margin is elsewhere in it.
        views += _five(_mirrored(whole), spec) if tta == "ten_crop" else []
    return np.stack([normalise(view, spec) for view in views])


def _five(image: Image, spec: InputSpec) -> list[Image]:
    """The four corners and the centre of a resized image."""
    height, width = spec.size
    right, bottom = image.width - width, image.height - height
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom))
    cut = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    return [*cut, centre_crop(image, spec)]


def _mirrored(image: Image) -> Image:
    return image.transpose(PIL.Transpose.FLIP_LEFT_RIGHT)


def check_tta(spec: InputSpec, tta: Tta) -> None:
    """Raise CombinationError for a ``tta`` that does not exist, and for crops where ``spec``
    leaves nothing of the image outside its centre crop."""
    if tta not in VIEWS:
        what, fix = f"there is no '{tta}'", closest(str(tta), VIEWS)
        raise CombinationError("tta", what, fix, 23)
    if "crop" not in tta or (spec.resize is not None and spec.resize >= max(spec.size)):
        return
    size = " x ".join(map(str, spec.size))
    how = "resized to that size as a whole"
    if spec.resize is not None:
        how = f"resized to a short side of {spec.resize}"
    what = f"{tta} cuts {size} pixels out of images that are {how}: there are no five such crops"
    raise CombinationError("tta", what, "type tta=flip", 20)


def tta_facts(tta: Tta) -> Plain:
    """What ``plan.json`` and ``result.json`` say of it."""
    averaged = None if tta == "none" else "probabilities"
    return {"kind": tta, "views": VIEWS[tta], "averaged": averaged}


def tta_words(tta: Tta) -> str:
    """The same for people; nothing where each image is answered once."""
    return f"mean probabilities of {VIEWS[tta]} views an image ({tta})" if tta != "none" else ""
