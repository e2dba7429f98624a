"""Weights that MindSpore saved, under torch's names, and what makes the function equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xfer.config.verbs import override, quoted
from xfer.core.errors import WeightsError
from xfer.core.files import file_sha256
from xfer.core.protocols import Backbone
from xfer.weights.content import Content, Weights
from xfer.weights.formats.detect import LEGACY, NPZ, SAFETENSORS, TORCH, kind_of, refusal
from xfer.weights.formats.read import check_tensors
from xfer.weights.formats.safetensors_file import metadata_of
from xfer.weights.mindspore import ckpt, mindir_tensors
from xfer.weights.mindspore.translate import DialectName, translate
from xfer.weights.source.match_rules import Rules

_READERS: dict[str, Callable[[Path], Content]] = {
    "MindSpore checkpoint": ckpt.read,
    "MindSpore encrypted": ckpt.read,
    "mindir": mindir_tensors.read,
    SAFETENSORS: ckpt.read_safetensors,
}
_OF_FILE = (TORCH, LEGACY, NPZ, "pickle")
"""What ``source=file`` reads or refuses."""


@dataclass(frozen=True)
class MindSpore(Rules):
    """``path`` of a .ckpt, .safetensors or .mindir of MindSpore, told apart by content.

    ``dialect`` ``auto`` recognises whose names they are, ``plain`` means torch's but for gamma,
    beta, moving_mean and moving_variance. What MindSpore computes otherwise are norms' eps,
    ``same`` padding and pooling. ``strip`` takes the file's own names, before the dialect; renames
    and drops of the user come after it.
    """

    path: str
    """a ``.ckpt`` of MindSpore 1.x or 2.x, a MindSpore ``.safetensors``, or a ``.mindir``"""
    dialect: DialectName = "auto"
    """whose names they are; see MindSpore"""
    compat: Literal["exact", "plain"] = "exact"
    """``exact`` builds the network to compute what MindSpore's does; ``plain`` leaves the
    library's own layers"""

    def load(self, backbone: Backbone) -> Weights:
        """The file's weights under the names of ``backbone``'s library. Raises WeightsError when
        the file is not a MindSpore file, or of a network other than ``backbone``."""
        path = Path(self.path).expanduser()
        content = read(path)
        outside = self.outside(list(content.state))
        strip = self.strip or ""
        state = {n.removeprefix(strip): t for n, t in content.state.items() if n.startswith(strip)}
        inner = replace(content, state=state)
        translation = translate(inner, backbone.library, backbone.name, self.dialect, path)
        names = {strip + old: new for old, new in translation.names.items()}
        renamed = replace(
            content,
            state={new: content.state[entry] for entry, new in names.items()},
            renamed={new: entry for entry, new in names.items()},
        )
        rules = replace(self, strip=None)
        weights = rules.weights("mindspore", renamed, str(path), file_sha256(path))
        exact = self.compat == "exact" and bool(translation.compat)
        facts = {"dialect": translation.dialect, "compat": "exact" if exact else "plain"}
        if translation.prefix:
            facts["prefix"] = translation.prefix
        return replace(
            weights,
            asides={**weights.asides, **outside},
            compat=translation.compat if exact else {},
            facts={**facts, **weights.facts},
        )


def read(path: Path) -> Content:
    """The tensors of a MindSpore file by its own names, checked. Raises WeightsError in one line
    that says what the file is."""
    kind = kind_of(path)
    of_torch = kind == SAFETENSORS and metadata_of(path).get("format") == "pt"
    if kind in _OF_FILE or of_torch:
        what = f"is {kind}, not a MindSpore file"
        named = quoted(override("source.path", str(path)))
        raise WeightsError(path, what, f"type source=file {named}", 78)
    if kind not in _READERS:
        raise refusal(path, kind)
    content = _READERS[kind](path)
    check_tensors(path, content.state)
    return content
