"""A network that is run up to a cut once, and from the cut on in every step.

A cut is the input of one module (of several, for two classifiers side by side): all before it is
frozen, draws no random number and moves no statistic, and all after it depends on the images
through that input alone. :func:`xfer.training.features.find_cut.find` finds one.

The tail is the same network, with its own code and names, on images that are
:class:`~xfer.training.features.shape_tensor.Absent`: an answer that needs a value from before the
cut is an error, in every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from xfer.core.errors import ConfigError
from xfer.core.read_back import checked
from xfer.core.types import Plain
from xfer.training.features.shape_tensor import Absent, Unsound, shortcut, tensors


@dataclass(frozen=True)
class Part:
    """A tensor that enters at the cut: input number ``index`` of ``module``. ``shape`` and
    ``strides`` (in elements) are those of one image."""

    module: str
    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Where the frozen prefix ends. ``parts`` come in the order of their use and have ``dtype``;
    ``image`` and ``image_dtype`` are those of one image; ``after`` names the outermost modules
    that are called after the cut only. The network hands the one part of a ``direct`` cut through
    the modules of these paths and answers, in evaluation, with what that gives, flattened."""

    parts: tuple[Part, ...]
    dtype: str
    image: tuple[int, ...]
    image_dtype: str
    after: tuple[str, ...]
    direct: tuple[str, ...] = field(default=(), compare=False)

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted paths of the modules whose inputs are cached, in the order of their calls."""
        return tuple(dict.fromkeys(part.module for part in self.parts))

    @property
    def size(self) -> int:
        """Numbers an image."""
        return sum(prod(part.shape) for part in self.parts)

    def bytes_per_image(self) -> int:
        """Stored as they are computed."""
        return self.size * dtype_of(self.dtype).itemsize

    def to_plain(self) -> Plain:
        """As JSON-like facts, for plan and cache key."""
        facts: Plain = json.loads(json.dumps(asdict(self)))
        return facts

    @classmethod
    def from_plain(cls, facts: Plain) -> Cut:
        """The reverse of :meth:`to_plain`. Raises ValueError for facts of another kind."""
        cut: Cut = checked(cls, facts)
        return cut


def extract(net: nn.Module, cut: Cut, images: Tensor) -> Tensor:
    """What enters at the cut, (n, ``cut.size``), computed in inference mode, without a gradient.

    Nothing after the cut is computed. Raises ConfigError when the network is of another shape.
    """
    blocks: dict[Part, Tensor] = {}

    def copy_inputs(path: str, inputs: Sequence[Tensor]) -> None:
        for part in cut.parts:
            if part.module != path:
                continue
            tensor = inputs[part.index]
            if tuple(tensor.shape[1:]) != part.shape:
                what = f"'{path}' takes {tuple(tensor.shape[1:])} an image, the cut {part.shape}"
                raise ConfigError("features", what, "delete the cached features", 55)
            n, size = len(tensor), prod(part.shape)
            # The numbers of an image in the order in which they lie in memory.
            blocks[part] = tensor.new_empty((n, size))
            blocks[part].as_strided((n, *part.shape), (size, *part.strides)).copy_(tensor)
        if path == cut.modules[-1]:
            raise _Reached

    with torch.no_grad(), inference(net), ExitStack() as hooks, suppress(_Reached):
        for path in cut.modules:
            before(module_at(net, path), partial(copy_inputs, path), hooks)
        net(images)
    return torch.cat([blocks[part] for part in cut.parts], dim=1)


class _Reached(Exception):
    """The cut; what comes after it is not computed."""


def prefix_state(net: nn.Module, cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the features can depend on, by name: all that is frozen, but for modules
    after the cut. Other facts of the layers (padding, eps) are not tensors."""
    after = tuple(f"{path}." for path in cut.after)
    for name, tensor in chain(
        net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)
    ):
        if not tensor.requires_grad and not name.startswith(after):
            yield name, tensor


