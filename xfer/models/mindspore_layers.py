"""What a network of timm or torchvision needs to compute as another library's does.

Its facts are JSON-like and travel with the weights, because a state dict cannot hold them::

    {"dialect": "mindcv_resnet",
     "batch_norm": [{"match": "layer1\\..*", "eps": 1e-4, "momentum": 0.1}],
     "same": ["maxpool"]}

``batch_norm``, ``layer_norm``, ``conv``, ``max_pool``, ``gelu`` and ``network`` set attributes of
such layers, by rules on the layers' paths of which the first that matches wins. ``same`` names
the convolutions wider than one pixel and max-pools that pad as MindSpore's ``same`` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from xfer.core.errors import WeightsError
from xfer.core.types import Plain

Pair = tuple[int, int]

# What rules may set: a checkpoint holds them, and no checkpoint shall reach anything else.
_KINDS: dict[str, tuple[type[nn.Module], frozenset[str]]] = {
    "batch_norm": (nn.modules.batchnorm._BatchNorm, frozenset({"eps", "momentum"})),
    "layer_norm": (nn.LayerNorm, frozenset({"eps"})),
    "conv": (nn.Conv2d, frozenset({"padding"})),
    "max_pool": (nn.MaxPool2d, frozenset({"ceil_mode"})),
    "gelu": (nn.GELU, frozenset({"approximate"})),
    "network": (nn.Module, frozenset({"transform_input"})),
}


def apply(module: nn.Module, compat: Plain) -> None:
    """Change ``module`` in place as ``compat`` says; tensor names, tensors and device stay.

    Raises WeightsError for a rule that matches no layer, and for one that xfer does not know.
    """
    for kind, rules in compat.items():
        if kind == "same":
            _pad_same(module, rules)
        elif kind in _KINDS:
            _set(module, kind, rules)
        elif kind != "dialect":
            raise WeightsError("compat", f"asks for '{kind}'", "use a newer xfer", 76)


def _set(module: nn.Module, kind: str, rules: Sequence[Mapping[str, Any]]) -> None:
    layer_type, allowed = _KINDS[kind]
    layers = {path: m for path, m in module.named_modules() if isinstance(m, layer_type)}
    for path, index in _obeyed(kind, [rule["match"] for rule in rules], layers).items():
        for name, value in rules[index].items():
            if name == "match":
                continue
            if name not in allowed or not hasattr(layers[path], name):
                what = f"asks for '{name}' of the layer '{path}', which has no such setting"
                raise WeightsError("compat", what, "check backbone.name", 76)
            setattr(layers[path], name, tuple(value) if isinstance(value, list) else value)


def _obeyed(kind: str, patterns: Sequence[str], paths: Mapping[str, object]) -> dict[str, int]:
    """The index of the first pattern that matches, by path."""
    obeyed: dict[str, int] = {}
    for i, pattern in enumerate(patterns):
        matched = [p for p in paths if p not in obeyed and re.fullmatch(pattern, p)]
        if not matched:
            what = f"no {kind} layer matches the rule '{pattern}'"
            raise WeightsError("compat", what, "check backbone.name and backbone.args", 75)
        obeyed |= dict.fromkeys(matched, i)
    return obeyed


def _pad_same(module: nn.Module, patterns: Sequence[str]) -> None:
    layers = {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, nn.MaxPool2d)
        or (isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1)
    }
    for path in _obeyed("same", patterns, layers):
        layer = layers[path]
        if type(layer) not in (nn.Conv2d, nn.MaxPool2d, SameConv2d, SameMaxPool2d):
            what = f"asks for padding of '{path}', a {type(layer).__name__}"
            raise WeightsError("compat", what, "check backbone.name and backbone.args", 76)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, _padded_same(layer))


def _padded_same(layer: nn.Conv2d | nn.MaxPool2d) -> nn.Module:
    """``layer`` itself where the padding is the same at every size, else a layer that looks."""
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    # torch's own pool pads half a kernel at most, whatever its dilation.
    is_dilated_pool = isinstance(layer, nn.MaxPool2d) and dilation != (1, 1)
    if _pair(layer.stride) == (1, 1) and total[0] % 2 == total[1] % 2 == 0 and not is_dilated_pool:
        layer.padding = (total[0] // 2, total[1] // 2)
        return layer
    if isinstance(layer, nn.Conv2d):
        return SameConv2d.of(layer)
    pool = SameMaxPool2d(layer.kernel_size, layer.stride, dilation=layer.dilation)
    pool.training = layer.training
    return pool


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Pixels to pad an image of ``size`` (height, width): left, right, top, bottom.

    The output has ceil(n / stride) pixels an axis; what lacks is padded half on each side, the
    odd pixel at the end, as in MindSpore's and TensorFlow's ``same``.
    """
    pads: list[int] = []
    for n, k, s, d in reversed(list(zip(size, kernel, stride, dilation, strict=True))):
        outputs = -(-n // s)
        # Not max(): the size may be a symbol while the network is exported.
        total = cast("int", torch.sym_max((outputs - 1) * s + (k - 1) * d + 1 - n, 0))
        pads += [total // 2, total - total // 2]
    return pads


class SameConv2d(nn.Conv2d):
    """A convolution padded with zeros by :func:`same_padding`, at any input size."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> SameConv2d:
        """The same convolution, with the very parameters of ``layer``."""
        with torch.device("meta"):
            same = cls(
                layer.in_channels,
                layer.out_channels,
                _pair(layer.kernel_size),
                _pair(layer.stride),
                dilation=_pair(layer.dilation),
                groups=layer.groups,
                bias=layer.bias is not None,
            )
        same.weight, same.bias = layer.weight, layer.bias
        same.training = layer.training
        return same

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride))."""
        pads = same_padding(input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        padded = functional.pad(input, pads)
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class SameMaxPool2d(nn.MaxPool2d):
    """A max-pool that ignores what it pads by :func:`same_padding`, at any input size."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, c, ceil(h / stride), ceil(w / stride))."""
        window = _pair(self.kernel_size), _pair(self.stride), _pair(self.dilation)
        pads = same_padding(input.shape[-2:], *window)
        return cast("torch.Tensor", super().forward(functional.pad(input, pads, value=-torch.inf)))
