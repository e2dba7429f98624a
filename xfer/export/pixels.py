"""The input recipe as layers, for a file that takes pictures as they are.

The resize is Pillow's own, in its integers. ONNX has an operator for it, but runtimes round its
ties each in their way: onnxruntime moved up to a seventh of the pixels by one grey level.
"""

from __future__ import annotations

import math
from typing import Any

import PIL
import torch
from torch import nn

from xfer.core.errors import ExportError
from xfer.core.types import InputSpec

SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
_BITS = 22  # Pillow's weights are whole multiples of 2 ** -22
# Before Pillow 13 the rows always came first; a file answers as the Pillow that prepared images.
_PICKS_ORDER = int(PIL.__version__.split(".")[0]) >= 13
_HALF = 11  # float32 sums products of bytes and 11-bit numbers without an error


class FromPixels(nn.Module):
    """uint8 (n, 3, any height, any width) RGB to float32 probabilities (n, classes), a
    softmax of logits or, with ``several`` labels an image, the sigmoid of each.

    Raises ExportError for a recipe that is not smooth, or pads.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, spec: InputSpec, where: str, several: bool = False) -> None:
        super().__init__()
        fix = "use input=tensor for this recipe, and prepare the images yourself"
        if spec.interpolation not in SUPPORT:
            what = f"{spec.interpolation} resizing cannot be written into a file"
            raise ExportError(where, what, fix, 41)
        if spec.resize is not None and spec.resize < max(spec.size):
            what = f"the recipe crops {max(spec.size)} pixels from a short side of {spec.resize}"
            raise ExportError(where, what, fix, 42)
        self.net, self.spec, self.several = net, spec, several
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = self.net((self.fitted(images) / 255 - self.mean) / self.std)
        return logits.sigmoid() if self.several else logits.softmax(1)

    def fitted(self, images: torch.Tensor) -> torch.Tensor:
        """Resized and cropped to ``spec.size``, whole numbers 0 to 255 as float32."""
        (height, width), (tall, wide) = images.shape[-2:], self.spec.size
        whole: Any = (tall, wide)
        if self.spec.resize is not None:
            short = torch.sym_min(height, width)
            whole = (self.spec.resize * height // short, self.spec.resize * width // short)
        rows = _weights(width, whole[1], wide, self.spec.interpolation)
        columns = _weights(height, whole[0], tall, self.spec.interpolation)
        shrinks = (whole[0] < height) & (height - whole[0] > 2 * (width - whole[1]))
        pixels = images.float()
        if not _PICKS_ORDER:
            return _across_first(pixels, rows, columns)
        fitted: torch.Tensor = torch.cond(
            shrinks, _down_first, _across_first, (pixels, rows, columns)
        )
        return fitted


def _across_first(pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Along the rows, rounded to bytes, then along the columns: Pillow's usual order."""
    across = _blend(pixels, rows)
    return _blend(across.transpose(-1, -2), columns).transpose(-1, -2).contiguous()


def _down_first(pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The other order, which Pillow takes where the height shrinks by far more."""
    return _blend(_blend(pixels.transpose(-1, -2), columns).transpose(-1, -2), rows).contiguous()


def _blend(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``pixels`` (..., have) by ``weights`` (want, have), rounded to bytes: (..., want)."""
    high = torch.floor(weights / 2**_HALF)
    low = weights - high * 2**_HALF
    sums = [(pixels @ part.float().transpose(0, 1)).to(torch.int32) for part in (high, low)]
    total = sums[0] * 2**_HALF + sums[1] + 2 ** (_BITS - 1)
    # torch.div with a rounding mode would be exported as a division in float32.
    whole: torch.Tensor = total.clamp(min=0) // 2**_BITS
    return whole.clamp(max=255).float()


def _weights(have: int, want: int, keep: int, name: str) -> torch.Tensor:
    """What each of ``have`` pixels gives to the middle ``keep`` of ``want`` new ones.

    float64 (keep, have), in multiples of 2 ** -22; after Pillow's ``precompute_coeffs``.
    """
    one = torch.ones((), dtype=torch.float64)
    scale = (one * have) / (one * want)
    wider = scale.clamp(min=1)
    at = torch.arange(keep, dtype=torch.float64) + _margin(want, keep)
    center = ((at + 0.5) * scale).reshape(-1, 1)
    support = SUPPORT[name] * wider
    first, last = torch.floor(center - support + 0.5), torch.floor(center + support + 0.5)
    x = torch.arange(have).double().reshape(1, -1)
    near = _curve((x - center + 0.5) / wider, name)
    near = torch.where((x >= first) & (x < last), near, torch.zeros_like(near))
    near = near / near.sum(1, keepdim=True) * 2**_BITS
    return torch.sign(near) * torch.floor(near.abs() + 0.5)


def _curve(x: torch.Tensor, name: str) -> torch.Tensor:
    """Pillow's filters; what is beyond their support is cut by the caller."""
    x = x.abs()
    if name == "bilinear":
        return (1 - x).clamp(min=0)
    if name == "bicubic":
        inner = (1.5 * x - 2.5) * x * x + 1
        outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
        return torch.where(x < 1, inner, outer) * (x < 2).double()
    return _sinc(x) * _sinc(x / 3) * (x < 3).double()


def _sinc(x: torch.Tensor) -> torch.Tensor:
    angle = torch.where(x == 0, torch.ones_like(x), x) * math.pi
    return torch.where(x == 0, torch.ones_like(x), torch.sin(angle) / angle)


def _margin(have: int, want: int) -> int:
    """Half of what is cut away, rounded half to even as :mod:`xfer.data.preprocess` rounds."""
    spare = have - want
    return spare // 2 + (spare % 2) * ((spare // 2) % 2)
