"""Runs a ``.mindir`` with torch, as MindSpore's documentation says of each primitive.

It shares nothing with the writer but the field numbers, so that it finds the writer's mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xfer.core.protobuf import Malformed
from xfer.core.protocols import Runner
from xfer.core.types import Plain
from xfer.export.mindir.parse import Call, Program, read


def runner(path: Path) -> Runner:
    """``path`` as a function of images. Raises Malformed for a file that is none of xfer's."""
    program = read(path)
    weights = {name: torch.from_numpy(values.copy()) for name, values in program.tensors.items()}

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return _run(program, weights, torch.from_numpy(images)).numpy()

    return run


def _run(program: Program, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    last = {name: i for i, call in enumerate(program.calls) for name in call.inputs}
    values: Plain = {**weights, **program.constants, program.entry: images}
    for i, call in enumerate(program.calls):
        values[call.output] = _result(call, [values[name] for name in call.inputs])
        for name in call.inputs:
            if last[name] == i and name not in weights:
                values.pop(name, None)  # else all activations would be held at once
    answer: Tensor = values[program.answer]
    return answer


def _result(call: Call, inputs: list[Any]) -> Any:
    if call.primitive not in _PRIMITIVES:
        raise Malformed(f"the primitive '{call.primitive}' is not known")
    result = _PRIMITIVES[call.primitive](inputs, call.attributes)
    if call.dims is not None:
        # MindSpore plans its memory by the shape in the file.
        size = tuple(result.shape)
        planned = tuple(b if a == -1 else a for a, b in zip(call.dims, size, strict=False))
        if len(call.dims) != len(size) or planned != size:
            raise Malformed(f"'{call.output}' is {size}, the file says {call.dims}")
        if result.numpy().dtype != call.kind:
            raise Malformed(f"'{call.output}' is {result.dtype}, the file says {call.kind}")
    return result


def _conv(inputs: list[Tensor], given: Plain) -> Tensor:
    top, bottom, left, right = given["pad_list"]
    if given["pad_mode"] != "pad" or given["format"] != "NCHW" or given["mode"] != 1:
        raise Malformed("a convolution that is padded by a rule")
    padded = functional.pad(inputs[0], (left, right, top, bottom))
    stride, dilation = given["stride"][2:], given["dilation"][2:]
    return functional.conv2d(padded, inputs[1], None, stride, 0, dilation, given["group"])


def _max_pool(inputs: list[Tensor], given: Plain) -> Tensor:
    if given["pad_mode"] != "VALID" or given["format"] != "NCHW":
        raise Malformed("a pool that is padded by a rule")
    return functional.max_pool2d(inputs[0], given["kernel_size"][2:], given["strides"][2:])


def _pad(inputs: list[Any], given: Plain) -> Tensor:
    x, paddings, value = inputs
    if given["mode"] != "constant" or not given["paddings_contiguous"]:
        raise Malformed("a border that is no constant")
    return functional.pad(x, paddings, value=value)


def _slice(inputs: list[Any], given: Plain) -> Tensor:
    x, begin, size = inputs
    spans = zip(begin, size, strict=True)
    return x[tuple(slice(b, None if n == -1 else b + n) for b, n in spans)]  # type: ignore[no-any-return]


def _strided(inputs: list[Any], given: Plain) -> Tensor:
    x: Tensor = inputs[0]
    numbers = inputs[1:]
    for axis, (begin, end, step) in enumerate(zip(*numbers, strict=True)):
        first, last = (
            None if given[mask] >> axis & 1 else place
            for mask, place in (("begin_mask", begin), ("end_mask", end))
        )
        x = x.index_select(axis, torch.tensor(range(x.shape[axis])[first:last:step]))
    return x


def _gather(inputs: list[Any], given: Plain) -> Tensor:
    x: Tensor = inputs[0]
    places, axis = inputs[1:]
    if given["batch_dims"] or places.min() < 0:
        raise Malformed("a gather by image, or from the back")
    chosen = x.index_select(axis, places.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _cast(inputs: list[Tensor], given: Plain) -> Tensor:
    return torch.from_numpy(inputs[0].numpy().astype(given["dst_type"].kind))


def _matmul(inputs: list[Tensor], given: Plain) -> Tensor:
    x, y = inputs
    if x.ndim != 2 or y.ndim != 2:
        raise Malformed("MatMul takes two matrices")
    return (x.T if given["transpose_a"] else x) @ (y.T if given["transpose_b"] else y)


def _batch_matmul(inputs: list[Tensor], given: Plain) -> Tensor:
    x, y = inputs
    if given["transpose_a"] or given["transpose_b"] or x.shape[:-2] != y.shape[:-2]:
        raise Malformed("BatchMatMul takes two stacks of as many matrices")
    return x @ y


def _layer_norm(inputs: list[Tensor], given: Plain) -> tuple[Tensor]:
    x, scale, shift = inputs
    size = x.shape[given["begin_norm_axis"] :]
    return (functional.layer_norm(x, size, scale, shift, given["epsilon"]),)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Elu": functional.elu,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "GeLU": partial(functional.gelu, approximate="tanh"),
    "HSigmoid": functional.hardsigmoid,
    "HSwish": functional.hardswish,
    "Log": torch.log,
    "LogicalNot": torch.logical_not,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "ReLU": torch.relu,
    "ReLU6": functional.relu6,
    "Reciprocal": torch.reciprocal,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterEqual": torch.ge,
    "Less": torch.lt,
    "LessEqual": torch.le,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Mul": torch.mul,
    "NotEqual": torch.ne,
    "Pow": torch.pow,
    "RealDiv": torch.div,
    "Sub": torch.sub,
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


def _of_tensors(inputs: list[Tensor], _: Plain, function: Callable[..., Tensor]) -> Tensor:
    return function(*inputs)


def _reduce(inputs: list[Any], given: Plain, function: Callable[..., Tensor]) -> Tensor:
    return function(inputs[0], inputs[1], keepdim=given["keep_dims"])


_PRIMITIVES: dict[str, Callable[[list[Any], Plain], Any]] = {
    **{name: partial(_of_tensors, function=each) for name, each in (_UNARY | _BINARY).items()},
    **{name: partial(_reduce, function=each) for name, each in _REDUCTIONS.items()},
    "BatchMatMul": _batch_matmul,
    "BiasAdd": lambda x, _: x[0] + x[1].reshape(1, -1, *[1] * (x[0].ndim - 2)),
    "BroadcastTo": lambda x, given: x[0].expand(given["shape"]),
    "Cast": _cast,
    "Concat": lambda x, given: torch.cat(x[0], given["axis"]),
    "Conv2D": _conv,
    "Gather": _gather,
    "LayerNorm": _layer_norm,
    "MakeTuple": lambda x, _: tuple(x),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "PadV3": _pad,
    "Reshape": lambda x, _: x[0].reshape(x[1]),
    "Select": lambda x, _: torch.where(*x),
    "Slice": _slice,
    "Softmax": lambda x, given: x[0].softmax(given["axis"][0]),
    "StridedSlice": _strided,
    "Tile": lambda x, _: x[0].tile(x[1]),
    "Transpose": lambda x, _: x[0].permute(x[1]),
    "TupleGetItem": lambda x, _: x[0][x[1]],
}
