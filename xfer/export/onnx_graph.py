"""A network's ONNX graph without its weights: traced once, filled with any weights of that network.

torch traces with tensors that have shapes and no values, so what it traces depends on the layers
and their settings alone. Folding and fusing, which look at the values, come after the weights have
been filled in. A file is made this way with and without a cache, and is the same.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from xfer.core.errors import OutputError
from xfer.core.log import log
from xfer.core.protocols import Graphs
from xfer.core.types import Plain
from xfer.export.cache_key import versions

if TYPE_CHECKING:
    import torch
    from torch import nn

_FORMAT = 2
_LIBRARIES = ("torch", "timm", "torchvision", "xfer")
_DISTRIBUTIONS = (
    *("torch", "timm", "torchvision", "onnx", "onnxscript", "onnx-ir", "pillow", "xfer-vision"),
)
_BOOKKEEPING = {"_parameters", "_buffers", "_modules", "training"}
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WEIGHT = "weights/"
"""Before the name of a tensor that is still to be filled in: no name of an exporter has a slash
there, and a tensor may be called as the output of a layer is."""


@dataclass(frozen=True)
class Traced:
    """What is traced: ``net`` from an ``example`` of ``images`` to ``outputs``, which are names;
    ``free`` are the dimensions of any size, by axis."""

    net: nn.Module
    example: torch.Tensor
    free: dict[int, Any]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class GraphCache:
    """Traced graphs in ``stored``. ``used`` has the keys, and ``hits`` the files, of those that an
    earlier run has traced."""

    stored: Graphs
    used: dict[str, Plain] = field(default_factory=dict)

    @property
    def hits(self) -> tuple[str, ...]:
        """The files that were made of a graph of an earlier run."""
        return tuple(self.used)

    def graph(self, file: str, traced: Traced, opset: int) -> bytes:
        """The graph of ``traced``, for ``file``. A cache that cannot be written costs a line and
        the time to trace, and nothing else."""
        try:
            layers = layers_of(traced.net)
        except UnknownLayer as error:  # code of the user's own may change between two runs
            log.info(f"export/{file} is traced at every export: {error}")
            return trace(traced, opset)
        key = _key(traced, layers, opset)
        try:
            data, hit = self.stored.content(key, partial(trace, traced, opset))
        except OutputError as error:
            log.warning(f"the traced graph is not cached: {error.where}: {error.what}")
            return trace(traced, opset)
        if hit:
            self.used[file] = key
        return data

    def forget(self, file: str) -> bool:
        """Remove the graph of ``file`` where it was an earlier run's; whether it was."""
        key = self.used.pop(file, None)
        if key is None:
            return False
        self.stored.forget(key, "the file made of it does not answer as the network does")
        return True


def model_of(traced: Traced, opset: int, file: str = "", graphs: GraphCache | None = None) -> Any:
    """The ``onnx.ModelProto`` of ``traced``, its graph out of ``graphs`` where there are some."""
    data = graphs.graph(file, traced, opset) if graphs else trace(traced, opset)
    return filled(data, traced.net)


