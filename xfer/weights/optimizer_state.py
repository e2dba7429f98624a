"""The optimizer state in a file of weights, under the names of the network that goes on with it.

torch counts parameters in place of naming them. Every group lists its parameters in the model's
order, because they come out of ``model.named_parameters()``, whole or filtered. So the shapes of
the buffers tell them apart, unless there are two ways to deal the parameters to the groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from xfer.core.errors import WeightsError
from xfer.core.types import StateDict
from xfer.weights.content import USED, Match, OptimizerBuffers, OptimizerState, Shape, Weights
from xfer.weights.reshape import adapted

if TYPE_CHECKING:
    import torch

_WHERE = "source.optimizer"
_IGNORE = "type source.optimizer=ignore"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NUMBERS = ("step", "mu_product")
"""Buffers that are one number a parameter; all others have the parameter's shape."""
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")
_FAMILIES = {
    # What the buffers are called, and those that options of the optimizer add.
    "sgd": ({"momentum_buffer"}, set[str]()),
    "adam": ({"step", "exp_avg", "exp_avg_sq"}, {"max_exp_avg_sq", "mu_product"}),
}
_PATIENCE = 1_000_000
"""How much is tried before the ways are too many; about a second."""


def continued(
    optimizer: OptimizerState, weights: Weights, match: Match, heads: Sequence[str]
) -> tuple[OptimizerBuffers, list[str]]:
    """The state of everything that was loaded, and the file's names whose state was left out.

    ``optimizer`` is that of ``weights``, ``heads`` are the classifier paths that are replaced.
    Raises WeightsError when the state does not belong to these weights.
    """
    file = {weights.renamed.get(n, n): tensor for n, tensor in (weights.state or {}).items()}
    saved = optimizer.named(trainable(file))
    replaced = tuple(f"{head}." for head in heads)
    rows = {row.key: row.name for row in match.rows if row.name and row.fate in USED}
    buffers: dict[str, dict[str, torch.Tensor]] = {}
    dropped = []
    for key, tensors in saved.buffers.items():
        name = rows.get(key)
        if name is None or name.startswith(replaced):
            dropped.append(key)
            continue
        shape = tuple(match.state[name].shape)
        buffers[name] = dict(tensors)
        for part, tensor in tensors.items():
            if tensor.ndim and (other := adapted(name, tensor, shape, weights)):
                buffers[name][part] = other[0]
    return OptimizerBuffers(saved.algorithm, buffers), dropped


def trainable(state: StateDict) -> dict[str, Shape]:
    """The shapes of a file's tensors that an optimizer may have held, in the file's order."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if tensor.is_floating_point() and name.rsplit(".", 1)[-1] not in _STATISTICS
    }


def check_owner(name: str, shape: Shape, parameters: Mapping[str, Shape]) -> None:
    """Raises WeightsError unless state of ``shape`` can be that of the parameter ``name``."""
    what = ""
    if name not in parameters:
        what = f"the file has state of '{name[:80]}', but no such weight"
    elif shape != parameters[name]:
        what = f"the state of '{name}' is {list(shape)}, the weight {list(parameters[name])}"
    if what:
        raise WeightsError(_WHERE, what, _IGNORE, 26)


@dataclass(frozen=True)
class TorchState:
    """``stored`` is what ``torch.optim.Optimizer.state_dict()`` gave, as a file holds it: of
    plain torch, or one entry of Lightning's ``optimizer_states``. Nothing in it is trusted."""

    stored: Any

    def named(self, parameters: Mapping[str, Shape]) -> OptimizerBuffers:
        """The state by the file's own names. ``parameters`` are the file's trainable tensors in
        the file's order; some may be unknown to the optimizer, some known to it without state.

        ``algorithm`` is ``sgd`` or ``adam`` (also AdamW, NAdam and RAdam). Buffers are
        floating-point tensors of the parameter's shape; ``step`` and ``mu_product`` float32 of
        shape (). Raises WeightsError when the state is damaged or another optimizer's, or which
        parameter it is of is uncertain.
        """
        groups, names = _groups(self.stored)
        memory = _memory(self.stored["state"], set(chain(*groups)))
        kinds = {frozenset(buffers) for buffers in memory.values()}
        families = [
            family
            for family, (needed, optional) in _FAMILIES.items()
            if len(kinds) == 1 and all(needed <= kind <= needed | optional for kind in kinds)
        ]
        if not families:
            texts = sorted(" ".join(sorted(kind))[:80] for kind in kinds)
            what = f"neither SGD nor Adam keeps ({') and ('.join(texts[:3])}) for a parameter"
            raise WeightsError(_WHERE, what, _IGNORE, 24)
        shapes = {index: _shape(index, buffers) for index, buffers in memory.items()}
        if names is None:
            names = _names_by_order(groups, shapes, parameters)
        for index, shape in shapes.items():
            check_owner(names[index], shape, parameters)
            for key, tensor in memory[index].items():
                _check_values(names[index], key, tensor)
        return OptimizerBuffers(
            families[0], {names[index]: buffers for index, buffers in memory.items()}
        )


