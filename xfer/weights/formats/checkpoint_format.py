"""The checkpoint format: tensors, and the card that explains them. Plain types only.

``best.ckpt`` is whole: it names its architecture, head, classes and input recipe and holds every
tensor. While a run trains, its files hold what trains and the fingerprint of what is frozen.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from xfer.config.verbs import override, quoted
from xfer.core.card_schema import card_of
from xfer.core.certificate import Certificate, certificate_of
from xfer.core.checksum import checksum_holds
from xfer.core.errors import WeightsError
from xfer.core.files import read_json
from xfer.core.read_back import checked
from xfer.core.run_folder import best_checkpoint
from xfer.core.standardize import folded, from_plain
from xfer.core.torch_file import damaged, load_tensors, save_tensors
from xfer.core.types import Card, Plain, StateDict
from xfer.weights.formats.detect import FOREIGN, OF_MINDSPORE, SAFETENSORS, kind_of

_NO_TORCH_FILE = 402
FORMAT = 2
"""2: the file holds its own sha256."""


@dataclass(frozen=True)
class Snapshot:
    """``state`` by the network's own tensor names; ``frozen`` is ``None`` when the state is whole,
    else the fingerprint of the tensors left out; ``progress`` says epoch, step, metric, value;
    ``run`` is the :func:`identity` of the run that wrote it."""

    card: Card
    state: StateDict
    progress: Plain = field(default_factory=dict)
    frozen: str | None = None
    run: str | None = None


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Save atomically."""
    facts = {
        "format": FORMAT,
        "card": snapshot.card.to_plain(),
        "progress": snapshot.progress,
        "frozen": snapshot.frozen,
        "run": snapshot.run,
    }
    content = {
        # Through JSON: which objects are one and the same would show in the file's bytes.
        "xfer": json.loads(json.dumps(facts)),
        "state_dict": {k: v.detach().cpu().contiguous() for k, v in snapshot.state.items()},
    }
    if snapshot.card.certificate is not None:
        import torch

        arrays = snapshot.card.certificate.arrays()
        content["certificate"] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(path, content)


class _Progress(TypedDict, total=False):
    epoch: int
    step: int
    metric: str
    value: float | None


class _Facts(TypedDict):
    format: Annotated[int, Field(ge=1)]
    progress: _Progress
    frozen: str | None
    run: NotRequired[str | None]


def read_snapshot(path: Path) -> Snapshot:
    """Read and check. Raises WeightsError for anything that is not an xfer checkpoint."""
    import torch

    content = _content(path)
    facts = content.get("xfer") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or not {"card", "format"} <= facts.keys():
        what = "is not an xfer checkpoint"
        named = quoted(override("source.path", str(path)))
        fix = f"for other weights type source=file {named}"
        raise WeightsError(path, what, fix, 5)
    version, state = facts["format"], content.get("state_dict")
    if isinstance(version, int) and version > FORMAT:
        what = f"has format {version}, newer than this xfer"
        raise WeightsError(path, what, "update xfer", 6)
    try:
        checked(_Facts, facts)
        card = card_of(facts["card"])
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor)
            for name, tensor in state.items()
        ):
            raise ValueError("state_dict is no dict of tensors by name")
        if promised := facts["card"].get("certificate"):
            card = replace(card, certificate=_certificate(promised, content, card))
    except ValueError as error:
        what = f"its card is not what xfer writes ({error})"
        fix = "use another copy of the file, or train again"
        raise WeightsError(path, what, fix, 97) from error
    if version > 1 and not checksum_holds(path):
        raise damaged(path)
    if "loops" in content:
        # A resume file: the network beside the state of metrics; the average is what was scored.
        state = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        state |= content["ema"] or {}
        state = folded(state, from_plain(content.get("standard")))
    return Snapshot(card, state, facts["progress"], facts["frozen"], facts.get("run"))


def _content(path: Path) -> Any:
    """What the file holds. Raises WeightsError for one that was exported, and is no checkpoint."""
    try:
        return load_tensors(path)
    except WeightsError as error:
        if error.number != _NO_TORCH_FILE:
            raise
        kind, reason = kind_of(path), error
    if kind in (SAFETENSORS, "torch.export", "OpenVINO", "TensorFlow", *OF_MINDSPORE):
        what, *_ = {**FOREIGN, **OF_MINDSPORE}.get(kind, ("holds tensors alone",))
        runs = (folder for folder in path.parents if best_checkpoint(folder).is_file())
        run = quoted(override("checkpoint.path", str(next(runs, "RUN"))))
        fix = f"type {run}, or predict.model=FILE.onnx"
        raise WeightsError(path, f"{what}, and no checkpoint of xfer", fix, 5) from reason
    raise reason


def _certificate(facts: Plain, content: Plain, card: Card) -> Certificate:
    """That of ``card``, with the arrays beside it. Raises ValueError for what is none."""
    import torch

    tensors = content.get("certificate")
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError("the certificate is no dict of tensors by name")
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    return certificate_of(facts, arrays, len(card.classes), several=bool(card.task))


def identity(plan: Plain) -> str:
    """What tells a run from others: sha256 over what ``plan.json`` says of its configuration,
    classes, images, source and teacher. Runs that are equal in all of these write equal
    checkpoints."""
    parts = {key: plan.get(key) for key in ("fingerprint", "classes", "splits", "source")}
    if teacher := plan.get("teacher"):  # else the identity is that of runs before there were any
        parts["teacher"] = teacher["sha256"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_best(path: Path) -> Snapshot:
    """Read a checkpoint, or the best one of a run folder.

    Raises WeightsError as :func:`read_snapshot`, and where the checkpoint in a run folder was
    written by another run than the one in that folder's ``plan.json``.
    """
    snapshot = read_snapshot(best_checkpoint(path))
    plan = path / "plan.json"
    if not (path.is_dir() and plan.exists()):
        return snapshot
    try:
        facts = read_json(plan)
        run = identity(facts)
    except (OSError, ValueError, AttributeError) as error:
        what = f"cannot be read ({str(error).splitlines()[0]})"
        fix = f"give the checkpoint itself: {best_checkpoint(path)}"
        raise WeightsError(plan, what, fix, 96) from error
    if snapshot.run != run:
        what = "was written by another run than the one of this folder"
        fix = "put the run's own file back, or give the path of a checkpoint outside of the folder"
        raise WeightsError(best_checkpoint(path), what, fix, 96)
    return snapshot
