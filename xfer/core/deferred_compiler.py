"""Importing networks' libraries, and asking for shapes, without torch's compiler, which neither
needs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_NAMED = "torch._dynamo.utils"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Within, an import that names torch's compiler loads it at the first use instead.

    It brings sympy, triton and torch.distributed with it, and takes as long as torch itself.
    torchvision imports one function of it, for detection; timm marks five functions that are not to
    be compiled. Whatever else is asked of the compiler is answered by the real one.
    """
    import torch

    if _COMPILER in sys.modules:
        yield
        return
    real = torch.compiler.disable
    finder, torch.compiler.disable = _Finder(), _disable(real)
    sys.meta_path.insert(0, finder)
    sys.modules[_NAMED] = _Stand(_NAMED)
    try:
        yield
    finally:
        torch.compiler.disable = real
        sys.meta_path.remove(finder)
        _withdraw()


@contextmanager
def compiler_unneeded() -> Iterator[None]:
    """Within, torch's operators on tensors without values run without its compiler.

    Those written in Python are marked as not to be compiled, and the first one that is called
    imports the compiler to ask it for that mark. Here they are called as they are, and lose the
    answer at the end: whoever compiles later asks the compiler itself.
    """
    import torch

    if _COMPILER in sys.modules:
        yield
        return
    asked: list[Any] = []

    def disable(fn: Any, recursive: bool = True, **rest: Any) -> Any:
        asked.append(fn)
        return fn

    stand = ModuleType(_COMPILER)
    stand.__dict__["disable"] = disable
    sys.modules[_COMPILER] = stand
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand:
            del sys.modules[_COMPILER]
        if vars(torch).get("_dynamo") is stand:
            delattr(torch, "_dynamo")
        for fn in asked:
            vars(fn).pop("__dynamo_disable", None)


def _withdraw() -> None:
    if isinstance(sys.modules.get(_NAMED), _Stand):
        del sys.modules[_NAMED]


class _Stand(ModuleType):
    """Stands for the compiler's module until something is asked of it that must be answered."""

    @staticmethod
    def is_compile_supported(device: Any) -> Any:
        """Ask the real function."""
        return importlib.import_module(_NAMED).is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)
        _withdraw()
        return getattr(importlib.import_module(_NAMED), name)


class _Finder:
    """Finds nothing, but sees that the compiler is about to be imported, which ends the stand."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == _COMPILER:
            _withdraw()


def _disable(real: Callable[..., Any]) -> Callable[..., Any]:
    """torch's own marking that waits for the first call, where it can serve."""
    import torch

    def disable(fn: Any = None, recursive: bool = True, **rest: Any) -> Any:
        if isinstance(fn, FunctionType):
            return torch._disable_dynamo(fn, recursive)  # type: ignore[attr-defined]
        return real(fn, recursive, **rest)

    return disable
