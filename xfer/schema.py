"""Plain configuration to specs: types, ranges and names checked against the specs' own fields.

A group's schema is the signature of the class that its ``_target_`` names. Classes come from
xfer, or from packages that the user allowed by ``--allow`` or ``XFER_ALLOW``; never because a
YAML file or a checkpoint says so.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xfer.errors import ConfigError, SafetyError, XferError, closest, raise_all
from xfer.types import Plain

Where = Callable[[str], str]
"""Names the place a dotted key was set: a file, or the command line."""


def build(group: str, node: Any, where: Where = lambda key: key) -> Any:
    """The spec that ``node`` describes. Raises all of its problems together."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(where(group), f"{group} names no class", f"choose {group}=OPTION", 5)
    kind = _kind(group, str(node["_target_"]), where)
    given = {key: value for key, value in node.items() if key != "_target_"}
    schema = signature(kind)
    problems: list[XferError] = []
    for key in given.keys() - schema.keys():
        problems.append(unknown(f"{group}.{key}", [f"{group}.{name}" for name in schema], where))
    arguments = {}
    for name, (hint, default) in schema.items():
        try:
            if name in given:
                arguments[name] = convert(f"{group}.{name}", given[name], hint, where)
            elif default is MISSING:
                raise missing(f"{group}.{name}")
        except XferError as error:
            problems.append(error)
    raise_all(problems)
    return kind(**arguments)


def facts(group: str, spec: Any, node: Plain) -> Plain:
    """``_target_`` and every argument of a built spec, as JSON-like facts."""
    values = asdict(spec) if is_dataclass(spec) and not isinstance(spec, type) else dict(node)
    values.pop("_target_", None)
    plain: Plain = json.loads(json.dumps(values))
    return {"_target_": node["_target_"], **plain}


def signature(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Name to (type, default) of what ``kind`` can be given; no default is ``MISSING``."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {f.name: (hints[f.name], _default(f)) for f in fields(kind) if f.init}
    hints = typing.get_type_hints(kind.__init__, include_extras=True)
    parameters = list(inspect.signature(kind).parameters.values())
    return {
        p.name: (hints.get(p.name, Any), MISSING if p.default is p.empty else p.default)
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory


def convert(key: str, value: Any, hint: Any, where: Where) -> Any:
    """``value`` as ``hint`` wants it, strictly: no number from a string, no float for an int."""
    if value == "???":
        raise missing(key)
    try:
        # Through JSON, because strict validation of Python objects wants tuples and dataclasses.
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        details = error.errors()
        # Of a union every member complains; the one about the value's own kind says most.
        detail = next((d for d in details if not d["type"].endswith("_type")), details[0])
        inner = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in _path(detail["loc"]))
        what = detail["msg"].replace("Input should be", "must be")
        raise ConfigError(
            where(key), f"{key}{inner} is {value!r}, but {what}", f"type {key}=VALUE", 2
        ) from error


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    names = ("tuple", "literal", "constrained", "function", "list", "nullable")
    return [
        p
        for p in loc
        if isinstance(p, int) or not (p.startswith(names) or p in ("str", "int", "float", "bool"))
    ]


def unknown(key: str, known: list[str], where: Where) -> ConfigError:
    """The error for a key that nobody reads."""
    return ConfigError(where(key), f"there is no key '{key}'", closest(key, sorted(known)), 1)


def missing(key: str) -> ConfigError:
    """The error for a key that must be given."""
    return ConfigError(key, "must be given", f"type {key}=VALUE", 3)


def allowed() -> tuple[str, ...]:
    """Packages, besides xfer, whose classes a config may name."""
    return tuple(p.strip() for p in os.environ.get("XFER_ALLOW", "").split(",") if p.strip())


def _kind(group: str, target: str, where: Where) -> Any:
    module, _, name = target.rpartition(".")
    own = target.startswith(f"xfer.{group}.")
    key = f"{group}._target_"
    if not own and not any(target.startswith(f"{package}.") for package in allowed()):
        package = target.split(".")[0]
        fix = (
            "name a class of " + f"xfer.{group}"
            if package == "xfer"
            else f"add --allow {package} if you trust it"
        )
        raise SafetyError(where(key), f"'{target}' may not be used for {group}", fix, 1)
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            where(key), f"'{target}' cannot be imported ({error})", "check its spelling", 6
        ) from error
    if not isinstance(kind, type):
        raise SafetyError(where(key), f"'{target}' is no class", "name a class", 2)
    return kind


def check_keys(node: Mapping[str, Any], known: Mapping[str, Any], where: Where) -> list[XferError]:
    """Errors for keys of ``node`` that ``known`` (nested the same way) does not have."""
    problems: list[XferError] = []
    for key in node:
        if key not in known:
            problems.append(unknown(str(key), list(known), where))
        elif isinstance(inner := known[key], dict):
            for name in node[key] or {}:
                if name not in inner:
                    options = [f"{key}.{n}" for n in inner]
                    problems.append(unknown(f"{key}.{name}", options, where))
    return problems
