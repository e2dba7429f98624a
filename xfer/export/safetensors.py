"""The bare state dict, which timm or torchvision load and run without xfer.

Where the library's own model for a card is the same function with these weights, the file says so.
"""

from __future__ import annotations

import json
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.metadata import library_of, metadata, spec_class
from xfer.export.parity import run_torch

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Safetensors:
    """Tensors in float32 under the library's own names, facts in the header.

    ``plain_loadable`` is "yes", with the call that builds the model in ``load``, or the reason
    why the library's model cannot stand in. ``bias_shift``, when there, was added to every
    class bias: the library's model gives logits that much higher, and the same softmax.
    """

    file: ClassVar[str] = "model.safetensors"

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Write the state dict of ``net``; all header values are strings."""
        from safetensors.torch import save

        state = state_of(net)
        library, reason = library_model(card, state)
        facts: Plain = {"plain_loadable": reason or "yes"}
        if library is not None:
            facts["load"] = _call(card)
            shift = _bias_shift(net, library, images)
            if shift is not None and card.task:  # raised logits are other labels
                reason = "the library's model clips logits, which several labels an image need"
                facts, shift = {"plain_loadable": reason}, None
            if shift is not None:
                name, facts["bias_shift"] = shift
                state[name] += facts["bias_shift"]
        header = {key: str(value) for key, value in facts.items()}
        # save_file would report a full disk as an error of its own.
        path.write_bytes(in_order(save(state, metadata(card) | header)))
        return facts

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The library's own model when the file says so, else a copy of ``net``."""
        from copy import deepcopy

        import torch
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(path, "pt") as file:
            facts = file.metadata()
        if facts["plain_loadable"] == "yes":
            model = _built(Card.from_plain(json.loads(facts["card"])))
        else:
            model = deepcopy(net)
        model.load_state_dict(load_file(path), strict=True)
        # In the layout that the network itself is asked in.
        model = model.eval().to(memory_format=torch.channels_last)
        run, shift = run_torch(model), float(facts.get("bias_shift", 0))
        return lambda images: run(images) - shift


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the tensors of ``net`` on the CPU, numbers in float32."""
    import torch

    state = {}
    for name, tensor in net.state_dict().items():
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to("cpu", kind, copy=True).contiguous()
    return state


def in_order(data: bytes) -> bytes:
    """The same file with its facts sorted by name: the library writes them in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


_ONE_LAYER = ("Linear", "Dropout", "Keep", "Remap")
"""Heads of xfer whose tensors are those of the library's classifier."""
_BUILDERS = {"timm": "timm.create_model", "torchvision": "torchvision.models.get_model"}


def _arguments(card: Card) -> dict[str, Any]:
    return {"num_classes": len(card.classes), **card.backbone.get("args", {})}


def _call(card: Card) -> str:
    """The call that builds the library's model, as one would type it."""
    args = "".join(f", {key}={value!r}" for key, value in _arguments(card).items())
    return f"{_BUILDERS[library_of(card)]}({card.backbone['name']!r}{args})"


def _built(card: Card) -> nn.Module:
    """The library's model, random weights, eval mode. The random state is left as it was."""
    import torch

    builder: Any = pkgutil.resolve_name(_BUILDERS[library_of(card)])
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = builder(card.backbone["name"], **_arguments(card))
    return model.eval()


def why_of_no_library(card: Card) -> str:
    """Why no library's model computes what the network of ``card`` does, or nothing."""
    backbone, head = card.backbone["_target_"], card.head["_target_"]
    if not library_of(card):
        return f"the backbone {backbone} is not a model of timm or torchvision"
    if card.compat:
        return f"its layers compute as MindSpore's do ({card.compat.get('dialect')})"
    if getattr(spec_class("head", head), "__name__", "") not in _ONE_LAYER:
        return f"the head {head} is more than the library's one layer"
    return ""


def library_model(card: Card, state: Mapping[str, torch.Tensor]) -> tuple[nn.Module | None, str]:
    """The library's model that takes ``state`` and should compute the same, or the reason why
    there is none."""
    if reason := why_of_no_library(card):
        return None, reason
    model = _built(card)
    theirs = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in state.items()}
    differ = [n for n in sorted(theirs | ours) if theirs.get(n) != ours.get(n)]
    if differ:
        return None, f"{len(differ)} tensors do not fit {_call(card)}, the first is {differ[0]}"
    return model, ""


_FIRST = 16  # images that say how large a map's values are, to a factor


def _bias_shift(net: nn.Module, library: nn.Module, images: Array) -> tuple[str, float] | None:
    """Which bias to raise, and by how much, so that ``library`` gives the softmax of ``net``.

    torchvision's SqueezeNet has a ReLU between its classifier and its pooling, which ``net``
    lacks. Adding one constant to all classes leaves the softmax as it is, and with a constant at
    least four times the largest class-map value of the first ``images`` the ReLU sees no negative
    number, which is tried on all. ``None`` for an architecture that needs no such thing.
    """
    from torch import nn

    layers = dict(net.named_modules())
    for name, layer in library.named_modules():
        if isinstance(layer, nn.ReLU) and isinstance(layers.get(name), nn.Identity):
            parent, _, last = name.rpartition(".")
            names = [child for child, _ in net.get_submodule(parent).named_children()]
            before = f"{parent}.{names[names.index(last) - 1]}"
            peak = _peak(net, before, images[:_FIRST])
            # A power of two costs the fewest digits of the logits.
            return f"{before}.bias", 2.0 ** math.ceil(math.log2(4 * peak or 1))
    return None


def _peak(net: nn.Module, layer: str, images: Array) -> float:
    """The largest absolute output of the layer called ``layer`` over all images and positions."""
    from copy import deepcopy

    import torch

    # As the trials ask it: almost twice as fast.
    faster, peaks = deepcopy(net).to(memory_format=torch.channels_last), list[float]()
    see = faster.get_submodule(layer).register_forward_hook
    see(lambda *seen: peaks.append(float(seen[2].abs().max())))
    with torch.inference_mode():
        faster(torch.from_numpy(images))
    return max(peaks)
