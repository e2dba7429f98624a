"""The checkpoint format: tensors, and the card that explains them. Plain types only.

``best.ckpt`` is whole: it names its architecture, head, classes and input recipe and holds every
tensor. While a run trains, its files hold what trains and the fingerprint of what is frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.errors import WeightsError
from xfer.seal import sealed
from xfer.standardize import folded, from_plain
from xfer.storage import damaged, load_tensors, save_tensors
from xfer.types import Card, Plain

if TYPE_CHECKING:
    import torch

    from xfer.types import StateDict

FORMAT = 2
"""2: the file holds its own sha256."""


@dataclass(frozen=True)
class Snapshot:
    """``state`` by the network's own tensor names; ``frozen`` is ``None`` when the state is whole,
    else the fingerprint of the tensors left out; ``progress`` says epoch, step, metric, value."""

    card: Card
    state: StateDict
    progress: Plain = field(default_factory=dict)
    frozen: str | None = None


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Save atomically."""
    facts = {
        "xfer": {
            "format": FORMAT,
            "card": snapshot.card.to_plain(),
            "progress": snapshot.progress,
            "frozen": snapshot.frozen,
        },
        "state_dict": {k: v.detach().cpu().contiguous() for k, v in snapshot.state.items()},
    }
    save_tensors(path, facts)


def read_snapshot(path: Path) -> Snapshot:
    """Read and check. Raises WeightsError for anything that is no xfer checkpoint."""
    content = load_tensors(path)
    facts = content.get("xfer") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or "card" not in facts:
        raise WeightsError(
            path, "is no xfer checkpoint", "for other weights use source=file source.path=...", 5
        )
    if facts["format"] > FORMAT:
        raise WeightsError(
            path, f"has format {facts['format']}, newer than this xfer", "update xfer", 6
        )
    if facts["format"] > 1 and not sealed(path):
        raise damaged(path)
    state = content["state_dict"]
    if "loops" in content:
        # A resume file: the network beside the state of metrics; the average is what was scored.
        state = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        state |= content["ema"] or {}
        state = folded(state, from_plain(content.get("standard")))
    return Snapshot(Card.from_plain(facts["card"]), state, facts["progress"], facts["frozen"])


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """One sha256 over those of all tensors, in the order of their names."""
    return over(tensor_hashes(tensors))


def tensor_hashes(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """sha256 over each tensor's name, dtype, shape and bytes, in hex, by name."""
    import torch

    # As many at a time as torch may use: a slot of a sweep has its own cores.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(pool.map(_hashed, tensors))


def _hashed(named: tuple[str, torch.Tensor]) -> tuple[str, str]:
    import torch

    name, tensor = named
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return name, digest.hexdigest()


def over(hashes: Mapping[str, str]) -> str:
    """The fingerprint of tensors whose own ``hashes`` are known, by name."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
