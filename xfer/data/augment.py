"""What training images go through. Validation never passes here.

Every transform draws from torch's generator alone, which the loader seeds for each (epoch,
image); mixing of a batch draws from the one seeded for each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from PIL.Image import Image

from xfer.core.errors import ConfigError
from xfer.core.types import InputSpec
from xfer.data.preprocess import normalise, prepare

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Transform = Callable[[Image], npt.NDArray[np.float32]]
    Mix = Callable[[Any, Any], tuple[Any, Any]]

_LIGHT = (0.4, 1.0)  # of the area, where training begins at a good head
_LEAST_ALPHA = 1e-6  # below it float32 draws neither one image nor the other

Probability = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class Plain:
    """No augmentation: training sees images as validation does."""

    random: ClassVar[bool] = False
    seed: ClassVar[int] = 0

    def transform(self, spec: InputSpec) -> Transform:
        """RGB image to float32 (3, h, w)."""
        return lambda image: prepare(image, spec)

    def mix(self, classes: int) -> Mix | None:
        """Batches are not mixed."""
        return None


@dataclass(frozen=True)
class PlannedAugment(Plain):
    """None where the head is solved on features of the images as they are evaluated, else random
    crops and flips. The plan says which."""

    def becomes(self, choice: str, epochs: int | None) -> Plain | Standard:
        """What the plan chose: ``none``, ``standard``, or ``light`` crops of most of the image."""
        if choice == "none":
            return Plain()
        return Standard(scale=_LIGHT) if choice == "light" else Standard()


@dataclass(frozen=True)
class Standard:
    """The tutorials' pipeline: a random crop of ``scale`` of the area and ``ratio`` of sides,
    resized to the input size, then a horizontal flip with probability ``flip``; what else has a
    key is off until it is set. ``seed`` is its own, so that runs that differ in the run's seed see
    the same pictures."""

    random: ClassVar[bool] = True

    scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.08, 1.0)
    """smallest and largest share of the area that a crop keeps"""
    ratio: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.75, 1.333)
    """smallest and largest width over height of a crop"""
    flip: Probability = 0.5
    """probability of a horizontal flip"""
    vertical_flip: Probability = 0.0
    """probability of a vertical flip, for pictures without an up and down, as from a microscope or
    the air"""
    rotation: Annotated[float, Ge(0), Le(180)] = 0.0
    """largest angle in degrees by which the crop is turned, either way; its corners become black"""
    brightness: Annotated[float, Ge(0), Le(10)] = 0.0
    """brightness is multiplied by 1 - this to 1 + this, never by less than 0"""
    contrast: Annotated[float, Ge(0), Le(10)] = 0.0
    """contrast is multiplied by 1 - this to 1 + this, never by less than 0"""
    saturation: Annotated[float, Ge(0), Le(10)] = 0.0
    """saturation is multiplied by 1 - this to 1 + this, never by less than 0"""
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """the hue is shifted by this share of the colour circle at most, either way"""
    grey: Probability = 0.0
    """probability that the picture loses its colours"""
    seed: Annotated[int, Ge(0)] = 0
    """seed of the augmentation, apart from ``seed``: runs over several seeds see the same
    pictures and share features, unless those are exact"""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                key = f"augment.{name}"
                raise ConfigError(key, f"{low} is above {high}", f"type '{key}=[{high},{low}]'", 90)

    def transform(self, spec: InputSpec) -> Transform:
        """RGB image to float32 (3, h, w)."""
        steps = _steps(self, spec, None)
        return lambda image: normalise(steps(image), spec)

    def mix(self, classes: int) -> Mix | None:
        """Batches are not mixed."""
        return None


@dataclass(frozen=True)
class PolicyAugment(Standard, ABC):
    """Standard with a published policy of operations after the flips and the rotation, random
    erasing (Zhong et al., 2020) with probability ``erasing`` at the end, and of each batch mixup
    (Zhang et al., 2018) or CutMix (Yun et al., 2019) with those alphas; 0 is off."""

    erasing: Probability = 0.0
    """probability of random erasing"""
    mixup: Annotated[float, Ge(0), Le(1000)] = 0.0
    """alpha of mixup; 0 is off. ``mixed`` sets 0.2"""
    cutmix: Annotated[float, Ge(0), Le(1000)] = 0.0
    """alpha of CutMix; 0 is off. ``mixed`` sets 1.0"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if 0 < alpha < _LEAST_ALPHA:
                key, what = f"augment.{name}", f"{alpha} is too small to draw from"
                raise ConfigError(key, what, f"type {key}=0, which is off", 90)

    @abstractmethod
    def operations_on(self, interpolation: Any) -> Any:
        """The policy's transform of torchvision; images are resampled by ``interpolation``."""

    def transform(self, spec: InputSpec) -> Transform:
        """RGB image to float32 (3, h, w)."""
        import torch
        from torchvision.transforms import InterpolationMode, v2

        steps = _steps(self, spec, self.operations_on(InterpolationMode.BILINEAR))
        erase = v2.RandomErasing(p=self.erasing)
        return lambda image: erase(torch.from_numpy(normalise(steps(image), spec))).numpy()

    def mix(self, classes: int) -> Mix | None:
        """A function of images (n, 3, h, w) and labels (n,) that gives mixed images and class
        probabilities (n, classes); ``None`` when both alphas are 0."""
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        mixes = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        return v2.RandomChoice(mixes) if mixes else None


