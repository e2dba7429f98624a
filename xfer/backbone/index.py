"""The model names of timm and torchvision, shipped, so that a misspelt one costs no import.

``python -c 'from xfer.backbone import index; index.write()'`` makes ``index.json`` again.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

from xfer.deferred import compiler_deferred
from xfer.errors import ConfigError, closest

_FILE = Path(__file__).with_name("index.json")


@cache
def _shipped() -> dict[str, dict[str, list[str] | str]]:
    facts: dict[str, dict[str, list[str] | str]] = json.loads(_FILE.read_text())
    return facts


def names(library: str) -> frozenset[str]:
    """The model names of ``library`` (``timm`` or ``torchvision``) as installed.

    Read from the shipped index when it was made from the installed version, else from the library.
    """
    shipped = _shipped()[library]
    if shipped["version"] == version(library):
        return frozenset(shipped["names"])
    return frozenset(_installed(library))


def _installed(library: str) -> list[str]:
    if library == "timm":
        with compiler_deferred():
            import timm

        return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})
    with compiler_deferred():
        from torchvision import models

    return sorted(name for name in models.list_models(module=models))


def check(library: str, name: str) -> None:
    """Raise ConfigError, offering the closest name, when ``library`` has no model ``name``."""
    known = names(library)
    if name in known:
        return
    other = "torchvision" if library == "timm" else "timm"
    if name in names(other):
        fix = f"it is {other}'s: type backbone={other} backbone.name={name}"
    else:
        fix = closest(name, sorted(known))
    raise ConfigError("backbone.name", f"{library} has no model '{name}'", fix, 10)


def write() -> None:
    """Write the index from the installed libraries."""
    facts = {
        library: {"version": version(library), "names": _installed(library)}
        for library in ("timm", "torchvision")
    }
    _FILE.write_text(json.dumps(facts, indent=0) + "\n")
