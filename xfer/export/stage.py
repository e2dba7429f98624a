"""The stage ``export``: the network, the real images that its files are tried on, and the figures
of its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.core.errors import XferError
from xfer.core.files import file_sha256, read_json
from xfer.core.log import log
from xfer.core.run_folder import run_of
from xfer.core.types import Array, Card, Exported, InputSpec, LabelScore, Plain, Samples, Score
from xfer.data.dataset import part_of
from xfer.data.preprocess import prepare
from xfer.evaluation.conformal import having_labels
from xfer.export.hub_folder import HubFolder
from xfer.export.onnx_graph import GraphCache
from xfer.export.parity import Unseen

if TYPE_CHECKING:
    from torch import nn

    from xfer.core.certificate import Certificate
    from xfer.plan.plan import Plan

_BATCH = 32


def hand_over(
    plan: Plan,
    net: nn.Module,
    folder: Path,
    checkpoint: Path | None,
    scores: Mapping[str, Score | LabelScore] = MappingProxyType({}),
) -> list[Exported]:
    """Write ``net`` in every format asked for; see :func:`xfer.export.export`. ``scores`` are
    those of the run, by split.

    Each file that passed is a line on the terminal, also where another one was refused."""
    import torch

    from xfer.data.loader import EvalLoader, eval_images
    from xfer.export import Evidence, export
    from xfer.export.onnx_graph import GraphCache

    asked, split, card = plan.specs.export, check_split(plan), plan.card.merged()
    if checkpoint is not None:  # so that a file says what it was made from
        source = {**card.source, "checkpoint": file_sha256(checkpoint)}
        card = replace(card, source=source)
    stored, chosen = plan.specs.features.store(), spread(split, asked.gate.images)
    graphs = GraphCache(stored) if stored is not None else None
    whole = EvalLoader(eval_images(split, card.input), _BATCH, 0, pin=False)
    evidence = Evidence(
        photos=chosen.images,
        labels=chosen.labels,
        calibration=_calibration(plan),
        val=None
        if split.labels.ndim == 1 and (split.labels < 0).any()
        else lambda: ((images.numpy(), labels.numpy()) for images, labels in whole),
        max_drop=asked.gate.max_drop,
        unseen=_unseen(plan),
        graphs=graphs,
        figures=run_figures(plan, checkpoint, scores),
        sha256=_seen(plan, chosen),
    )
    net = net.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images, tolerance = partial(_prepared, chosen, card.input), asked.gate.tolerance
    files: Sequence[Exported] = ()
    try:
        files = export(net, images, asked.writers, card, folder, tolerance, evidence)
    except XferError as error:
        files = error.passed
        raise
    finally:
        for file in files:
            log.info(_line(file, card) + _origin(file, graphs))
    for writer in asked.writers:
        if isinstance(writer, HubFolder):
            writer.upload(folder / writer.file)
    return list(files)


def _origin(file: Exported, graphs: GraphCache | None) -> str:
    """What an earlier run has done of the work, after the line of ``file``."""
    if at := file.facts.get("proved_at"):
        return f"; the file of an earlier run, which compared it at {at}"
    return "; its graph out of the cache" if graphs and file.file in graphs.hits else ""


def _seen(plan: Plan, chosen: Samples) -> str:
    """One hash over all images that files are calibrated and tried on, and how."""
    splits = plan.dataset.splits if plan.dataset else {}
    spec, whole = plan.card.input.to_plain(), {name: s.sha256 for name, s in splits.items()}
    facts = [chosen.sha256, spec, whole, plan.specs.export.gate.images]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _line(file: Exported, card: Card) -> str:
    line = f"export/{file.file}: {file.bytes:,} bytes; "
    line += f"{file.compared} differ by up to {file.max_abs_diff:.1e}, "
    same = "the same labels, yes or no," if card.task else "same top class"
    line += f"{same} on {100 * file.agree:.1f} % of {file.images} images"
    if file.bound is None:
        of = "right labels" if card.task else "accuracy"
        line += f"; {of} on val {file.acc:.4f}, the checkpoint's {file.acc_network:.4f}"
    if promised := file.facts.get("certificate"):
        line += "; the network's prediction sets"
        if card.certificate and card.certificate.unlike is not None:
            line += " and p-values"
        covers = "; what the sets cover is not checked: no images that nothing was fitted on"
        if promised["checked_on"]:
            share, n, split = (promised[key] for key in ("covered", "checked", "checked_on"))
            covers = f"; its sets cover {100 * share:.1f} % of {n} images of {split}"
        line += covers
    return line


def check_split(plan: Plan) -> Samples:
    """The split whose images files are tried on: val, else test, else train."""
    splits = plan.dataset.splits if plan.dataset else {}
    return splits.get("val") or splits.get("test") or splits["train"]


def unseen_splits(plan: Plan, certificate: Certificate) -> list[str]:
    """The labelled splits that neither the network nor its ``certificate`` was fitted or chosen
    on, test before val."""
    splits = plan.dataset.splits if plan.dataset else {}
    used = {*plan.card.splits.values(), certificate.sha256}
    return [
        name
        for name in ("test", "val")
        if name in splits and splits[name].sha256 not in used and _labelled(splits[name].labels)
    ]


def _labelled(labels: npt.NDArray[np.int64]) -> bool:
    """Whether sets can be held against them: of one label an image all must be known."""
    return bool((labels >= 0).all() if labels.ndim == 1 else having_labels(labels).any())


def _unseen(plan: Plan) -> Unseen | None:
    from xfer.export.parity import Unseen

    certificate = plan.card.certificate
    names = unseen_splits(plan, certificate) if certificate else []
    if plan.dataset is None or not names:
        return None
    split = plan.dataset.splits[names[0]]
    split = part_of(split, np.flatnonzero(having_labels(split.labels)))
    chosen = spread(split, plan.specs.export.gate.images)
    return Unseen(names[0], chosen, _prepared(chosen, plan.card.input))


def _calibration(plan: Plan) -> Array | None:
    """As many training images as the most demanding writer of an approximate file asks for."""
    samples = plan.dataset.splits.get("train") if plan.dataset else None
    writers = [w for w in plan.specs.export.writers if getattr(w, "trial", "logits") == "score"]
    if samples is None or not writers:
        return None
    count = max(getattr(writer, "images", _BATCH) for writer in writers)
    return _prepared(spread(samples, count), plan.card.input)


def _prepared(samples: Samples, spec: InputSpec) -> Array:
    return np.stack([prepare(samples.images[i], spec) for i in range(len(samples))])


def spread(samples: Samples, count: int) -> Samples:
    """``count`` of ``samples``, or all where there are fewer, spread evenly over them."""
    n = len(samples)
    return part_of(samples, np.array([i * n // min(n, count) for i in range(min(n, count))]))


def run_figures(
    plan: Plan, checkpoint: Path | None, scores: Mapping[str, Score | LabelScore]
) -> Plain:
    """``scores`` by split and ``cv`` as ``result.json`` has them, and ``images``: how many each
    split has that the network was trained or chosen on.

    The scores are those of this run, or else what the run that wrote ``checkpoint`` says of these
    very bytes.
    """
    splits = plan.dataset.splits if plan.dataset else {}
    used = plan.card.splits
    images = {n: len(s) for n, s in splits.items() if used.get(n) == s.sha256 and s.sha256}
    known: Plain = {"scores": {name: score.to_plain() for name, score in scores.items()}}
    if not scores and checkpoint is not None:
        known = _of_the_run(checkpoint, used)
    return {**known, "images": known.get("images", {}) | images}


def _of_the_run(checkpoint: Path, used: Mapping[str, str]) -> Plain:
    run = run_of(checkpoint)
    path = run / "result.json" if run else None
    if path is None or not path.is_file():
        return {}
    try:
        facts = read_json(path)
        if facts["checkpoint"]["sha256"] != file_sha256(checkpoint):
            return {}
        splits = read_json(path.with_name("plan.json"))["splits"].items()
        seen = (pair for pair in splits if used.get(pair[0], "") == pair[1]["sha256"])
        images = {name: split["n"] for name, split in seen}
        return {"scores": facts["scores"], "cv": facts.get("cv"), "images": images}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # somebody else's file: the card says that nothing was scored
