"""Files that an earlier run has written and proved, copied by a run of which everything that the
files and their proof depend on is the same.

What is stored is no file, only where one lies, its sha256 and what the gate found of it. It is
copied while it lies there and has that sha256; else it is written and tried anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from xfer.core.checksum import fingerprint
from xfer.core.errors import OutputError
from xfer.core.files import atomic_write, file_sha256, open_to_read, parsed
from xfer.core.log import log
from xfer.core.protocols import Graphs, Writer, WritesFolder
from xfer.core.read_back import checked
from xfer.core.types import Card, Exported, Plain
from xfer.export.cache_key import arithmetic, surroundings
from xfer.export.onnx_graph import UnknownLayer, layers_of

if TYPE_CHECKING:
    from torch import nn

    from xfer.export.parity import Evidence

_DISTRIBUTIONS = (
    *("torch", "timm", "torchvision", "numpy", "pillow", "safetensors", "xfer-vision"),
    *("onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino"),
    *("executorch", "litert-torch", "ai-edge-litert"),
)
_CODE = ("core", "data", "evaluation", "export", "models")
"""The packages of xfer whose code prepares images, writes files and tries them."""


@dataclass(frozen=True)
class EarlierFiles:
    """The files that earlier runs wrote of one network, in ``stored``; ``facts`` are everything
    that all of these and their proofs depend on."""

    stored: Graphs
    facts: Plain

    def copied(self, writer: Writer, path: Path) -> Exported | None:
        """What is known of the file of ``writer``, once it has been copied to ``path``; ``None``
        where there is none that could be. Raises OutputError where ``path`` cannot be written."""
        record = self._record(writer)
        if record is None:
            return None
        row = record["row"]

        def copy(part: Path) -> None:
            with part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if file_sha256(part) != row.sha256:
                raise _AnotherFile

        try:
            with open_to_read(Path(record["path"])) as source:
                atomic_write(path, copy)
        except (OSError, _AnotherFile):
            return None  # it has been moved, removed or changed since
        return replace(row, facts={**row.facts, "proved_at": record["at"]})

    def note(self, writer: Writer, path: Path, found: Exported) -> None:
        """Remember the file at ``path``, which has passed. A cache that cannot be written costs a
        line and nothing else."""
        key = self._key(writer)
        if key is None:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"path": str(path.resolve()), "at": at, "row": asdict(found)}
        try:
            self.stored.forget(key, "")
            self.stored.content(key, lambda: json.dumps(record, allow_nan=False).encode())
        except OutputError as error:
            log.warning(f"the exported file is not remembered: {error.where}: {error.what}")

    def _record(self, writer: Writer) -> _ProvedFile | None:
        """What an earlier run noted, where a run writes such notes and the file has passed."""
        key, data = self._key(writer), None
        with suppress(OutputError):  # of a cache that can be neither made nor read, see `note`
            data = None if key is None else self.stored.known(key)
        if data is None:
            return None
        try:
            record: _ProvedFile = checked(_ProvedFile, parsed(data.decode()))
        except ValueError as error:
            log.warning(f"what an earlier run noted of {writer.file} is not used: {error}")
            return None
        row = record["row"]
        passed = row.bound is None or row.max_abs_diff <= row.bound
        return record if passed and row.file == writer.file else None

    def _key(self, writer: Writer) -> Plain | None:
        """``None`` for a writer of several files, some of which are about the run, and for one of
        the user's own, whose code may change."""
        kind = type(writer)
        if isinstance(writer, WritesFolder) or not kind.__module__.startswith("xfer."):
            return None
        options: Plain = asdict(writer)  # type: ignore[call-overload]
        return {**self.facts, "writer": [f"{kind.__module__}.{kind.__qualname__}", options]}


class _AnotherFile(Exception):
    """What has been copied is not the file that was proved."""


def earlier_files(
    net: nn.Module, card: Card, tolerance: float, evidence: Evidence
) -> EarlierFiles | None:
    """The files of earlier runs for ``net``, its card and what files are tried on; ``None``
    without a store, where nobody says which images they are tried on, and for a network that cannot
    be recognised."""
    if evidence.graphs is None or not evidence.sha256:
        return None
    try:
        layers = layers_of(net)
    except UnknownLayer:
        return None
    certificate = card.certificate.arrays() if card.certificate else {}
    promised = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in certificate.items()}
    facts: Plain = {
        "kind": "exported file",
        "format": 1,
        "layers": layers,
        "weights": fingerprint(net.state_dict().items()),
        "card": card.to_plain(),
        "certificate": promised,
        "images": evidence.sha256,
        "strictness": [tolerance, evidence.max_drop],
        **arithmetic(),
        **surroundings(_DISTRIBUTIONS, _CODE),
    }
    try:
        json.dumps(facts, allow_nan=False)
    except ValueError:  # a card with a number that is none
        return None
    return EarlierFiles(evidence.graphs.stored, facts)


@with_config(ConfigDict(extra="forbid"))
class _ProvedFile(TypedDict):
    path: str
    at: str
    row: Exported
