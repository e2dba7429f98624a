"""The optimizer state of a torch file. torch counts parameters; here they get their names back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from xfer.core.errors import WeightsError
from xfer.weights.content import Momenta
from xfer.weights.optimizer_state import param_order

if TYPE_CHECKING:
    import torch

    from xfer.core.types import StateDict
    from xfer.weights.content import Shape

    Memory = dict[int, dict[str, torch.Tensor]]

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NUMBERS = ("step", "mu_product", "mu", "eta")
"""Buffers that are one number a parameter; all others have the parameter's shape."""
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
_FAMILIES = {
    # What the buffers are called, and those that options of the optimizer add.
    "sgd": ({"momentum_buffer"}, set()),
    "adam": ({"step", "exp_avg", "exp_avg_sq"}, {"max_exp_avg_sq", "mu_product"}),
    "RMSprop": ({"step", "square_avg"}, {"momentum_buffer", "grad_avg"}),
    "Adadelta": ({"step", "square_avg", "acc_delta"}, set()),
    "Adagrad": ({"step", "sum"}, set()),
    "Adamax": ({"step", "exp_avg", "exp_inf"}, set()),
    "Rprop": ({"step", "prev", "step_size"}, set()),
    "ASGD": ({"step", "eta", "mu", "ax"}, set()),
}


def trainable(state: StateDict) -> dict[str, Shape]:
    """The shapes of a file's tensors that an optimizer may have held, in the file's order."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if tensor.is_floating_point() and name.rsplit(".", 1)[-1] not in _STATISTICS
    }


@dataclass(frozen=True)
class TorchState:
    """``stored`` is what ``torch.optim.Optimizer.state_dict()`` gave, as a file holds it: of
    plain torch, or one entry of Lightning's ``optimizer_states``. Nothing in it is trusted."""

    stored: Any

    def named(self, parameters: Mapping[str, Shape]) -> Momenta:
        """The state by the file's own names. ``parameters`` are the file's trainable tensors in
        the file's order; some may be unknown to the optimizer, some known to it without state.

        ``algorithm`` is ``sgd``, ``adam`` (also AdamW, NAdam and RAdam) or the name of another
        class of torch.optim. Buffers are floating-point tensors of the parameter's shape;
        ``step`` and its like float32 of shape (). Raises WeightsError when the state is damaged,
        or which parameter it is of cannot be told for certain.
        """
        groups, names = _groups(self.stored)
        memory = _memory(self.stored["state"], set(chain(*groups)))
        algorithm = _algorithm(memory)
        shapes = {index: _shape(index, buffers) for index, buffers in memory.items()}
        if names is None:
            names = param_order.names(groups, shapes, parameters)
        for index, shape in shapes.items():
            _check_name(names[index], shape, parameters)
            for key, tensor in memory[index].items():
                _check_values(names[index], key, tensor)
        return Momenta(algorithm, {names[index]: buffers for index, buffers in memory.items()})


def _groups(stored: Any) -> tuple[list[list[int]], dict[int, str] | None]:
    """torch's numbers by group, and their names where torch wrote them."""
    for key, kind in (("state", dict), ("param_groups", list)):
        if not isinstance(stored, dict) or not isinstance(_get(stored, key), kind):
            raise _damaged(f"has no '{key}' of torch's kind")
    groups = stored["param_groups"]
    if not all(isinstance(g, dict) and _are(int, _get(g, "params")) for g in groups):
        raise _damaged("has a group without the numbers of its parameters")
    numbers = [index for group in groups for index in group["params"]]
    if len(set(numbers)) != len(numbers) or not all(0 <= i < 2**64 for i in numbers):
        raise _damaged("has a parameter in two groups, or a number that is none")
    if not any("param_names" in group for group in groups):
        return [group["params"] for group in groups], None
    pairs = [pair for group in groups for pair in _pairs(group)]
    if len({name for _, name in pairs}) != len(numbers):
        raise _damaged("has 'param_names' that are not one a parameter")
    return [numbers], dict(pairs)


