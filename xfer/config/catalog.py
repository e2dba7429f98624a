"""Every group, option and key with its type, range, default and meaning, as the specs declare them.

The help of a key, the tables of docs/groups, the completion of shells and the schema for editors
are all made from this. A key's meaning is the text below its field in the class of the spec.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen
from pydantic import TypeAdapter, ValidationError

from xfer.config import schema
from xfer.config.general_keys import GENERAL
from xfer.config.help import GROUPS, config_dir, summary
from xfer.config.verbs import override
from xfer.core.bounded_yaml import read_yaml
from xfer.core.errors import XferError
from xfer.core.types import Plain


@dataclass(frozen=True)
class Key:
    """One key as one option of its group has it; ``option`` is empty for the keys of no group.

    ``default`` is JSON-like, or ``MISSING`` where the key must be given.
    """

    name: str
    option: str
    hint: Any
    default: Any
    meaning: str

    @property
    def type(self) -> str:
        """The type and its range for people, such as ``auto or float > 0``."""
        return type_text(self.hint)

    @property
    def example(self) -> str:
        """``key=value`` with a value that the key takes: its default, where that is one to type."""
        value = self.default
        if value is MISSING or value in (None, "auto", [], {}) or "${" in str(value):
            value = _sample(self.hint)
        return override(self.name, value)

    @property
    def shown_default(self) -> str:
        """The default as it is typed."""
        return "must be given" if self.default is MISSING else json.dumps(self.default).strip('"')


@dataclass(frozen=True)
class Option:
    """One option of a group: its name, the first line of its file, the first paragraph of its
    class, and its keys. ``problem`` is why it has none."""

    group: str
    name: str
    summary: str
    about: str
    keys: tuple[Key, ...]
    problem: str = ""


@cache
def general() -> tuple[Key, ...]:
    """The keys that are in no group."""
    shipped = read_yaml(Path(config_dir()) / "config.yaml")
    rows = [
        Key(name, "", hint, schema.value_at(shipped, name), meaning)
        for name, (hint, meaning) in GENERAL.items()
    ]
    gate = schema.load_class("export", "xfer.export.Strictness", str)
    return (*rows, *_keys("export", "", gate, shipped["export"]))


@cache
def options(group: str, folders: tuple[str, ...]) -> tuple[Option, ...]:
    """The options of ``group`` in these folders of config files."""
    found = {}
    for folder in folders:
        for file in sorted((Path(folder) / group).glob("*.yaml")):
            found[file.stem] = _option(group, file)
    return tuple(found[name] for name in sorted(found))


def keys(folders: Sequence[str]) -> dict[str, list[Key]]:
    """Every key by its dotted name: once for each option that has it."""
    rows: dict[str, list[Key]] = {key.name: [key] for key in general()}
    for group in GROUPS:
        for option in options(group, tuple(folders)):
            for key in option.keys:
                rows.setdefault(key.name, []).append(key)
    return rows


def key_called(name: str, folders: Sequence[str]) -> str:
    """The key that is ``name``, else whose last part it is, else that ends with it; of several that
    which most options have; empty for none."""
    known = keys(folders)
    leaves = {key: key.rpartition(".")[2] for key in known}
    same = [key for key, leaf in leaves.items() if leaf == name or leaf.endswith(f"_{name}")]
    return max(same, key=lambda key: (key == name, -len(leaves[key]), len(known[key])), default="")


def _option(group: str, file: Path) -> Option:
    head = summary(file)
    try:
        node = read_yaml(file) or {}
    except (OSError, ValueError) as error:
        return Option(group, file.stem, head, "", (), f"{file} cannot be read ({error})")
    prefix = group
    if group == "export":  # a file adds one writer to the list of them
        prefix = f"export.{file.stem}"
        node = node.get(file.stem, {}) if isinstance(node, dict) else {}
    if not isinstance(node, dict) or "_target_" not in node:
        return Option(group, file.stem, head, "", ())
    try:
        kind = schema.load_class(group, str(node["_target_"]), str)
    except XferError as error:
        return Option(group, file.stem, head, "", (), str(error))
    about = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return Option(group, file.stem, head, about, _keys(prefix, file.stem, kind, node))


def _keys(prefix: str, option: str, kind: Any, node: Plain) -> tuple[Key, ...]:
    """The keys of a class, with the defaults that the file ``node`` sets in place of its own."""
    meanings = _meanings(kind)
    rows = []
    for name, (hint, default) in schema.signature(kind).items():
        value = node.get(name, _plain(default))
        value = MISSING if value == "???" else _number(value)
        rows.append(Key(f"{prefix}.{name}", option, hint, value, meanings.get(name, "")))
    return tuple(rows)


def _number(value: Any) -> Any:
    """YAML takes 1e-4, which has no point, for text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value


