"""The model names of timm and torchvision, shipped, so that a misspelt one costs no import.

``python -c 'from xfer.models.backbone import index; index.write()'`` adds the names of the
installed libraries to ``index.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xfer.config import other_tools
from xfer.core.deferred_compiler import compiler_deferred
from xfer.core.errors import ConfigError, closest

_FILE = Path(__file__).with_name("index.json")


@cache
def _shipped() -> dict[str, list[str]]:
    facts: dict[str, list[str]] = json.loads(_FILE.read_text())
    return facts


@cache
def _installed(library: str) -> frozenset[str]:
    """The model names that ``library`` (``timm`` or ``torchvision``) lists; imports it."""
    if library == "timm":
        with compiler_deferred():
            import timm

        return frozenset({*timm.list_models(), *timm.list_models(pretrained=True)})
    with compiler_deferred():
        from torchvision import models

    return frozenset(models.list_models(module=models))


@cache
def _words(library: str) -> frozenset[str]:
    """Functions and quoted words of the library's source files, each tag without its model."""
    spec = find_spec(library)
    folders = (spec.submodule_search_locations if spec else None) or []
    words: set[str] = set()
    for file in (f for folder in folders for f in Path(folder, "models").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for function, quoted in re.findall(r"^def (\w+)\(|['\"]([\w.-]+)['\"]", text, re.M):
            words.update((function or quoted).split(".", 1))
    return frozenset(words - {""})


def check(library: str, name: str) -> None:
    """Raise ConfigError, offering the closest name, when ``library`` has no model ``name``.

    The index holds the names of several versions, whichever is installed. See :func:`missing` for
    one that the installed version lacks.
    """
    shipped = _shipped()
    other = "torchvision" if library == "timm" else "timm"
    if name in shipped[library]:
        return
    if name in shipped[other] or ":" in name:
        fix = other_tools.for_option("backbone", name) or closest(name, shipped[library])
        raise _unknown(library, name, fix)
    # A newer library may have it. What its source files never spell is no model, and costs no
    # import.
    if not _words(library).issuperset(name.split(".", 1)) or name not in _installed(library):
        raise _unknown(library, name, closest(name, shipped[library]))


def relatives(library: str, name: str) -> list[str]:
    """Models of ``library`` that are called like ``name`` but for numbers, so ``resnet34`` for
    ``resnet18``; the nearest first, without those of other weights only."""
    model = name.partition(".")[0]
    family = re.sub(r"\d+", "#", model)
    names = [n for n in _shipped().get(library, ()) if re.sub(r"\d+", "#", n) == family]

    def distance(other: str) -> int:
        numbers = zip(re.findall(r"\d+", model), re.findall(r"\d+", other), strict=True)
        return sum(abs(int(a) - int(b)) for a, b in numbers)

    return sorted((n for n in names if n != model), key=lambda n: (distance(n), n))


def called(place: str) -> list[tuple[str, str]]:
    """Library and model of every name that a part of ``place``, a path or an address, begins with:
    ``squeezenet1_0`` for ``weights/squeezenet1_0-b66bff10.pth``. The longest first."""
    parts = [part.lower().replace("-", "_") for part in re.split(r"[/\\:]", place)]
    found = [
        (library, name)
        for library, names in _shipped().items()
        for name in names
        if any(re.match(rf"{re.escape(name.lower())}(?![a-z0-9])", part) for part in parts)
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))


def missing(library: str, name: str) -> ConfigError:
    """The error for a name of the index that the installed version of ``library`` lacks."""
    return _unknown(f"{library} {version(library)}", name, f"install another version of {library}")


def _unknown(library: str, name: str, fix: str) -> ConfigError:
    return ConfigError("backbone.name", f"{library} has no model '{name}'", fix, 10)


@contextmanager
def building(library: str, name: str, args: Mapping[str, Any]) -> Iterator[None]:
    """Raises ConfigError for whatever ``library`` raises when it builds ``name`` with ``args``."""
    try:
        yield
    except Exception as error:  # an argument of the wrong type fails wherever it is used
        if not args:
            raise
        what = f"{library} cannot build '{name}' ({error})"
        raise ConfigError("backbone.args", what, "mend or drop args", 11) from error


def write() -> None:
    """Add the names of the installed libraries to the index. Names of other versions stay."""
    facts = {name: sorted({*names, *_installed(name)}) for name, names in _shipped().items()}
    _FILE.write_text(json.dumps(facts, indent=0) + "\n")
