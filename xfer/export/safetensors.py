"""The bare state dict, which timm or torchvision load and run without xfer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xfer.core.types import Card
from xfer.export import plain_load
from xfer.export.metadata import metadata
from xfer.export.parity import run_torch

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from xfer.core.protocols import Runner
    from xfer.core.types import Array, Plain


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

        state = _tensors(net)
        library, reason = plain_load.match(card, state)
        facts: Plain = {"plain_loadable": reason or "yes"}
        if library is not None:
            facts["load"] = plain_load.call(card)
            shift = plain_load.bias_shift(net, library, images)
            if shift is not None:
                name, facts["bias_shift"] = shift
                state[name] += facts["bias_shift"]
        header = {key: str(value) for key, value in facts.items()}
        # save_file would report a full disk as an error of its own.
        path.write_bytes(_in_order(save(state, metadata(card) | header)))
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
            model = plain_load.build(Card.from_plain(json.loads(facts["card"])))
        else:
            model = deepcopy(net)
        model.load_state_dict(load_file(path), strict=True)
        # In the layout that the network itself is asked in.
        model = model.eval().to(memory_format=torch.channels_last)
        run, shift = run_torch(model), float(facts.get("bias_shift", 0))
        return lambda images: run(images) - shift


def _in_order(data: bytes) -> bytes:
    """The same file with its facts sorted by name: the library writes them in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _tensors(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU: floating point as float32, counters as they are."""
    import torch

    return {
        name: tensor.detach()
        .to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        .contiguous()
        for name, tensor in net.state_dict().items()
    }
