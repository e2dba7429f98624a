"""Tensors that have a shape and no values, in place of images that are not there.

What is computed from them is absent too; modules that see nothing else are skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Unsound(RuntimeError):
    """What is computed from the cut on is not what the whole network computes."""


def each(change: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with every leaf of its tuples, lists and dicts changed."""
    if isinstance(value, dict):
        changed = copy.copy(value)
        changed.update({key: each(change, item) for key, item in value.items()})
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each(change, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(each(change, item) for item in value)
    return change(value)


def leaves(value: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dicts, in order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def tensors(value: Any) -> list[Tensor]:
    """The tensors among the leaves."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


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
        """Shapes only."""
        kwargs = dict(kwargs or {})
        _refuse_writing(func, args, kwargs)
        own = {id(leaf.meta): leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Absent)}
        device = kwargs.get("device") or next(iter(own.values())).device
        if "device" in kwargs:
            kwargs["device"] = "meta"
        args, kwargs = each(_shape_only, (args, kwargs))

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return own[id(leaf)] if id(leaf) in own else Absent(leaf, device)

        return each(wrapped, func(*args, **kwargs))


def _refuse_writing(func: Any, args: Any, kwargs: Any) -> None:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            if not all(isinstance(tensor, Absent) for tensor in tensors(target)):
                raise Unsound("values from before the cut are written into a tensor behind it")


def _shape_only(leaf: Any) -> Any:
    if isinstance(leaf, Absent):
        return leaf.meta
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def shortcut(module: nn.Module) -> Callable[..., Any]:
    """``module.forward``, which runs only once a shape for absent inputs."""
    forward = module.forward
    known: dict[tuple[Any, ...], Any] = {}

    def run(*args: Any, **kwargs: Any) -> Any:
        given = leaves((args, kwargs))
        absent = next((leaf for leaf in given if isinstance(leaf, Absent)), None)
        if absent is None:
            return forward(*args, **kwargs)
        cast = torch.is_autocast_enabled(absent.kind)
        key = (module.training, cast, *kwargs, *map(_described, given))
        if key not in known:
            output = forward(*args, **kwargs)
            if not all(isinstance(leaf, _REPEATABLE) for leaf in leaves(output)):
                return output
            known[key] = output
        return each(lambda leaf: leaf, known[key])

    return run


_REPEATABLE = (Absent, int, float, str, type(None))


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        form = leaf.meta if isinstance(leaf, Absent) else leaf
        return type(leaf), form.shape, form.dtype
    return leaf