def _plain(default: Any) -> Any:
    if default is MISSING:
        return MISSING
    return json.loads(json.dumps(default() if callable(default) else default))


@cache
def _meanings(kind: type) -> dict[str, str]:
    """The text below each field of a class and of those that it derives from."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # built in, or made where no file is
            continue
        texts |= dict(_below_fields(tree.body[0]))
    return texts


def _below_fields(tree: ast.stmt) -> Iterator[tuple[str, str]]:
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, text in pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(said))
            ):
                yield name, " ".join(said.split())


_NAMES = {
    str: "text",
    int: "int",
    float: "float",
    bool: "bool",
    type(None): "null",
    Any: "any value",
}


def type_text(hint: Any) -> str:
    """A type annotation and its limits for people: ``auto or float > 0``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join(filter(None, [type_text(arguments[0]), _limits(arguments[1:])]))
    if origin is typing.Literal:
        return _either([str(value) for value in arguments])
    if origin in (typing.Union, types.UnionType):
        # The words first: they are what is typed most.
        ordered = sorted(arguments, key=lambda a: (a is type(None), not _is_words(a)))
        return _either([type_text(argument) for argument in ordered])
    if origin is tuple:
        inner = list(dict.fromkeys(type_text(a) for a in arguments if a is not Ellipsis))
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {count}{' and '.join(inner)}"
    if origin is dict:
        return f"{{{type_text(arguments[0])}: {type_text(arguments[1])}}}"
    if hint in _NAMES:
        return _NAMES[hint]
    fields = schema.signature(hint) if isinstance(hint, type) else {}
    return f"{{{', '.join(fields)}}}" if fields else str(getattr(hint, "__name__", hint))


_SAMPLES = (0.01, 0.5, 0.9, 1, 8, 20, 0)


def _sample(hint: Any) -> Any:
    """A value of a type, JSON-like."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return arguments[-1]
    if origin in (typing.Union, types.UnionType):
        plain = [
            a
            for a in arguments
            if a is not type(None) and typing.get_origin(a) is not typing.Literal
        ]
        return _sample((plain or arguments)[0])
    if origin is tuple:
        numbers = [value for a in arguments if a is not Ellipsis and (value := _sample(a)) != {}]
        return [numbers[0], 1.0] if len(numbers) == 2 else numbers
    if origin is dict or hint is Any:
        return {}
    base = arguments[0] if origin is typing.Annotated else hint
    if base in (int, float):
        fits = TypeAdapter(hint)
        return next(v for v in _SAMPLES if base in (float, type(v)) and not _refused(fits, v))
    if base is str:
        return "TEXT"
    if origin is typing.Annotated:
        return _sample(base) * (
            2 if any(getattr(a, "min_length", 0) > 1 for a in arguments[1:]) else 1
        )
    return base is bool or {
        name: _sample(inner) for name, (inner, _) in schema.signature(base).items()
    }


def _is_words(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _refused(fits: TypeAdapter[Any], value: float) -> bool:
    try:
        fits.validate_python(value)
    except ValidationError:
        return True
    return False


def words_of(hint: Any) -> Iterator[str]:
    """The values that a type has by name: ``true`` and ``false``, and those of each literal."""
    if hint is bool:
        yield from ("true", "false")
    elif _is_words(hint):
        yield from (str(value) for value in typing.get_args(hint))
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            yield from words_of(inner)


def _either(names: Sequence[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def _limits(rules: Sequence[Any]) -> str:
    flat: list[Any] = []
    for rule in rules:
        flat += list(rule) if isinstance(rule, GroupedMetadata) else [rule]
    signs = {Gt: ("gt", "> {}"), Ge: ("ge", "≥ {}"), Lt: ("lt", "< {}"), Le: ("le", "≤ {}")}
    signs |= {MinLen: ("min_length", "at least {} long"), MaxLen: ("max_length", "at most {} long")}
    texts = []
    for rule in flat:
        name, text = signs.get(type(rule), ("", ""))
        if name:
            limit = getattr(rule, name)
            texts.append(text.format(limit if isinstance(limit, int) else f"{limit:g}"))
    return ", ".join(texts).replace("at least 1 long", "not empty")
