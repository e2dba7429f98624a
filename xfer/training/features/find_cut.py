"""The latest place at which a partly frozen network can be cut.

The finder watches one training step and proposes the latest inputs that are computed by what is
frozen; it takes one only when it is proved (see :mod:`xfer.training.features.prove_cut`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xfer.core.errors import printable
from xfer.training.features.cut import Cut, Part, nested
from xfer.training.features.prove_cut import Whole, random_states

_IMAGES = 2  # that a proof takes
_TRIES = 8  # proposals that are tried
_RECENT = 64  # calls whose inputs the finder keeps in memory


@dataclass(frozen=True)
class Refusal:
    """Why a network cannot be cut, in one line."""

    reason: str


def find(
    net: nn.Module, example: Tensor, heads: Sequence[str], answers: bool = False
) -> Cut | Refusal:
    """The latest cut of ``net`` that the first two images of ``example`` (n, 3, h, w) prove: for
    steps of training too, unless only ``answers`` in evaluation are asked of it.

    ``net`` is in the mode in which it trains, frozen modules held, and without a ``Tail``; it is
    left as it is. The inputs of ``heads`` come first, then the input of one module, the latest
    first.
    """
    if len(example) < _IMAGES:
        return Refusal(f"a cut is proved on {_IMAGES} images or more")
    trace = _CallTrace(example[:_IMAGES], tuple(heads))
    try:
        whole = Whole(net, trace.images, trace.look)
    except Exception as error:
        return Refusal(f"the network fails on {_IMAGES} images: {printable(error)[:200]}")
    refused = "nothing frozen is computed before the first layer that trains or is random"
    for n, chosen in enumerate(trace.proposals(whole.drawers())[:_TRIES]):
        cut = trace.cut(chosen)
        cut = replace(cut, direct=whole.direct(cut))
        reason = whole.refutes(cut, answers)
        if reason is None:
            return cut
        refused = refused if n else reason
    return Refusal(refused)


@dataclass(frozen=True)
class _Call:
    """The ``order``-th call of a module, which of its inputs could be cached, and their
    identity."""

    order: int
    path: str
    inputs: dict[int, Tensor]
    key: tuple[tuple[int, int], ...]


class _CallTrace:
    """The calls of one training step on ``images``, and those whose input is computed by what is
    frozen."""

    def __init__(self, images: Tensor, heads: tuple[str, ...]) -> None:
        self.images, self.heads = images, heads
        self.calls: list[str] = []
        self.at_heads: list[_Call] = []
        self.could_draw: list[_Call] = []
        self.recent: deque[_Call] = deque(maxlen=_RECENT)
        self._start: Any = None
        self._modules: list[nn.Module] = []
        self._computed, self._untouched = False, True

    def look(self, net: nn.Module, path: str, inputs: Sequence[Tensor]) -> None:
        """Note the call of the module at ``path``; what it takes is computed by what is frozen as
        long as no random number was drawn and no parameter or buffer was written."""
        module = net.get_submodule(path)
        weighted = any(True for _ in module.parameters(recurse=False))
        if self._untouched:
            # Not net.parameters(), which looks for names: this is done at every call of a module.
            self._modules = self._modules or [*net.modules()]
            held = (
                t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values())
            )
            versions = [tensor._version for tensor in held if tensor is not None]
            state = random_states(self.images.device), versions
            self._start = self._start or state
            self._untouched = state == self._start
        of_images = {
            i: tensor
            for i, tensor in enumerate(inputs)
            if tensor.is_floating_point() and tensor.ndim and len(tensor) == len(self.images)
        }
        # A layer that works in place gives the tensor that it took, with another version.
        key = tuple((id(tensor), tensor._version) for tensor in of_images.values())
        call = _Call(len(self.calls), path, of_images, key)
        frozen = not any(t.requires_grad or t is self.images for t in of_images.values())
        if self._computed and frozen and len({t.dtype for t in of_images.values()}) == 1:
            if self._untouched:
                self.recent.append(call)
            if path in self.heads:
                self.at_heads.append(call)
            if module.training and not weighted:
                self.could_draw.append(call)
        self.calls.append(path)
        self._computed = self._computed or weighted

    def proposals(self, drawers: Collection[str]) -> list[list[_Call]]:
        """All heads at once, then with the one of ``drawers`` before each (dropout) in its place;
        then single modules, the latest first and the outermost of several that take the same
        tensors."""
        by_input: dict[Any, _Call] = {}
        for call in self.recent:
            if self.calls.count(call.path) == 1:
                by_input.setdefault(call.key, call)
        proposals = [[call] for call in reversed(by_input.values())]
        if sorted(call.path for call in self.at_heads) == sorted(self.heads):
            before_heads: list[_Call] = []
            for head in self.at_heads:
                last = before_heads[-1].order if before_heads else -1
                between = [c for c in self.could_draw if last < c.order < head.order]
                drew = [call for call in between if call.path in drawers]
                before_heads.append(drew[-1] if drew else head)
            proposals = [self.at_heads, before_heads, *proposals]
        return [chosen for i, chosen in enumerate(proposals) if chosen not in proposals[:i]]

    def cut(self, chosen: Sequence[_Call]) -> Cut:
        """The cut at the inputs of ``chosen``."""
        parts = tuple(
            Part(call.path, index, tuple(tensor.shape[1:]), _strides(tensor))
            for call in chosen
            for index, tensor in call.inputs.items()
        )
        cut_paths = [call.path for call in chosen]
        last = chosen[-1].order
        earlier = {
            ".".join(path.split(".")[:depth])
            for path in self.calls[: last + 1]
            if not any(nested(path, cut_path) for cut_path in cut_paths)
            for depth in range(1, path.count(".") + 2)
        }
        after: list[str] = []
        for path in [*cut_paths, *self.calls[last + 1 :]]:
            if path not in earlier and not any(nested(path, outer) for outer in after):
                after.append(path)
        dtype = next(iter(chosen[0].inputs.values())).dtype
        image, image_dtype = tuple(self.images.shape[1:]), _name(self.images.dtype)
        return Cut(parts, _name(dtype), image, image_dtype, tuple(after))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Of one image: as they are where it fills its memory, else those of a contiguous copy."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size != 1 and stride != filled:
            return tensor[0].contiguous().stride()
        filled *= size
    return tensor.stride()[1:]
