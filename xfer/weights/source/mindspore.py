"""Weights that MindSpore saved, under torch's names, and what makes the function equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xfer.core.errors import WeightsError
from xfer.core.files import file_sha256
from xfer.core.protocols import Backbone
from xfer.weights.content import Content, Weights
from xfer.weights.formats.detect import LEGACY, NPZ, SAFETENSORS, TORCH, kind_of
from xfer.weights.formats.foreign import refusal
from xfer.weights.formats.safetensors_file import check_header
from xfer.weights.formats.validate import check_tensors
from xfer.weights.mindspore import ckpt, mindir_tensors
from xfer.weights.mindspore.mindspore_safetensors import read_safetensors
from xfer.weights.mindspore.name_maps import DialectName
from xfer.weights.mindspore.translate import Translation, translate
from xfer.weights.source.match_rules import Rules

_READERS: dict[str, Callable[[Path], Content]] = {
    "MindSpore checkpoint": ckpt.read,
    "MindSpore encrypted": ckpt.read,
    "mindir": mindir_tensors.read,
    SAFETENSORS: read_safetensors,
}
_OF_FILE = (TORCH, LEGACY, NPZ, "pickle")
"""What ``source=file`` reads or refuses."""


@dataclass(frozen=True)
class MindSpore(Rules):
    """``path`` of a .ckpt, .safetensors or .mindir of MindSpore, told apart by content.

    ``dialect``: whose names they are; ``auto`` recognises them, ``plain`` means torch's but for
    gamma, beta, moving_mean and moving_variance. ``compat``: with ``exact`` the network is built
    to compute what MindSpore's does (norms' eps, ``same`` padding, pooling), with ``plain`` it is
    the library's own. ``strip`` takes the file's own names, before the dialect; renames and drops
    of the user come after it.
    """

    path: str
    dialect: DialectName = "auto"
    compat: Literal["exact", "plain"] = "exact"

    def load(self, backbone: Backbone) -> Weights:
        """The file's weights under the names of ``backbone``'s library. Raises WeightsError when
        the file is no MindSpore file, or of a network other than ``backbone``."""
        path = Path(self.path).expanduser()
        content = read(path)
        outside = self.outside(list(content.state))
        inner = _below(content, self.strip or "")
        found = translate(inner, backbone.library, backbone.name, self.dialect, path)
        rules = replace(self, strip=None)
        weights = rules.weights("mindspore", renamed(inner, found), str(path), file_sha256(path))
        weights = with_own_names(weights, found, self.strip or "")
        exact = self.compat == "exact" and bool(found.compat)
        facts = {"dialect": found.dialect, "compat": "exact" if exact else "plain"}
        if found.prefix:
            facts["prefix"] = found.prefix
        return replace(
            weights,
            asides={**weights.asides, **outside},
            compat=found.compat if exact else {},
            facts={**facts, **weights.facts},
        )


def read(path: Path) -> Content:
    """The tensors of a MindSpore file by its own names, checked. Raises WeightsError in one line
    that says what the file is."""
    kind = kind_of(path)
    if kind in _OF_FILE or (kind == SAFETENSORS and _is_of_torch(path)):
        raise WeightsError(
            path, f"is {kind}, no MindSpore file", f"type source=file source.path={path}", 78
        )
    if kind not in _READERS:
        raise refusal(path, kind)
    content = _READERS[kind](path)
    check_tensors(path, content.state)
    return content


def _is_of_torch(path: Path) -> bool:
    """Whether a safetensors file says so. One that cannot be read does not. Raises as
    :func:`xfer.weights.formats.safetensors_file.check_header`."""
    from safetensors import SafetensorError, safe_open

    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == "pt"
    except (SafetensorError, OSError):
        return False


def _below(content: Content, start: str) -> Content:
    """``content`` with the weights whose names begin with ``start``, by the rest of the name."""
    state = {n.removeprefix(start): t for n, t in content.state.items() if n.startswith(start)}
    return replace(content, state=state)


def renamed(content: Content, found: Translation) -> Content:
    """``content`` with the weights under torch's names."""
    return replace(content, state={found.names[old]: t for old, t in content.state.items()})


def with_own_names(weights: Weights, found: Translation, start: str = "") -> Weights:
    """``weights`` that were made from translated content, with the file's own names wherever the
    report speaks of the file. ``start`` stood before each of them there."""
    own = {new: start + old for old, new in found.names.items()}
    source = {name: weights.renamed.get(name, name) for name in weights.state or ()}
    pairs = {name: own[translated] for name, translated in source.items()}
    return replace(
        weights,
        renamed={new: old for new, old in pairs.items() if new != old},
        asides={own.get(name, name): reason for name, reason in weights.asides.items()},
    )