# Below, dict.get(x, ...) in place of x.get(...): a pickle can give an OrderedDict an attribute
# named get.


def _groups(stored: Any) -> tuple[list[list[int]], dict[int, str] | None]:
    """torch's numbers by group, and their names where torch wrote them."""
    for key, kind in (("state", dict), ("param_groups", list)):
        if not isinstance(stored, dict) or not isinstance(dict.get(stored, key), kind):
            raise _damaged(f"has no '{key}' of torch's kind")
    groups = stored["param_groups"]
    if not all(isinstance(g, dict) and _are(int, dict.get(g, "params")) for g in groups):
        raise _damaged("has a group without the numbers of its parameters")
    numbers = [index for group in groups for index in group["params"]]
    if len(set(numbers)) != len(numbers) or not all(0 <= i < 2**64 for i in numbers):
        raise _damaged("has a parameter in two groups, or an invalid number")
    if not any("param_names" in group for group in groups):
        return [group["params"] for group in groups], None
    lists: list[tuple[Any, Any]] = [(g["params"], dict.get(g, "param_names")) for g in groups]
    fit = [(ids, names) for ids, names in lists if _are(str, names) and len(ids) == len(names)]
    names = {index: name for pair in fit for index, name in zip(*pair, strict=True)}
    if len(set(names.values())) != len(numbers):
        raise _damaged("has 'param_names' that do not give one name per parameter")
    return [numbers], names


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _memory(state: dict[Any, Any], known: set[int]) -> dict[int, dict[str, torch.Tensor]]:
    """What is remembered of each parameter of which anything is."""
    memory: dict[int, dict[str, torch.Tensor]] = {}
    for index in state:
        if type(index) is not int or index not in known:
            raise _damaged("has state of a parameter that is in no group")
        entry = state[index]
        if not isinstance(entry, dict) or not _are(str, list(entry)):
            raise _damaged(f"has state of parameter {index} that is not by name")
        # SGD writes None before it has a momentum.
        buffers = {key: _tensor(index, key, entry[key]) for key in entry if entry[key] is not None}
        if buffers:
            memory[index] = buffers
    if not memory:
        raise WeightsError(_WHERE, "the file's optimizer holds no state", _IGNORE, 25)
    return memory


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
        what = f"its entry {index}.{key[:40]} is a {kind}, not a plain tensor"
        raise WeightsError(_WHERE, what, _IGNORE, 22)
    # Of the class, because a pickle can give a tensor an attribute named detach.
    tensor = torch.Tensor.detach(value)
    return tensor.reshape(()).float() if key in _NUMBERS and tensor.numel() == 1 else tensor


def _shape(index: int, buffers: Mapping[str, torch.Tensor]) -> Shape:
    shapes = {tuple(t.shape) for key, t in buffers.items() if key not in _NUMBERS}
    numbers = {tuple(t.shape) for key, t in buffers.items() if key in _NUMBERS}
    if len(shapes) != 1 or not numbers <= {()}:
        raise _damaged(f"has buffers of several shapes for parameter {index}")
    return shapes.pop()


def _check_values(name: str, key: str, tensor: torch.Tensor) -> None:
    fine = bool(tensor.isfinite().all())
    if fine and key == "step":
        fine = float(tensor) >= 0 and float(tensor).is_integer()
    if fine and key in _SQUARES:
        fine = not bool((tensor < 0).any())
    if not fine:
        what = f"the state '{key}' of '{name}' holds NaN, Inf or an impossible value"
        raise WeightsError(_WHERE, what, _IGNORE, 23)