class Tail:
    """From here on ``net(features)`` computes what comes after the cut, and gives what the whole
    network gives. Features are (n, ``cut.size``) on the network's device. Names, parameters and
    modes stay; :meth:`close` makes the network whole again."""

    def __init__(self, net: nn.Module, cut: Cut) -> None:
        self.cut = cut
        self._features: dict[Part, Tensor] = {}
        self._hooks = [
            net.register_forward_pre_hook(lambda _, args: self._enter(*args)),
            net.register_forward_hook(lambda _, __, output: self._leave(output)),
        ]
        for path in cut.modules:
            # First of all: what else is done to the input is done to the features.
            feed = module_at(net, path).register_forward_pre_hook(
                self._feed(path), with_kwargs=True, prepend=True
            )
            self._hooks.append(feed)
        self._skipped = [
            (module, module.__dict__.get("forward"))
            for path, module in net.named_modules()
            if not any(nested(path, at) or nested(at, path) for at in cut.modules)
        ]
        for module, _ in self._skipped:
            module.__dict__["forward"] = shortcut(module)

    def close(self) -> None:
        """The whole network again."""
        for hook in self._hooks:
            hook.remove()
        for module, forward in self._skipped:
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward
        self._skipped = []

    def _enter(self, features: Tensor) -> Tensor:
        cut = self.cut
        if features.shape[1:] != (cut.size,):
            what = f"features are {tuple(features.shape)}, the cut asks for (n, {cut.size})"
            raise ConfigError("features", what, "delete the cached features", 57)
        sizes = [prod(part.shape) for part in cut.parts]
        pieces = torch.split(features, sizes, dim=1)
        for part, piece in zip(cut.parts, pieces, strict=True):
            self._features[part] = _entering(part, piece)
        shape, dtype = (len(features), *cut.image), dtype_of(cut.image_dtype)
        return Absent(torch.empty(shape, dtype=dtype, device="meta"), features.device)

    def _feed(self, path: str) -> Callable[..., Any]:
        parts = {part.index: part for part in self.cut.parts if part.module == path}

        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            number = count()

            def fed(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor):
                    return leaf
                part = parts.get(next(number))
                return leaf if part is None else self._features.pop(part)

            return tree_map(fed, (args, kwargs))

        return hook

    def _leave(self, output: Any) -> None:
        if any(isinstance(tensor, Absent) for tensor in tensors(output)):
            raise Unsound("values from before the cut are used after it as well")


def _entering(part: Part, features: Tensor) -> Tensor:
    """What enters at ``part``: its ``features`` (n, size) in the shape and order of memory of one
    that is computed."""
    # A copy: some architectures drop out in place, and the caller may use it again.
    dense = features.clone(memory_format=torch.contiguous_format)
    return dense.as_strided((len(dense), *part.shape), (dense.stride(0), *part.strides))


@contextmanager
def evaluated_from(net: nn.Module, cut: Cut) -> Iterator[Callable[[Tensor], Any]]:
    """A function of features (n, ``cut.size``) that gives what ``net``, in evaluation mode, gives.

    Of a ``direct`` cut its modules are called by themselves: to work out the shapes of all that
    comes before them takes as long as to solve a head.
    """
    outside = [net, *map(net.get_submodule, containers(cut.direct))]
    if not cut.direct or any(m._forward_hooks or m._forward_pre_hooks for m in outside):
        with closing(Tail(net, cut)):
            yield net
        return
    (part,), modules = cut.parts, [module_at(net, path) for path in cut.direct]

    def run(features: Tensor) -> Tensor:
        x = _entering(part, features)
        for module in modules:
            x = module(x)
        return x.flatten(1)

    yield run


def containers(paths: Sequence[str]) -> set[str]:
    """The paths of the modules, but the network itself, that the first of ``paths`` is inside."""
    names = paths[0].split(".") if paths else []
    return {".".join(names[:depth]) for depth in range(1, len(names))}


def dtype_of(name: str) -> torch.dtype:
    """``float32`` as torch has it."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def nested(path: str, outer: str) -> bool:
    """Whether ``path`` is ``outer`` or inside it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def module_at(net: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; raises ConfigError when there is none."""
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        what = f"the network has no module '{path}' to be cut at"
        raise ConfigError("features", what, "delete the cached features", 58) from error


def before(module: nn.Module, act: Callable[[Sequence[Tensor]], None], hooks: ExitStack) -> None:
    """Call ``act`` with the input tensors of ``module`` before each of its calls."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        act(tensors((args, kwargs)))

    # First of all: the input as it comes, whatever else is done to it.
    hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))


@contextmanager
def inference(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has its own mode again."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        # Of the network itself alone: some call their auxiliary heads in training only.
        net.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode
