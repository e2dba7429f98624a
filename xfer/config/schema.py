"""Plain configuration to specs: types, ranges and names checked against the specs' own fields.

A group's schema is the signature of the class that its ``_target_`` names. Classes come from
xfer, or from packages that the user allowed by ``--allow`` or ``XFER_ALLOW``; never because a
YAML file or a checkpoint says so.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from xfer.config import other_tools
from xfer.config.help import GROUPS
from xfer.core import protocols
from xfer.core.custom_parts import allowed_packages
from xfer.core.errors import ConfigError, SafetyError, XferError, closest, raise_all
from xfer.core.types import Plain

Where = Callable[[str], str]
"""Names the place a dotted key was set: a file, or the command line."""
HOMES = {
    "augment": "xfer.data.augment",
    "task": "xfer.evaluation.task",
    "source": "xfer.weights.source",
    **{group: f"xfer.config.{group}" for group in ("trainer", "checkpoint", "choose")},
    "sweep": "xfer.config.sweep_spec",
    **{group: f"xfer.models.{group}" for group in ("backbone", "head")},
    **{
        group: f"xfer.training.{group}"
        for group in ("loss", "optim", "schedule", "features", "logger")
    },
}
"""Where the classes of a group are, unless in a package of its name."""


def build(
    group: str,
    node: Any,
    where: Where = lambda key: key,
    prefix: str = "",
    elsewhere: Where = lambda key: "",
) -> Any:
    """The spec that ``node`` describes. Raises all of its problems together.

    ``prefix`` is the dotted key of ``node`` where that is not ``group``; ``elsewhere`` gives the
    remedy for a key that only another option of the group has, or nothing.
    """
    prefix = prefix or group
    kind, arguments = checked(group, node, where, prefix, elsewhere)
    try:
        spec = kind(**arguments)
    except XferError as error:
        error.where = where(error.where)
        raise
    except Exception as error:  # a class of the user's own may raise anything
        what = f"{kind.__name__} refuses its arguments ({error})"
        raise ConfigError(where(prefix), what, f"mend {prefix}", 21) from error
    _check_custom(spec, group, prefix, where)
    return spec


def checked(
    group: str,
    node: Any,
    where: Where = lambda key: key,
    prefix: str = "",
    elsewhere: Where = lambda key: "",
) -> tuple[Any, Plain]:
    """The class that ``node`` names and its arguments, as :func:`build` calls it."""
    if not isinstance(node, dict) or "_target_" not in node:
        fix = f"choose {group}=OPTION" if prefix == group else "write {_target_: MODULE.CLASS}"
        raise ConfigError(where(prefix), f"{prefix} names no class", fix, 5)
    target = str(node["_target_"])
    kind = load_class(group, target, where, f"{prefix}._target_")
    given = {key: value for key, value in node.items() if key != "_target_"}
    schema = signature(kind)
    known = [f"{prefix}.{name}" for name in schema]
    extra = sorted(f"{prefix}.{name}" for name in given.keys() - schema.keys())
    problems: list[XferError] = [unknown(key, known, where, elsewhere(key)) for key in extra]
    arguments = {}
    for name, (hint, default) in schema.items():
        try:
            if name in given:
                arguments[name] = convert(f"{prefix}.{name}", given[name], hint, where)
            elif default is MISSING:
                raise missing(f"{prefix}.{name}")
        except XferError as error:
            problems.append(error)
    raise_all(problems)
    return kind, arguments


# What a class of the user must be able to do, and a class of xfer that has it all, where there is
# one to derive from.
_PARTS: dict[str, tuple[type, str]] = {
    "data": (protocols.Data, "xfer.data.options.Loading"),
    "augment": (protocols.Augment, "xfer.data.augment.Plain"),
    "backbone": (protocols.Backbone, ""),
    "source": (protocols.Source, ""),
    "head": (protocols.Head, ""),
    "freeze": (protocols.Freeze, "xfer.freeze.Policy"),
    "loss": (protocols.Loss, "xfer.training.loss.CrossEntropy"),
    "optim": (protocols.Optim, "xfer.training.optim.Options"),
    "schedule": (protocols.Schedule, "xfer.training.schedule.Constant"),
    "export": (protocols.Writer, ""),
    "logger": (protocols.Logger, "xfer.training.logger.Csv"),
    "metric": (protocols.CustomMetric, ""),
}


def _lacks(spec: Any, group: str) -> tuple[list[str], str]:
    """What a class of the user does not have, or has with another number of arguments; and what it
    may be derived from."""
    if group not in _PARTS:
        return [], ""
    protocol, base = _PARTS[group]
    asked = {name: value for name, value in vars(protocol).items() if not name.startswith("_")}
    properties, methods = [], []
    for name, value in asked.items():
        # Not getattr: a property may be one that only the plan can answer.
        is_there = inspect.getattr_static(spec, name, MISSING) is not MISSING
        if isinstance(value, property):
            properties += [] if is_there else [f"no {name}"]
            continue
        count = len(inspect.signature(value).parameters) - 1
        if not is_there or not callable(getattr(spec, name)):
            methods.append(f"no method {name}")
        elif not _takes(getattr(spec, name), count):
            methods.append(f"a method {name} that does not take {count} argument(s)")
    return properties + methods, base


def _takes(method: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # one written in C that does not say what it takes
        return True
    return True


def _check_custom(spec: Any, group: str, prefix: str, where: Where) -> None:
    """Raise ConfigError for a class of the user that lacks what its group must have."""
    if type(spec).__module__.startswith("xfer."):
        return
    lacking, base = _lacks(spec, group)
    if lacking:
        fix = f"derive it from {base}, or add them" if base else "add them"
        what = f"{type(spec).__name__} has {' and '.join(lacking)}"
        raise ConfigError(where(prefix), what, f"{fix}: see docs/howto/extend.md", 21)


def facts(spec: Any, node: Plain) -> Plain:
    """``_target_`` and every argument of a built spec, as JSON-like facts. ``node`` is what was
    asked for, from which the plan may have made something else."""
    target, kind = str(node["_target_"]), type(spec)
    module, _, name = target.rpartition(".")
    if getattr(sys.modules.get(module), name, None) is not kind:
        target = f"{kind.__module__}.{kind.__qualname__}"
    values = asdict(spec) if is_dataclass(spec) and not isinstance(spec, type) else dict(node)
    values.pop("_target_", None)
    plain: Plain = json.loads(json.dumps(values))
    return {"_target_": target, **plain}


@cache
def signature(kind: Any) -> Mapping[str, tuple[Any, Any]]:
    """Name to (type, default) of what ``kind`` can be given; no default is ``MISSING``.

    Types are written as text, which Python reads anew each time that it is asked for them.
    """
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory
            for f in fields(kind)
            if f.init
        }
        return {name: (hints[name], default) for name, default in defaults.items()}
    hints = typing.get_type_hints(kind.__init__, include_extras=True)
    return {
        p.name: (hints.get(p.name, Any), MISSING if p.default is p.empty else p.default)
        for p in inspect.signature(kind).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def convert(key: str, value: Any, hint: Any, where: Where) -> Any:
    """``value`` as ``hint`` wants it, strictly: no number from a string, no float for an int."""
    if value == "???":
        raise missing(key)
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError as error:
        what = f"is {value}, but must be a finite number"
        raise ConfigError(where(key), what, f"type {key}=NUMBER", 2) from error
    except TypeError as error:  # YAML has bytes and dates, which nothing here takes
        what = f"is {value!r}, which is neither text nor number"
        raise ConfigError(where(key), what, f"type {key}=VALUE", 2) from error
    try:
        # Through JSON, because strict validation of Python objects wants tuples and dataclasses.
        return _validator(hint).validate_json(text, strict=True)
    except ValidationError as error:
        raise _mistyped(key, error, where) from error


def _validator(hint: Any) -> TypeAdapter[Any]:
    """What checks values of a type. It takes longer to make than to use, so each is made once."""
    try:
        hash(hint)
    except TypeError:  # a class of the user's own may be annotated with anything
        return _new_validator.__wrapped__(hint, "")
    return _new_validator(hint, repr(hint))


@cache
def _new_validator(hint: Any, _written: str) -> TypeAdapter[Any]:
    """``_written`` tells unions of another order apart: they are equal, and complain otherwise."""
    strict = None if is_dataclass(hint) else ConfigDict(extra="forbid")
    return TypeAdapter(hint, config=strict)


_KINDS = (
    # The start of pydantic's name for the mistake, what must be there, how that is typed.
    ("int", "must be a whole number", "WHOLE_NUMBER"),
    ("float", "must be a number", "NUMBER"),
    ("bool", "must be true or false", "true|false"),
    ("string_type", "must be text", "TEXT"),
    ("string_too_short", "must not be empty", "TEXT"),
    ("tuple", "must be a list", "'[A,B]'"),
    ("dict", "must be {name: value}", "'{NAME: VALUE}'"),
    ("dataclass", "must be {name: value}", "'{NAME: VALUE}'"),
    ("greater", "", "NUMBER"),
    ("less", "", "NUMBER"),
)


def _mistyped(key: str, error: ValidationError, where: Where) -> ConfigError:
    """Of a union every member complains; the one that looked deepest says most."""
    details = error.errors()
    detail = max(details, key=lambda d: (len(_path(d["loc"])), not d["type"].endswith("_type")))
    kind, value = detail["type"], detail["input"]
    place = key + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in _path(detail["loc"]))
    if kind == "missing":
        return ConfigError(where(key), f"{place} must be given", f"add {place}", 3)
    if kind == "unexpected_keyword_argument":
        return ConfigError(where(key), f"there is no key '{place}'", "drop it", 1)
    _, must, typed = next((k for k in _KINDS if kind.startswith(k[0])), ("", "", "VALUE"))
    what = must or detail["msg"].replace("Input should be", "must be")
    fix = f"type {key}={typed}" if place == key else f"write {typed} for {place}"
    if kind == "tuple_type" and isinstance(value, str) and place == key:
        stage = other_tools.STAGES.get(value.lower()) if key == "stages" else None
        fix = f"type '{key}=[{stage or value}]'"
    if kind == "literal_error":
        what, fix = _none_of(details, key)
    inside = "" if place == key else f"{place} "
    return ConfigError(where(key), f"{inside}is {json.dumps(value)}, but {what}", fix, 2)


def _none_of(details: list[ErrorDetails], key: str) -> tuple[str, str]:
    """What must be there, and the remedy, where a value is no name of a list and no number."""
    deepest = max(len(_path(d["loc"])) for d in details)
    same = [d for d in details if len(_path(d["loc"])) == deepest]
    names = [n for d in same for n in re.findall(r"'([^']*)'", d["msg"])]
    kinds = [k for d in same for k in _KINDS if k[1] and d["type"].startswith(k[0])]
    shown = [*(k[1].removeprefix("must be ") for k in kinds), *(f"'{n}'" for n in names)]
    near = closest(str(same[0]["input"]), names)
    if kinds and (names == ["auto"] or not near.startswith("did you mean")):
        near = " or ".join([f"type {key}={kinds[0][2]}", *names])
    first, last = ", ".join(shown[:-1]), shown[-1]
    return f"must be {first} or {last}" if first else f"must be {last}", near


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    names = ("tuple", "literal", "constrained", "function", "list", "nullable")
    return [
        p
        for p in loc
        if isinstance(p, int) or not (p.startswith(names) or p in ("str", "int", "float", "bool"))
    ]


def unknown(key: str, known: Sequence[str], where: Where, fix: str = "") -> ConfigError:
    """The error for a key that nobody reads."""
    leaf = key.rpartition(".")[2]
    ends = {k: k.rpartition(".")[2] for k in known}
    same = [k for k, end in ends.items() if end == leaf or end.endswith(f"_{leaf}")]
    below = [k for k in known if k.startswith(f"{key}.")]
    if not fix and not (fix := other_tools.for_key(key, GROUPS)):
        if below:
            fix = f"did you mean '{below[0]}'?"
        elif same:
            fix = f"did you mean '{min(same, key=lambda k: len(ends[k]))}'?"
        elif known:
            fix = closest(key, sorted(known))
        else:
            fix = f"drop it: {key.split('.')[0]} takes no keys"
    return ConfigError(where(key), f"there is no key '{key}'", fix, 1)


def missing(key: str) -> ConfigError:
    """The error for a key that must be given."""
    return ConfigError(key, "must be given", f"type {key}=VALUE", 3)


def value_at(node: Any, key: str) -> Any:
    """What is at the dotted ``key`` below ``node``; ``None`` where there is nothing."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def leaves(key: str, node: Any) -> list[str]:
    """The dotted keys of every value in ``node``, which is at ``key``."""
    if not isinstance(node, dict):
        return [key]
    return [leaf for name, inner in node.items() for leaf in leaves(f"{key}.{name}", inner)]