def _get(mapping: dict[Any, Any], key: str) -> Any:
    # A pickle can give an OrderedDict an attribute named get.
    return mapping[key] if key in mapping else None  # noqa: SIM401


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _pairs(group: dict[Any, Any]) -> list[tuple[int, str]]:
    names = _get(group, "param_names")
    fits = _are(str, names) and len(names) == len(group["params"])
    return list(zip(group["params"], names, strict=True)) if fits else []


def _memory(state: dict[Any, Any], known: set[int]) -> Memory:
    """What is remembered of each parameter of which anything is."""
    found: Memory = {}
    for index in state:
        if type(index) is not int or index not in known:
            raise _damaged("has state of a parameter that is in no group")
        entry = state[index]
        if not isinstance(entry, dict) or not _are(str, list(entry)):
            raise _damaged(f"has state of parameter {index} that is not by name")
        # SGD writes None before it has a momentum.
        kept = {key: _tensor(index, key, entry[key]) for key in entry if entry[key] is not None}
        if kept:
            found[index] = kept
    if not found:
        raise WeightsError(_WHERE, "the file's optimizer remembers nothing", _IGNORE, 25)
    return found


def _tensor(index: int, key: str, value: Any) -> torch.Tensor:
    """A plain tensor on the CPU, detached; numbers as float32 of shape ()."""
    import torch

    wanted = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    if key in _NUMBERS:
        wanted += [torch.int32, torch.int64]
        if type(value) is float or (type(value) is int and abs(value) < 2**53):
            value = torch.tensor(value, dtype=torch.float64)
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_nested
    plain = plain and value.device.type == "cpu" and value.layout is torch.strided
    if not plain or value.dtype not in wanted:
        kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
        what = f"its entry {index}.{key[:40]} is a {kind}, no plain tensor"
        raise WeightsError(_WHERE, what, _IGNORE, 22)
    # Of the class, because a pickle can give a tensor an attribute named detach.
    tensor = torch.Tensor.detach(value)
    return tensor.reshape(()).float() if key in _NUMBERS and tensor.numel() == 1 else tensor


def _algorithm(memory: Memory) -> str:
    """Whose buffers these are."""
    kept = [frozenset(buffers) for buffers in memory.values()]
    for family, (needed, optional) in _FAMILIES.items():
        if needed <= kept[0] <= needed | optional and set(kept) == {kept[0]}:
            return family
    kinds = sorted({" ".join(sorted(keys))[:80] for keys in kept})
    raise WeightsError(
        _WHERE,
        f"no optimizer of torch keeps ({') and ('.join(kinds[:3])}) a parameter",
        _IGNORE,
        24,
    )


def _shape(index: int, buffers: Mapping[str, torch.Tensor]) -> Shape:
    shapes = {tuple(t.shape) for key, t in buffers.items() if key not in _NUMBERS}
    numbers = {tuple(t.shape) for key, t in buffers.items() if key in _NUMBERS}
    if len(shapes) != 1 or not numbers <= {()}:
        raise _damaged(f"has buffers of several shapes for parameter {index}")
    return shapes.pop()


def _check_name(name: str, shape: Shape, parameters: Mapping[str, Shape]) -> None:
    if name not in parameters:
        what = f"the file has state of '{name[:80]}', but no such weight"
        raise WeightsError(_WHERE, what, _IGNORE, 26)
    if shape != parameters[name]:
        what = f"the state of '{name}' is {list(shape)}, the weight {list(parameters[name])}"
        raise WeightsError(_WHERE, what, _IGNORE, 26)


def _check_values(name: str, key: str, tensor: torch.Tensor) -> None:
    """Finite; a whole number of steps; no negative squares."""
    fine = bool(tensor.isfinite().all())
    if fine and key == "step":
        fine = float(tensor) >= 0 and float(tensor).is_integer()
    if fine and key in _SQUARES:
        fine = not bool((tensor < 0).any())
    if not fine:
        what = f"the state '{key}' of '{name}' holds NaN, Inf or what it cannot be"
        raise WeightsError(_WHERE, what, _IGNORE, 23)


def _damaged(what: str) -> WeightsError:
    return WeightsError(_WHERE, f"the file's optimizer state {what}", _IGNORE, 21)