@dataclass(frozen=True)
class Strong(PolicyAugment):
    """RandAugment (Cubuk et al., 2020): ``operations`` of ``magnitude`` (0 to 30) an image."""

    operations: Annotated[int, Ge(0)] = 2
    """RandAugment operations an image"""
    magnitude: Annotated[int, Ge(0), Le(30)] = 9
    """their strength"""
    erasing: Probability = 0.25
    """probability of random erasing"""

    def operations_on(self, interpolation: Any) -> Any:
        """RandAugment."""
        from torchvision.transforms import v2

        return v2.RandAugment(self.operations, self.magnitude, interpolation=interpolation)


@dataclass(frozen=True)
class AutoAugment(PolicyAugment):
    """AutoAugment (Cubuk et al., 2019): one of 25 pairs of operations, which a search on another
    data set, ``policy``, chose."""

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    """the data set on which the pairs of operations were searched for"""

    def operations_on(self, interpolation: Any) -> Any:
        """AutoAugment."""
        from torchvision.transforms import v2

        return v2.AutoAugment(v2.AutoAugmentPolicy(self.policy), interpolation)


@dataclass(frozen=True)
class TrivialAugment(PolicyAugment):
    """TrivialAugment in its wide space (Müller and Hutter, 2021): one operation an image, at a
    strength drawn anew. There is nothing to tune."""

    def operations_on(self, interpolation: Any) -> Any:
        """TrivialAugmentWide."""
        from torchvision.transforms import v2

        return v2.TrivialAugmentWide(interpolation=interpolation)


@dataclass(frozen=True)
class AugMix(PolicyAugment):
    """AugMix (Hendrycks et al., 2020): the image averaged with ``width`` chains of operations on
    it. The paper's consistency loss is no part of it."""

    severity: Annotated[int, Ge(1), Le(10)] = 3
    """strength of the operations"""
    width: Annotated[int, Ge(1), Le(10)] = 3
    """chains of operations that are averaged"""
    depth: Annotated[int, Ge(1), Le(10)] | Literal["random"] = "random"
    """operations in a chain; ``random`` draws 1 to 3"""
    alpha: Annotated[float, Ge(0.01), Le(100)] = 1.0
    """of the Dirichlet and Beta distributions that the weights of the average are drawn from"""

    def operations_on(self, interpolation: Any) -> Any:
        """AugMix."""
        from torchvision.transforms import v2

        depth = -1 if self.depth == "random" else self.depth
        severity, width, alpha = self.severity, self.width, self.alpha
        return v2.AugMix(severity, width, depth, alpha, interpolation=interpolation)


def _steps(
    recipe: Standard, spec: InputSpec, policy: Callable[[Image], Image] | None
) -> Callable[[Image], Image]:
    """The transforms of an image, in the order in which timm has them. What is off draws nothing:
    a key that stays at 0 leaves the pictures of all others as they were."""
    from torchvision.transforms import InterpolationMode, v2

    bilinear = InterpolationMode.BILINEAR
    jitter = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    crop = v2.RandomResizedCrop(
        spec.size,
        scale=recipe.scale,
        ratio=recipe.ratio,
        interpolation=InterpolationMode(spec.interpolation),
        antialias=True,
    )
    steps = [crop, v2.RandomHorizontalFlip(recipe.flip)]
    if recipe.vertical_flip:
        steps.append(v2.RandomVerticalFlip(recipe.vertical_flip))
    if recipe.rotation:
        steps.append(v2.RandomRotation(recipe.rotation, bilinear))
    if policy is not None:
        steps.append(policy)
    if any(jitter):
        steps.append(v2.ColorJitter(*jitter))
    if recipe.grey:
        steps.append(v2.RandomGrayscale(recipe.grey))
    composed: Callable[[Image], Image] = v2.Compose(steps)
    return composed