def load_class(group: str, target: str, where: Where, key: str = "") -> Any:
    """The class that ``target`` names. Raises SafetyError unless it is of ``xfer.<group>`` or of
    an allowed package, ConfigError when it cannot be imported."""
    module, _, name = target.rpartition(".")
    home = HOMES.get(group, f"xfer.{group}")
    others = [f"{other}." for other in HOMES.values() if other != home]  # augment is inside data
    is_ours = target.startswith(f"{home}.") and not target.startswith(tuple(others))
    package = target.split(".")[0]
    if not is_ours and not any(target.startswith(f"{p}.") for p in allowed_packages()):
        trust = f"add --allow {package} if you trust it"
        ours = f"name a class of {home if group in GROUPS else 'yours'}"
        fix = ours if package == "xfer" else trust
        raise SafetyError(where(key), f"'{target}' may not be used for {group}", fix, 1)
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's own may raise anything
        what = f"'{target}' cannot be imported ({error})"
        raise ConfigError(where(key), what, "check its spelling", 6) from error
    # What a module of xfer merely imports is not on offer.
    if not isinstance(kind, type) or (is_ours and not kind.__module__.startswith(home)):
        what = f"'{target}' is not a class for {group}"
        raise SafetyError(where(key), what, "name a class of that group", 2)
    return kind
