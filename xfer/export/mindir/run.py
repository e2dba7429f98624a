"""Runs a ``.mindir`` with torch, as MindSpore's documentation says of each primitive.

It shares nothing with the writer but the field numbers, so that it finds the writer's mistakes.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _pad(inputs: list[Tensor], given: Plain) -> Tensor:
    flat = [n for before, after in reversed(given["paddings"]) for n in (before, after)]
    return functional.pad(inputs[0], flat)


def _slice(inputs: list[Any], given: Plain) -> Tensor:
    x, begin, size = inputs
    spans = zip(begin, size, strict=True)
    return x[tuple(slice(b, None if n == -1 else b + n) for b, n in spans)]  # type: ignore[no-any-return]


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


_PRIMITIVES: dict[str, Callable[[list[Any], Plain], Any]] = {
    "Add": lambda x, _: x[0] + x[1],
    "BatchMatMul": _batch_matmul,
    "BiasAdd": lambda x, _: x[0] + x[1].reshape(1, -1, *[1] * (x[0].ndim - 2)),
    "Concat": lambda x, given: torch.cat(x[0], given["axis"]),
    "Conv2D": _conv,
    "Erf": lambda x, _: x[0].erf(),
    "GeLU": lambda x, _: functional.gelu(x[0], approximate="tanh"),
    "HSigmoid": lambda x, _: functional.hardsigmoid(x[0]),
    "HSwish": lambda x, _: functional.hardswish(x[0]),
    "LayerNorm": _layer_norm,
    "MakeTuple": lambda x, _: tuple(x),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": lambda x, _: x[0] * x[1],
    "Pad": _pad,
    "ReLU": lambda x, _: x[0].clamp(min=0),
    "ReLU6": lambda x, _: x[0].clamp(0, 6),
    "RealDiv": lambda x, _: x[0] / x[1],
    "ReduceMean": lambda x, given: x[0].mean(x[1], keepdim=given["keep_dims"]),
    "Reshape": lambda x, _: x[0].reshape(x[1]),
    "Sigmoid": lambda x, _: x[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda x, given: x[0].softmax(given["axis"][0]),
    "Sub": lambda x, _: x[0] - x[1],
    "Transpose": lambda x, _: x[0].permute(x[1]),
    "TupleGetItem": lambda x, _: x[0][x[1]],
}