def trace(traced: Traced, opset: int) -> bytes:
    """The graph of ``traced``, as ONNX writes one whose weights are in another file."""
    import torch
    from onnxscript import ir

    # It prints its progress, and pages of advice; what goes wrong is in its exception.
    silent = (redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()))
    with silent[0], silent[1], _out_of_place(traced):
        program: Any = torch.onnx.export(
            traced.net,
            (traced.example,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=[*traced.outputs],
            opset_version=opset,
            dynamic_shapes=(traced.free,),
            optimize=False,
        )
    model = program.model
    for node in model.graph.all_nodes():
        # It names the paths of the machine that exported.
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    state = traced.net.state_dict()
    for name, value in [*model.graph.initializers.items()]:
        if name in state:
            shape = ir.Shape(value.const_value.shape)
            kind, value.name = value.const_value.dtype, _WEIGHT + name
            value.const_value = ir.ExternalTensor(name, 0, 0, kind, shape=shape, name=value.name)
    return bytes(ir.to_proto(model).SerializeToString())


@contextmanager
def _out_of_place(traced: Traced) -> Iterator[None]:
    """Within it, no activation writes over its input: a graph has no such thing, and to take one
    apart costs the exporter as long again as the rest of a network with many (ReLU6 most of all).
    One whose answers to the example depend on it, since a shortcut reads what was written over,
    stays as it is."""
    import torch

    layers = [m for m in traced.net.modules() if getattr(m, "inplace", False) is True]

    def answers(inplace: bool) -> list[torch.Tensor]:
        for layer in layers:
            layer.inplace = inplace  # type: ignore[assignment]
        with torch.no_grad():
            given = traced.net(traced.example.clone())
        return [*given] if isinstance(given, tuple) else [given]

    try:
        if layers and not all(map(torch.equal, answers(True), answers(False))):
            answers(True)
        yield
    finally:
        for layer in layers:
            layer.inplace = True  # type: ignore[assignment]


def filled(graph: bytes, net: nn.Module) -> Any:
    """``graph`` with the weights of ``net``, then optimised, as an ``onnx.ModelProto``."""
    import onnx
    import torch
    from onnxscript import ir

    model, state = ir.from_proto(onnx.ModelProto.FromString(graph)), net.state_dict()
    for name, value in [*model.graph.initializers.items()]:
        if name.startswith(_WEIGHT):
            value.name = name.removeprefix(_WEIGHT)
            tensor = state[value.name].detach()
            value.const_value = ir.tensor(tensor.numpy(), name=value.name)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.ONNXProgram(model, None)
        program.optimize()
    return program.model_proto


def _key(traced: Traced, layers: str, opset: int) -> Plain:
    """Everything that the graph depends on."""
    example = traced.example
    return {
        "kind": "traced graph",
        "format": _FORMAT,
        "layers": layers,
        "input": [str(example.dtype), *example.shape],
        "free": {str(axis): str(size) for axis, size in traced.free.items()},
        "outputs": list(traced.outputs),
        "opset": opset,
        "python": list(sys.version_info[:3]),
        "versions": versions(_DISTRIBUTIONS),
    }


class UnknownLayer(Exception):
    """What of a network cannot be written down, in one line."""


def layers_of(net: nn.Module) -> str:
    """The sha256 of the layers of ``net``: their classes, settings, the names and shapes of their
    tensors, and the values of those that are no weights. Raises UnknownLayer where they are more
    than that, such as code that belongs to no library."""
    names: dict[int, str] = {}
    for name, module in net.named_modules():
        names[id(module)] = name
    lines = [line for _, module in net.named_modules() for line in _layer(module, names)]
    state = net.state_dict()
    lines += [f"{name}: {tensor.dtype} {list(tensor.shape)}" for name, tensor in state.items()]
    lines += [
        f"{name} = {_setting(tensor, names)}"
        for name, tensor in net.named_buffers()
        if name not in state
    ]
    # A checkout changes under one version.
    kinds = {type(module) for module in net.modules()}
    files = {inspect.getfile(kind) for kind in kinds if kind.__module__.startswith("xfer.")}
    lines += [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _layer(module: nn.Module, names: dict[int, str]) -> list[str]:
    facts, place = vars(module), names[id(module)] or "the network"
    if any(facts.get(hooks) for hooks in _FORWARD_HOOKS):
        raise UnknownLayer(f"{place} has a hook")
    if "forward" in facts:
        raise UnknownLayer(f"{place} has a forward pass that is not that of its class")
    settings = []
    for key, value in facts.items():
        if key not in _BOOKKEEPING and not key.endswith("_hooks"):
            try:
                settings.append(f"{key}={_setting(value, names)}")
            except UnknownLayer as error:
                raise UnknownLayer(f"'{key}' of {place}: {error}") from None
    children = [f"{key}->{names[id(m)]}" for key, m in module._modules.items() if m is not None]
    try:
        return [names[id(module)], _named(type(module)), *settings, *children]
    except UnknownLayer as error:
        raise UnknownLayer(f"{place}: {error}") from None


def _setting(value: object, names: dict[int, str]) -> str:
    """``value`` as text that differs where it does. Raises UnknownLayer."""
    import torch

    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, torch.dtype | torch.device | Enum):
        return str(value)
    if isinstance(value, torch.nn.Module) and id(value) in names:
        return f"->{names[id(value)]}"
    return _compound(value, names)


def _compound(value: Any, names: dict[int, str]) -> str:
    each: Callable[[object], str] = partial(_setting, names=names)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[{', '.join(map(each, value))}]"
    if isinstance(value, set | frozenset):
        return f"set{sorted(map(each, value))}"
    if isinstance(value, dict):
        return f"dict[{', '.join(f'{each(k)}: {each(v)}' for k, v in value.items())}]"
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _named(value)
    if isinstance(value, partial):
        return f"partial({each(value.func)}, {each(value.args)}, {each(value.keywords)})"
    if is_dataclass(value):
        return f"{_named(type(value))}{[each(getattr(value, f.name)) for f in fields(value)]}"
    raise UnknownLayer(f"values of the type {type(value).__name__} cannot be written down")


def _named(code: Any) -> str:
    """Where a class or function of a library is. Raises UnknownLayer for other code, and for a
    function that holds values of its own."""
    module, name = getattr(code, "__module__", None) or "", str(code.__qualname__)
    builtin = module in ("builtins", "math", "_operator") or module.startswith("torch._C")
    if getattr(code, "__closure__", None) or "<lambda>" in name:
        raise UnknownLayer(f"the function {name} may hold values of its own")
    if not (builtin or module.partition(".")[0] in _LIBRARIES):
        raise UnknownLayer(f"{module}.{name} is code of no library, and may change")
    return f"{module}.{name}"