def _damaged(what: str) -> WeightsError:
    return WeightsError(_WHERE, f"the file's optimizer state {what}", _IGNORE, 21)


def _names_by_order(
    groups: Sequence[Sequence[int]], shapes: Mapping[int, Shape], parameters: Mapping[str, Shape]
) -> dict[int, str]:
    """The name of every number in ``shapes``.

    ``groups`` are the optimizer's numbers by group, ``shapes`` those of its buffers where it has
    any, ``parameters`` all that it may have held, in the model's order. Groups that give the
    whole model one after another are taken as they are. Otherwise parameters may be split among
    groups in any way (no weight decay first or last, head apart) or be in none (frozen), and the
    names are those that all ways agree on. Raises WeightsError where they differ or none fits.
    """
    numbers = list(chain(*groups))
    if [shapes.get(number) for number in numbers] == list(parameters.values()):
        return dict(zip(numbers, parameters, strict=True))
    if len(numbers) > len(parameters):
        raise _misfit(f"it is of {len(numbers)} parameters, the file holds {len(parameters)}")
    if all(len(group) <= 1 for group in groups):
        groups = [numbers]  # then the order of the groups is all that can tell them apart
    possible = _possible_names(groups, shapes, list(parameters.items()))
    if not possible:
        misfits = (
            f"in the model's order, state {i} is {list(shapes[i])}, '{name}' {list(shape)}"
            for i, (name, shape) in zip(numbers, parameters.items(), strict=False)
            if shapes.get(i, shape) != shape
        )
        raise _misfit(next(misfits, "its groups are not in the model's order"))
    for number, names in sorted(possible.items()):
        if len(names) > 1:
            raise _ambiguous(f"state {number} may be of {' or '.join(sorted(names)[:2])}")
    return {number: names.pop() for number, names in possible.items()}


def _possible_names(
    groups: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
) -> dict[int, set[str]]:
    """The names that each number with a shape can have; empty when there is no way.

    All ways to deal the parameters, in the model's order, to groups or to nobody are followed at
    once: what matters of a way is only how many parameters each group has received.
    """
    spare = len(parameters) - sum(map(len, groups))
    spent, stages = 0, [{(0,) * len(groups)}]
    for place, (_, shape) in enumerate(parameters):
        spent += len(stages[-1]) * len(groups) ** 2
        if spent > _PATIENCE:
            raise _ambiguous("too many ways fit")
        ways = [(dealt, place - sum(dealt) < spare) for dealt in stages[-1]]
        stages.append({to for way in ways for _, to in _moves(groups, shapes, shape, *way)})
    possible: dict[int, set[str]] = {}
    alive = {tuple(len(group) for group in groups)}
    # Backwards, so that a way that leads nowhere is not seen.
    for place, (name, shape) in reversed(list(enumerate(parameters))):
        moves = [
            (dealt, number)
            for dealt in stages[place]
            for number, to in _moves(groups, shapes, shape, dealt, place - sum(dealt) < spare)
            if to in alive
        ]
        alive = {dealt for dealt, _ in moves}
        for _, number in moves:
            if number is not None and number in shapes:
                possible.setdefault(number, set()).add(name)
    return possible if alive else {}


def _moves(
    groups: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    shape: Shape,
    dealt: tuple[int, ...],
    may_skip: bool,
) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """The number that the next parameter, of ``shape``, may have, and what is dealt then."""
    if may_skip:
        yield None, dealt
    for g, group in enumerate(groups):
        if dealt[g] < len(group) and shapes.get(group[dealt[g]], shape) == shape:
            yield group[dealt[g]], (*dealt[:g], dealt[g] + 1, *dealt[g + 1 :])


def _misfit(why: str) -> WeightsError:
    what = f"the file's optimizer state does not fit its weights: {why}"
    return WeightsError(_WHERE, what, _IGNORE, 26)


def _ambiguous(why: str) -> WeightsError:
    return WeightsError(
        _WHERE,
        f"which parameter is which in the file's optimizer state is ambiguous: {why}",
        "give the optimizer model.named_parameters() before saving, "
        "or type source.optimizer=ignore",
        27,
    )
