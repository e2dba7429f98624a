"""The library's own model for a card, and whether a state dict makes it the same function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from xfer.core.types import Array, Card

_CALLS = {
    "xfer.models.backbone.Timm": "timm.create_model",
    "xfer.models.backbone.Torchvision": "torchvision.models.get_model",
}
_ONE_LAYER = {
    "xfer.models.head.Linear",
    "xfer.models.head.Dropout",
    "xfer.models.head.Keep",
    "xfer.models.head.Remap",
}


def call(card: Card) -> str:
    """The call that builds the library's model, as one would type it."""
    args = "".join(f", {key}={value!r}" for key, value in _arguments(card).items())
    return f"{_CALLS[card.backbone['_target_']]}({card.backbone['name']!r}{args})"


def build(card: Card) -> nn.Module:
    """The library's model, random weights, eval mode. The random state is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        library: nn.Module = _builder(card)(card.backbone["name"], **_arguments(card))
    return library.eval()


def _builder(card: Card) -> Any:
    if _CALLS[card.backbone["_target_"]].startswith("timm"):
        import timm

        return timm.create_model
    from torchvision import models

    return models.get_model


def _arguments(card: Card) -> dict[str, Any]:
    return {"num_classes": len(card.classes), **card.backbone.get("args", {})}


def match(card: Card, state: Mapping[str, torch.Tensor]) -> tuple[nn.Module | None, str]:
    """The library's model that takes ``state`` and should compute the same, or the reason why
    there is none."""
    backbone, head = card.backbone["_target_"], card.head["_target_"]
    if backbone not in _CALLS:
        return None, f"the backbone {backbone} is no model of timm or torchvision"
    if card.compat:
        return None, f"its layers compute as MindSpore's do ({card.compat.get('dialect')})"
    if head not in _ONE_LAYER:
        return None, f"the head {head} is more than the library's one layer"
    library = build(card)
    theirs = {name: tensor.shape for name, tensor in library.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in state.items()}
    differ = [n for n in sorted(theirs | ours) if theirs.get(n) != ours.get(n)]
    if differ:
        return None, f"{len(differ)} tensors do not fit {call(card)}, the first is {differ[0]}"
    return library, ""


def bias_shift(net: nn.Module, library: nn.Module, images: Array) -> tuple[str, float] | None:
    """Which bias to raise, and by how much, so that ``library`` gives the softmax of ``net``.

    torchvision's SqueezeNet has a ReLU between its classifier and its pooling, which ``net``
    lacks. Adding one constant to all classes leaves the softmax as it is, and with a constant
    at least four times the largest class-map value of ``images`` the ReLU never sees a negative
    number. ``None`` for an architecture that needs no such thing.
    """
    from torch import nn

    ours = dict(net.named_modules())
    for name, layer in library.named_modules():
        if isinstance(layer, nn.ReLU) and isinstance(ours.get(name), nn.Identity):
            before = _layer_before(net, name)
            peak = _peak(net, ours[before], images)
            # A power of two costs the fewest digits of the logits.
            return f"{before}.bias", 2.0 ** math.ceil(math.log2(4 * peak or 1))
    return None


def _layer_before(net: nn.Module, name: str) -> str:
    parent, _, last = name.rpartition(".")
    names = list(dict(net.get_submodule(parent).named_children()))
    return f"{parent}.{names[names.index(last) - 1]}"


def _peak(net: nn.Module, layer: nn.Module, images: Array) -> float:
    """The largest absolute output of ``layer`` over all images and positions."""
    import torch

    peaks: list[float] = []
    hook = layer.register_forward_hook(lambda *seen: peaks.append(float(seen[2].abs().max())))
    try:
        with torch.inference_mode():
            net(torch.from_numpy(images))
    finally:
        hook.remove()
    return max(peaks)
