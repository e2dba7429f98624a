"""Tensors that have a shape and no values, in place of images that are not there.

What is computed from them is absent too; modules that see nothing else are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from xfer.core.deferred_compiler import compiler_unneeded


class Unsound(RuntimeError):
    """What is computed from the cut on is not what the whole network computes."""


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Absent(Tensor):
    """A tensor with shape, dtype and device, but without values. What is computed from it is
    absent too; to read a number from it, or to write it into a real tensor, is an error."""

    meta: Tensor
    kind: str

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device) -> Absent:
        """Like ``meta``, as if it were on ``device``."""
        return Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype, device=device
        )

    def __init__(self, meta: Tensor, device: torch.device) -> None:
        # Read from here for every module of every step, which from the tensor itself is slow.
        self.meta, self.kind = meta, device.type

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Absent{tuple(self.shape)}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As a plain tensor does it. That this method exists keeps torch off fused kernels."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute the shape on the meta device. Raises Unsound where values are needed."""
        kwargs = dict(kwargs or {})
        _refuse_writing(func, args, kwargs)
        absent = {id(t.meta): t for t in tensors((args, kwargs)) if isinstance(t, Absent)}
        device = kwargs.get("device") or next(iter(absent.values())).device
        if "device" in kwargs:
            kwargs["device"] = "meta"

        def shape_only(leaf: Any) -> Any:
            if isinstance(leaf, Absent):
                return leaf.meta
            return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return absent[id(leaf)] if id(leaf) in absent else Absent(leaf, device)

        args, kwargs = tree_map(shape_only, (args, kwargs))
        return tree_map(wrapped, _shapes(func, args, kwargs))


def _shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """``func`` on the meta device."""
    try:
        with compiler_unneeded():
            return func(*args, **kwargs)
    except (ImportError, AttributeError):  # it asks the compiler for more than its mark
        return func(*args, **kwargs)


def _refuse_writing(func: Any, args: Any, kwargs: Any) -> None:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            if not all(isinstance(tensor, Absent) for tensor in tensors(target)):
                raise Unsound("values from before the cut are written into a tensor after it")


def shortcut(module: nn.Module) -> Callable[..., Any]:
    """``module.forward``, which for absent inputs runs once for each shape."""
    forward = module.forward
    outputs: dict[tuple[Any, ...], Any] = {}

    def described(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            form = leaf.meta if isinstance(leaf, Absent) else leaf
            return type(leaf), form.shape, form.dtype
        return leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        given = tree_leaves((args, kwargs))
        absent = next((leaf for leaf in given if isinstance(leaf, Absent)), None)
        if absent is None:
            return forward(*args, **kwargs)
        cast = torch.is_autocast_enabled(absent.kind)
        key = (module.training, cast, *kwargs, *map(described, given))
        if key not in outputs:
            output = forward(*args, **kwargs)
            if not all(isinstance(leaf, _REPEATABLE) for leaf in tree_leaves(output)):
                return output
            outputs[key] = output
        # New containers at each call: the caller may write into them.
        return tree_map(lambda leaf: leaf, outputs[key])

    return run


_REPEATABLE = (Absent, int, float, str, type(None))
