"""A linear head solved on the features of a frozen backbone, in place of training it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from xfer import freeze
from xfer.core.device import device_name
from xfer.core.errors import DataError
from xfer.core.files import write_json, write_rows
from xfer.core.log import log
from xfer.core.run_folder import LAST, best_checkpoint, checkpoints
from xfer.core.seeds import derive
from xfer.core.types import Plain, Predictions
from xfer.evaluation import metrics
from xfer.evaluation.predict import write_predictions
from xfer.models.network import assemble
from xfer.training import logistic
from xfer.training.features.feature_loader import Kept
from xfer.training.features.feed import told
from xfer.training.fitted import Fitted
from xfer.training.frozen import Frozen, NotExact, at_rest, features_of, inputs, logits
from xfer.training.head_input import first_layer
from xfer.training.loss import CrossEntropy
from xfer.training.optim import Exact
from xfer.weights.formats.checkpoint_format import Snapshot, identity, write_snapshot

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan.plan import Plan

_NEAR = 1e-3  # of the largest logit: how far the solved head may answer from what was solved


@dataclass(frozen=True)
class Solved:
    """A head that is solved: the path, and the logits of the validation images under each of its
    solutions, float32 (n, classes)."""

    solution: logistic.Solution
    answers: list[npt.NDArray[np.float32]]
    seconds: float  # that went into the head's input


def fit(plan: Plan, folder: Path) -> Fitted:
    """Solve the head as planned. It is the same at every try, so a run that was stopped begins
    again on the features that it has kept.

    Raises NotExact where the network cannot be cut before its head, or the head is followed by
    more than a mean; DataError for features that are no numbers.
    """
    began = time.perf_counter()
    net = assemble(plan.parts, plan.state)
    frozen = at_rest(plan, net)
    kept = features_of(plan, frozen)
    features, features_s = kept.facts({"cached": False, "hit": None}), time.perf_counter() - began
    log.info(told(features, kept.found, kept.most_bytes))
    found = solve(plan, frozen, kept)
    solution = found.solution
    verdict = freeze.verdict(frozen.hashes, freeze.hashes(net.state_dict(), frozen.hashes))
    phase = {"phase": plan.phases[0].name, "from_epoch": 1, **verdict}
    write_json(folder / "freeze_proof.json", {**verdict, "phases": [phase]})
    write_json(folder / "features.json", features)
    rows = _rows(plan, found)
    write_rows(folder / "metrics.csv", rows)
    _log_rows(plan, folder, rows)
    best = rows[solution.best]
    chosen = {
        "metric": "cv_loss",
        "value": best["cv_loss"],
        "epoch": best["epoch"],
        "step": best["step"],
    }
    snapshot = Snapshot(plan.card, net.cpu().state_dict(), chosen, run=identity(plan.facts))
    best_path, last_path = best_checkpoint(folder), checkpoints(folder) / LAST
    best_path.parent.mkdir(exist_ok=True)
    for path in (best_path, last_path):
        write_snapshot(path, snapshot)
    _write_held_out(plan, solution, folder / "predictions_cv.csv")
    facts = _facts(plan, solution)
    log.info(_summary(facts))
    return Fitted(
        chosen,
        best_path,
        rows,
        time.perf_counter() - began,
        device_name(frozen.device),
        verdict["proved"],
        [],
        features,
        features_s + found.seconds,
        kept,
        facts,
    )


def solve(plan: Plan, frozen: Frozen, kept: Kept) -> Solved:
    """Solve the head of the network, in place. Raises as :func:`fit`."""
    net, began = frozen.net, time.perf_counter()
    (head,) = plan.layout.heads
    path = first_layer(net, head)
    if path is None:
        raise NotExact(f"'{head}' has no linear layer")
    held = inputs(frozen, kept, path, "train", None)
    views = [inputs(frozen, kept, path, "train", view) for view in kept.train if view is not None]
    val = inputs(frozen, kept, path, "val", None)
    seconds = time.perf_counter() - began
    assert plan.dataset is not None
    _check_numbers(held, plan.dataset.splits["train"].names)
    solution = logistic.solve(_problem(plan, views or [held], held), _strengths(plan))
    answers = [(val @ row.weight.T + row.bias).astype(np.float32) for row in solution.path]
    _fill(net.get_submodule(path), solution.path[solution.best])
    _check_linear(frozen, kept, answers[solution.best])
    return Solved(solution, answers, seconds)


def _check_numbers(features: npt.NDArray[np.float32], names: tuple[str, ...]) -> None:
    for start, stop in logistic.spans(features):
        sound = np.isfinite(features[start:stop]).all(axis=1)
        if not sound.all():
            name = names[start + int(np.flatnonzero(~sound)[0])]
            fix = "use other weights, or trainer.precision=32-true"
            raise DataError(name, "the backbone's features are NaN or Inf", fix, 48)


def _problem(
    plan: Plan, views: list[npt.NDArray[np.float32]], held: npt.NDArray[np.float32]
) -> logistic.Rows:
    specs, counts = plan.specs, np.array(plan.train_counts, np.float64)
    assert plan.dataset is not None and specs.data is not None and isinstance(specs.optim, Exact)
    labels = plan.dataset.splits["train"].labels
    weights = np.ones(len(labels))
    if specs.data.sampler == "balanced":
        weights = len(labels) / (len(counts) * counts[labels])
    given = specs.loss.weights(plan.train_counts)
    classes = np.ones(len(counts)) if given is None else np.array(given)
    folds = logistic.folds(labels, specs.optim.folds, derive("folds", specs.seed))
    assert isinstance(specs.loss, CrossEntropy)  # the plan solves no other
    smoothing = specs.loss.label_smoothing
    return logistic.Rows(views, held, labels, weights, classes, smoothing, folds)


def _strengths(plan: Plan) -> tuple[float, ...]:
    options = plan.specs.optim
    assert isinstance(options, Exact)
    return logistic.STRENGTHS if options.l2 == "auto" else (options.l2,)


def _fill(layer: nn.Module, row: logistic.Strength) -> None:
    values: Any = {"weight": row.weight, "bias": row.bias}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.from_numpy(values[name]).view(parameter.shape))


def _check_linear(frozen: Frozen, kept: Kept, expected: npt.NDArray[np.float32]) -> None:
    """Raise NotExact where the network makes other logits of its head than a linear head has."""
    # Relative to the answers: of a strong penalty's tiny logits, any network's would be near to 1.
    count, largest = 0, float(np.abs(expected).max(initial=0))
    for found in logits(frozen, kept, "val", kept.val[0]):
        wanted = torch.from_numpy(expected[count : count + len(found)])
        if found.shape != wanted.shape:
            raise NotExact("the network's answer is no logit a class")
        if float((found.float().cpu() - wanted).abs().max()) > _NEAR * largest:
            raise NotExact("the network does more than a mean behind its head")
        count += len(found)


def _rows(plan: Plan, found: Solved) -> list[Plain]:
    """A row of ``metrics.csv`` for every strength."""
    assert plan.dataset is not None
    labels, rows, steps = plan.dataset.splits["val"].labels, [], 0
    for i, (row, answer) in enumerate(zip(found.solution.path, found.answers, strict=True)):
        steps += row.steps
        val = metrics.values(answer, labels)
        rows.append(
            {
                "epoch": i + 1,
                "step": steps,
                "train_loss": row.train_loss,
                "val_loss": val.pop("loss"),
                "val_acc": val.pop("acc"),
                "lr": None,
                "epoch_s": row.seconds,
                "step_ms": 1000 * row.seconds / max(1, row.steps),
                **{f"val_{name}": value for name, value in val.items()},
                "l2": row.l2,
                "cv_loss": row.cv_loss,
                "cv_acc": row.cv_acc,
            }
        )
    return rows


def _log_rows(plan: Plan, folder: Path, rows: list[Plain]) -> None:
    """Give each strength to the logger that is asked for, as an epoch is given."""
    logger = plan.specs.logger.build(folder, plan.specs.experiment)
    if logger is None:
        return
    for row in rows:
        known = {k: v for k, v in row.items() if k != "step" and v is not None}
        logger.log_metrics(known, step=int(row["step"]))
    logger.finalize("success")


def _write_held_out(plan: Plan, solution: logistic.Solution, path: Path) -> None:
    """What each training image is taken for by the fit that had not seen it."""
    assert plan.dataset is not None
    samples, held = plan.dataset.splits["train"], solution.held_out
    seen = np.flatnonzero(np.isfinite(held).all(axis=1))
    names = tuple(samples.names[i] for i in seen)
    found = Predictions(names, held[seen], samples.labels[seen], plan.card.classes)
    write_predictions(found, path)


def _facts(plan: Plan, solution: logistic.Solution) -> Plain:
    best = solution.path[solution.best]
    options = plan.specs.optim
    assert isinstance(options, Exact)
    held = np.isfinite(solution.held_out).all(axis=1)
    return {
        "l2": best.l2,
        "chosen_by": "cv_loss" if options.l2 == "auto" else "given",
        "strengths": len(solution.path),
        "folds": options.folds,
        "n": int(held.sum()),
        "left_in": int((~held).sum()),
        "cv_loss": best.cv_loss,
        "cv_acc": best.cv_acc,
    }


def _summary(facts: Plain) -> str:
    how = f"of {facts['strengths']} strengths by" if facts["chosen_by"] == "cv_loss" else "in"
    left = f"; {facts['left_in']} images alone in their class were never held out"
    return (
        f"solved: l2 {facts['l2']:.2g} {how} {facts['folds']} folds of the training images: "
        f"loss {facts['cv_loss']:.4f}, accuracy {facts['cv_acc']:.4f} on {facts['n']} held out"
        f"{left if facts['left_in'] else ''}"
    )
