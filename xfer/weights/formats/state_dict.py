"""Which entry of a torch file holds the weights, and what the other entries are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.config.verbs import override, quoted
from xfer.core.errors import WeightsError, closest
from xfer.core.types import Plain
from xfer.weights.content import Content, OptimizerState

if TYPE_CHECKING:
    import torch

# An average of the weights over the training generalises better, so it is preferred.
AVERAGES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model"),
    *("ema_model_state_dict", "module_ema", "net_ema", "params_ema", "ema_weights", "ema"),
)
# teacher before student: in self-distillation it is the student's average. Both come last, since
# beside a model a teacher is another network.
PLAIN = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params", "teacher", "student", "current_model_state"),
)
ORDER = {name: rank for rank, name in enumerate((*AVERAGES, *PLAIN))}
OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
DEPTH = 3


@dataclass(frozen=True)
class StateEntry:
    """``path`` are the keys that lead to ``value`` from the top of the file."""

    path: tuple[str, ...]
    value: dict[Any, Any]

    @property
    def name(self) -> str:
        """As ``source.key`` takes it."""
        return ".".join(self.path)


def content_of(path: Path, content: Any, form: str, key: str | None) -> Content:
    """The weights in what ``path`` held, the optimizer's state, and a reason for all the rest.

    The entry is the one that ``key`` names (dotted), else the file itself where it is bare, else
    the first known name; an average (EMA) comes before the weights it averages. Raises
    WeightsError when there is none or ``key`` names none.
    """
    if not isinstance(content, dict):
        what = f"holds a {type(content).__name__}, no tensors by name"
        raise WeightsError(path, what, "save model.state_dict()", 4)
    if "xfer" in content:
        named = quoted(override("source.path", str(path)))
        raise WeightsError(path, "is an xfer checkpoint", f"type source=run {named}", 3)
    # The state dicts under known names, in the order of preference.
    entries = list(_below(content, ()))
    entries.sort(key=lambda entry: not any(name in AVERAGES for name in entry.path))
    taken = _by_key(path, content, entries, key) if key else _preferred(path, content, entries)
    others = [e.name for e in entries if e.name != taken.name]
    facts: Plain = {"nested": taken.name, "alternatives": others} if taken.path else {}
    asides = _aside(content, taken, entries)
    state = _tensors(path, taken, asides)
    optimizer, name = _optimizer(content) if taken.path else (None, "")
    if optimizer is not None:
        asides.pop(name, None)
        facts["optimizer"] = name
    if "pytorch-lightning_version" in content:
        form = "Lightning checkpoint"
    return Content(form, state, asides, optimizer, facts)


def _below(content: dict[Any, Any], above: tuple[str, ...]) -> Iterator[StateEntry]:
    for name in sorted((n for n in content if n in ORDER), key=ORDER.__getitem__):
        value = content[name]
        if not isinstance(value, dict):
            continue
        if _is_state(value):
            yield StateEntry((*above, name), value)
        elif len(above) + 1 < DEPTH:
            yield from _below(value, (*above, name))


def _is_state(value: object) -> bool:
    """Whether ``value`` holds tensors by name, and beside them nothing that holds more."""
    import torch

    if not isinstance(value, dict):
        return False
    kinds = [type(v) for n, v in _items(value) if not _label(n).endswith("_extra_state")]
    tensors = any(issubclass(kind, torch.Tensor) for kind in kinds)
    return tensors and not any(issubclass(kind, dict | list | tuple) for kind in kinds)


def _items(value: dict[Any, Any]) -> list[tuple[Any, Any]]:
    # A pickle can give an OrderedDict an attribute named items.
    return list(dict.items(value))


def _label(name: object) -> str:
    # Anything may be a key, also what is long to print.
    return str(name) if isinstance(name, str | int) else type(name).__name__


def _preferred(path: Path, content: dict[Any, Any], entries: list[StateEntry]) -> StateEntry:
    if entries:
        return entries[0]
    if _is_state(content):
        return StateEntry((), content)
    elsewhere = _elsewhere(content)
    if elsewhere:
        what = f"holds tensors, but under no known name for weights: {', '.join(elsewhere[:5])}"
        raise WeightsError(path, what, f"choose one: source.key={elsewhere[0]}", 88)
    raise WeightsError(path, "holds no tensors by name", "save model.state_dict()", 4)


def _elsewhere(content: dict[Any, Any]) -> list[str]:
    """Dotted names of all state dicts at most two levels down, whatever they are called."""
    names = [_label(name) for name, value in _items(content) if _is_state(value)]
    for name, value in _items(content):
        if isinstance(value, dict) and not _is_state(value) and name not in OPTIMIZERS:
            names += [
                f"{_label(name)}.{_label(inner)}" for inner, v in _items(value) if _is_state(v)
            ]
    return names


def _by_key(path: Path, content: dict[Any, Any], entries: list[StateEntry], key: str) -> StateEntry:
    value: Any = content
    steps: list[str] = []
    rest = key.split(".")
    while rest:  # names may hold dots themselves
        ends = range(len(rest), 0, -1) if isinstance(value, dict) else ()
        step = next((s for n in ends if (s := ".".join(rest[:n])) in value), None)
        if step is None:
            known = dict.fromkeys([*(e.name for e in entries), *_elsewhere(content)])
            hint = closest(key, known) if known else "leave source.key out"
            raise WeightsError(path, f"has no entry '{key}'", hint, 86)
        steps.append(step)
        value, rest = value[step], rest[step.count(".") + 1 :]
    if not _is_state(value):
        what = f"its entry '{key}' holds no tensors by name"
        raise WeightsError(path, what, closest(key, _elsewhere(content)), 4)
    return StateEntry(tuple(steps), value)


def _aside(content: dict[Any, Any], taken: StateEntry, entries: list[StateEntry]) -> dict[str, str]:
    """Every entry beside the path to the one that was taken, with what it is."""
    asides: dict[str, str] = {}
    level: Any = content
    weights = {e.path[: i + 1] for e in entries for i in range(len(e.path))}
    for depth, step in enumerate(taken.path):
        for name, _ in _items(level):
            here = (*taken.path[:depth], _label(name))
            if name != step:
                other = here in weights or here[-1] in ORDER
                asides[".".join(here)] = "other weights" if other else "training state"
        level = level[step]
    return asides


def _tensors(path: Path, taken: StateEntry, asides: dict[str, str]) -> dict[str, torch.Tensor]:
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, value in _items(taken.value):
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            state[name] = value.detach()
        elif isinstance(name, str) and not isinstance(value, dict | list | tuple):
            asides[name] = f"no tensor ({type(value).__name__})"
        elif _label(name).endswith("_extra_state"):
            asides[_label(name)] = "extra state of a module"
        else:
            label = _label(name)[:60]
            what = f"its entry '{label}' is a {type(value).__name__} and no tensor by name"
            raise WeightsError(path, what, "save the state dict", 4)
    return state


def _optimizer(content: dict[Any, Any]) -> tuple[OptimizerState | None, str]:
    """The state of the one optimizer of the file, and the entry it is in."""
    for name in OPTIMIZERS:
        # A pickle can give an OrderedDict an attribute named get.
        value = dict.get(content, name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict) and {"state", "param_groups"} <= set(value):
            from xfer.weights.optimizer_state import TorchState

            return TorchState(value), name
    return None, ""
