"""MindSpore's names for layers of networks that timm and torchvision have too, as facts.

``name_maps.json`` holds, in ``suffixes``, what every dialect calls the tensors of a norm;
in ``dialects``, by name: ``marks``, patterns of names that only this dialect has, all of which must
be there; ``suits``, the architectures that have these layers, by library; ``head``, its classifier;
``rename``, rules in order from MindSpore's names to torch's, then those of ``rename_in`` for one
library; ``back`` and ``back_in``, the same the other way; ``compat``, what makes the function equal
(:mod:`xfer.models.mindspore_layers`). ``strangers``: names that are known and have no map;
``unequal``, two tensors whose first sizes differ there, where the names alone are those of a
dialect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from xfer.core.types import Plain

DialectName = Literal[
    "auto",
    "zoo_resnet_basic",
    "zoo_resnet_bottleneck",
    "zoo_googlenet",
    "mindcv_resnet",
    "mindcv_seresnet",
    "mindcv_squeezenet1_0",
    "mindcv_squeezenet1_1",
    "mindcv_vit",
    "plain",
]
"""What may be asked for: a dialect of the file, or to find it out, or torch's own names."""

_FILE = Path(__file__).with_name("name_maps.json")


@cache
def shipped() -> Plain:
    """All of it, as it is in the file. Not to be changed."""
    facts: Plain = json.loads(_FILE.read_text(encoding="utf-8"))
    return facts


def suits(facts: Plain, library: str, architecture: str) -> bool:
    """Whether ``architecture`` of ``library`` has the layers of the dialect of these ``facts``."""
    known: str = facts.get("suits", {}).get(library, "(?!)")
    return re.fullmatch(known, architecture.split(".")[0]) is not None


def to_torch(names: Collection[str], dialect: str, library: str) -> dict[str, str]:
    """The name that ``library`` has for each of ``names``, which are ``dialect``'s. A name that
    the dialect does not know stays as it is."""
    facts = shipped()["dialects"][dialect]
    rules = [*facts["rename"], *facts.get("rename_in", {}).get(library, ())]
    norms = {name.removesuffix("gamma") for name in names if name.endswith(".gamma")}
    norms &= {name.removesuffix("beta") for name in names if name.endswith(".beta")}
    return {name: renamed(_suffixed(name, norms), rules) for name in names}


def renamed(name: str, rules: Iterable[Sequence[str]]) -> str:
    """``name`` after all ``rules``, pairs of a pattern and what stands in its place."""
    for pattern, to in rules:
        name = re.sub(pattern, to, name)
    return name


def _suffixed(name: str, norms: set[str]) -> str:
    """``name`` with torch's word for a norm's tensor. A ``gamma`` without a ``beta`` beside it is
    a layer scale, which torch calls gamma too."""
    layer, dot, last = name.rpartition(".")
    if last in ("gamma", "beta") and layer + dot not in norms:
        return name
    return layer + dot + str(shipped()["suffixes"].get(last, last))
