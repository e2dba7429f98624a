"""A head that holds training features: filled on the features of a frozen backbone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from xfer import freeze
from xfer.core.device import device_name
from xfer.core.files import write_json, write_rows
from xfer.core.log import log
from xfer.core.run_folder import LAST, best_checkpoint, checkpoints
from xfer.core.types import Plain
from xfer.evaluation.predict import write_predictions
from xfer.models.head.filled_layers import FilledHead
from xfer.models.network import assemble
from xfer.plan.plan import Plan
from xfer.training.backbone_features import BackboneFeatures, backbone_features
from xfer.training.certificate_fit import HeldOut, certify
from xfer.training.distributed.rendezvous import NOBODY, Lead
from xfer.training.exact import at_rest
from xfer.training.fit_result import FitResult
from xfer.training.head_problem import held_out_answers, held_out_score
from xfer.training.logger import logged
from xfer.weights.formats.checkpoint_format import Snapshot, identity, write_snapshot

if TYPE_CHECKING:
    from xfer.config.specs import Specs


_BLOCK = 256  # images that are answered at a time


def fit(plan: Plan, folder: Path, lead: Lead = NOBODY) -> FitResult:
    """Fill the head, in place of training it. ``lead`` and what is raised as as
    :func:`xfer.training.backbone_features.backbone_features`."""
    began = time.perf_counter()
    features = backbone_features(plan, "head", lead)
    net = assemble(plan.parts, plan.state)
    frozen = at_rest(plan, net)
    net.cpu()
    (path,) = plan.layout.heads
    head = net.get_submodule(path)
    if not isinstance(head, FilledHead):
        raise TypeError(f"{path} is no head that is filled")
    train = features.cached.work.splits["train"]
    row, held_out = _filled(head, features, plan.specs)
    said = plan.specs.task.card(held_out, train.labels, "cv")
    plan = replace(plan, card=replace(plan.card, task=said))
    before = {n: h for n, h in frozen.hashes.items() if not n.startswith(f"{path}.")}
    verdict = freeze.verdict(before, freeze.hashes(net.state_dict(), before))
    phase = {"phase": plan.phases[0].name, "from_epoch": 1, **verdict}
    write_json(folder / "freeze_proof.json", {**verdict, "phases": [phase]})
    write_json(folder / "features.json", features.facts)
    write_rows(folder / "metrics.csv", [row])
    answers, counts = held_out_answers(plan, held_out, train)
    write_predictions(answers, folder / "predictions_cv.csv")
    chosen = {"metric": "cv_loss", "value": row["cv_loss"], "epoch": 1, "step": 0}
    known = HeldOut(held_out, train.labels, "cv", train.sha256)
    # What enters the head is what it holds: its distances to them are its answers already.
    card = replace(plan.card, certificate=certify(plan.specs.certificate, known, unlike=None))
    snapshot = Snapshot(card, net.state_dict(), chosen, run=identity(plan.facts))
    best = best_checkpoint(folder)
    best.parent.mkdir(exist_ok=True)
    for file in (best, checkpoints(folder) / LAST):
        write_snapshot(file, snapshot)
    how = "none could be left out, since each is alone in its class"
    if row["cv_loss"] is not None:
        score = held_out_score({**counts, "cv_acc": row["cv_acc"]})
        how = f"each left out in turn, loss {row['cv_loss']:.4f}, {score}"
    log.info(f"filled with {len(train):,} training images: {how}")
    return FitResult(
        best=chosen,
        checkpoint=best,
        rows=[row],
        seconds=time.perf_counter() - began,
        device=device_name(features.frozen.device),
        proved=verdict["proved"],
        audits=[],
        features=features.facts,
        features_s=features.seconds,
        cached=features.cached,
        logger=logged(plan, folder, [row]),
    )


def _filled(
    head: FilledHead, features: BackboneFeatures, specs: Specs
) -> tuple[Plain, npt.NDArray[np.float32]]:
    """Fill ``head``: the row of ``metrics.csv``, and the logits of each training image by all the
    others, float32 (n, classes), NaN where there is no other of its class."""
    began, task = time.perf_counter(), specs.task
    labels = {name: s.labels for name, s in features.cached.work.splits.items()}
    train = torch.from_numpy(np.array(features.rows["train"]))
    with torch.inference_mode():
        held_out = head.fill(train, torch.from_numpy(labels["train"])).numpy()
    answers = {split: _answers(head, rows) for split, rows in features.rows.items()}
    known = np.isfinite(held_out).all(axis=1)
    val = task.values(answers["val"], labels["val"], specs.metrics)
    cv: Plain = {"loss": None, "acc": None}  # where each image is alone in its class
    if known.any():
        cv = dict(task.values(held_out[known], labels["train"][known], {}))
    seconds = time.perf_counter() - began
    row: Plain = {
        "epoch": 1,
        "step": 0,
        "train_loss": task.values(answers["train"], labels["train"], {})["loss"],
        "val_loss": val.pop("loss"),
        "val_acc": val.pop("acc"),
        "lr": None,
        "epoch_s": seconds,
        "step_ms": 1000 * seconds,
        **{f"val_{name}": value for name, value in val.items()},
        "cv_loss": cv["loss"],
        "cv_acc": cv["acc"],
    }
    return row, held_out


def _answers(head: FilledHead, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), _BLOCK):
            block = torch.from_numpy(np.array(rows[start : start + _BLOCK]))
            parts.append(head.answer(head.scaled(block)).numpy())
    return np.concatenate(parts)
