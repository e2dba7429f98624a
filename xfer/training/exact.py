"""A linear head solved on the features of a frozen backbone, in place of training it.

A head that is trained step by step can begin with the same solution.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from xfer import freeze
from xfer.core.device import device_name, device_of
from xfer.core.errors import DataError
from xfer.core.files import write_json, write_rows
from xfer.core.log import log
from xfer.core.long_array import zeros
from xfer.core.run_folder import LAST, best_checkpoint, checkpoints
from xfer.core.types import Card, Plain, Samples
from xfer.evaluation.calibration import scaling_of
from xfer.evaluation.certificate_answers import layer_paths
from xfer.evaluation.out_of_distribution import fit_unlike
from xfer.evaluation.out_of_fold import TABLE
from xfer.evaluation.predict import write_predictions
from xfer.freeze.rows import ParameterRow
from xfer.models.network import assemble
from xfer.training import logistic
from xfer.training.calibrate import calibrate_solved
from xfer.training.certificate_fit import HeldOut, answers_with_features, certify
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.distributed.rendezvous import NOBODY, Lead, SentPlan
from xfer.training.feature_moments import blocks
from xfer.training.features import AutoFeatures
from xfer.training.features.cut import evaluated_from, inference
from xfer.training.features.extract import Extraction, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.features.feature_switch import cut_within
from xfer.training.features.find_cut import Refusal
from xfer.training.fit_result import FitResult
from xfer.training.head_input import first_layer, rows_of, watch
from xfer.training.head_problem import (
    Heads,
    SolvedRows,
    held_out_answers,
    out_of_fold,
    problem_of,
    solution_of,
    summary_of,
)
from xfer.training.logger import logged
from xfer.training.loss import CrossEntropy
from xfer.training.optim import Exact
from xfer.training.teacher import note, soft_targets
from xfer.weights.formats.checkpoint_format import Snapshot, identity, write_snapshot

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.config.specs import Specs
    from xfer.core.certificate import Certificate
    from xfer.evaluation.task import Pooled
    from xfer.plan.plan import Plan

_ANY_EPOCHS = 1_000_000
_NEAR = 1e-3  # of the largest logit: how far the solved head may answer from what was solved


_COMPARED = 64  # images that show it: whatever follows a head, it does to any


class NotExact(Exception):
    """Why a head cannot be solved after all, in one line."""


@dataclass(frozen=True)
class Solved:
    """A head that is solved: its ``layer``, what it was solved on, the path of its solutions, and
    the features of the validation images, float32 (n, d), ``None`` without such images."""

    layer: str
    options: Exact
    problem: Heads
    rows: SolvedRows
    solution: logistic.Solution
    val: npt.NDArray[np.float32] | None
    seconds: float  # that went into the head's input
    taught: Plain  # what the teacher was asked for


def fit(plan: Plan, folder: Path, lead: Lead = NOBODY) -> FitResult:
    """Solve the head as planned, on features that the ranks of ``lead`` compute in equal parts. It
    is the same at every try, so a run that was stopped begins again on the features that it has
    cached.

    Raises NotExact where the network cannot be cut before its head, or the head is followed by
    more than a mean; DataError for features that are no numbers.
    """
    began = time.perf_counter()
    net = assemble(plan.parts, plan.state)
    frozen, cached = _at_rest_with_features(plan, net, lead.ask(take_part, SentPlan.of(plan)))
    features = cached.facts({"hit": None})
    features_s = time.perf_counter() - began
    log.info(cached.summary())
    solved = solve(plan, frozen, cached, lead)
    train = cached.work.splits["train"]
    task = plan.specs.task.card(solved.solution.held_out, train.labels, "cv")
    plan = replace(plan, card=replace(plan.card, task=task))
    verdict = freeze.verdict(frozen.hashes, freeze.hashes(net.state_dict(), frozen.hashes))
    phase = {"phase": plan.phases[0].name, "from_epoch": 1, **verdict}
    write_json(folder / "freeze_proof.json", {**verdict, "phases": [phase]})
    write_json(folder / "features.json", features)
    if solved.taught:
        note(folder, solved.taught)
    rows = _rows(solved, cached.work.splits.get("val"), plan.specs)
    write_rows(folder / "metrics.csv", rows)
    logger = logged(plan, folder, rows)
    best = rows[solved.solution.best]
    where = {"epoch": best["epoch"], "step": best["step"]}
    chosen = {"metric": "cv_loss", "value": best["cv_loss"], **where}
    facts = _write_held_out(plan, solved, train, folder / "predictions_cv.csv")
    log.info(summary_of(facts))
    card = calibrate_solved(plan, net, solved.rows, solved.solution, bool(train.groups))
    card = replace(card, certificate=_certificate(plan, card, solved, frozen, cached))
    snapshot = Snapshot(card, net.cpu().state_dict(), chosen, run=identity(plan.facts))
    best_path = best_checkpoint(folder)
    best_path.parent.mkdir(exist_ok=True)
    for path in (best_path, checkpoints(folder) / LAST):
        write_snapshot(path, snapshot)
    whole = _cross_validated(plan, solved.problem, train)
    if whole:
        whole.write(folder / TABLE)
    return FitResult(
        best=chosen,
        checkpoint=best_path,
        rows=rows,
        seconds=time.perf_counter() - began,
        device=device_name(frozen.device),
        proved=verdict["proved"],
        audits=[],
        features=features,
        features_s=features_s + solved.seconds,
        cached=cached,
        solved=facts,
        logger=logger,
        cv=whole,
        calibration=card.calibration,
    )


def take_part(specs: Specs, group: ProcessGroup, sent: SentPlan) -> None:
    """Compute the part of one of the other ranks of what rank 0 solves the head on."""
    plan = sent.received(specs)
    with suppress(NotExact):
        _at_rest_with_features(plan, assemble(plan.parts, plan.state), group)


def _at_rest_with_features(
    plan: Plan, net: nn.Module, group: ProcessGroup
) -> tuple[PartlyFrozen, CachedFeatures]:
    group.broadcast_state(net)
    frozen = at_rest(plan, net)
    return frozen, features_of(plan, frozen, group)


def _cross_validated(plan: Plan, problem: Heads, train: Samples) -> Pooled | None:
    """The answers of every fold, where the run is a cross-validation."""
    if train.folds is None:
        return None
    logits = out_of_fold(problem, train.folds)
    pooled: Pooled = plan.specs.task.pooled(train, logits, plan.card.classes)
    return pooled


def _certificate(
    plan: Plan, card: Card, solved: Solved, frozen: PartlyFrozen, cached: CachedFeatures
) -> Certificate | None:
    """That of the solved head, from what the folds held out, scaled as ``card`` says the head is;
    ``None`` where none is asked for."""
    if plan.specs.certificate.coverage is None:
        return None
    train, logits = cached.work.splits["train"], solved.solution.held_out
    if card.calibration:
        logits = scaling_of(card.calibration, len(card.classes)).of(logits).astype(np.float32)
    net = frozen.net.eval()
    layers = layer_paths(net, plan.layout, plan.card.input.size)
    _, features = answers_with_features(plan, net, layers, train)
    held_out = HeldOut(logits, train.labels, "cv", train.sha256)
    unlike = fit_unlike(features, train.labels) if layers else None
    return certify(plan.specs.certificate, held_out, unlike)


def solve(plan: Plan, frozen: PartlyFrozen, cached: CachedFeatures, lead: Lead = NOBODY) -> Solved:
    """Solve the head of the network, in place. Raises as :func:`fit`."""
    began, net, splits = time.perf_counter(), frozen.net, cached.work.splits
    options, loss = plan.specs.optim, plan.specs.loss
    (head,) = plan.layout.heads
    path = first_layer(net, head)
    if path is None:
        raise NotExact(f"'{head}' has no linear layer")
    if not (isinstance(options, Exact) and isinstance(loss, CrossEntropy)):
        raise NotExact("only cross-entropy can be solved")
    evaluated = inputs(frozen, cached, path, "train")
    numbers = [view for view in cached.train if view is not None]
    views = [inputs(frozen, cached, path, "train", view) for view in numbers]
    val = inputs(frozen, cached, path, "val") if cached.val else None
    seconds = time.perf_counter() - began
    refuse_no_numbers(evaluated, splits["train"].names)
    soft, taught = soft_targets(plan, frozen.device, numbers or [None], lead)
    problem = problem_of(plan, views or [evaluated], evaluated, splits["train"], options, loss)
    problem = replace(problem, soft=soft)
    rows, solution = solution_of(problem)
    best = solution.path[solution.best]
    with torch.no_grad():
        for name, parameter in net.get_submodule(path).named_parameters():
            solved = best.weight if name == "weight" else best.bias
            parameter.copy_(torch.from_numpy(solved).view(parameter.shape))
    split, judged = ("train", evaluated) if val is None else ("val", val)
    _check_linear(frozen, cached, _answers(best, judged[:_COMPARED]), split)
    return Solved(path, options, problem, rows, solution, val, seconds, taught)


def _answers(head: logistic.Strength, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits of a solved head for ``features`` (n, d): float32 (n, classes)."""
    logits = zeros((len(features), len(head.bias)), np.float32)
    for part in blocks(features):
        logits[part] = features[part] @ head.weight.T + head.bias
    return logits


def refuse_no_numbers(features: npt.NDArray[np.float32], names: Sequence[str]) -> None:
    """Raise DataError for the first of the images ``names`` whose features are NaN or Inf."""
    for part in blocks(features):
        sound = np.isfinite(features[part]).all(axis=1)
        if not sound.all():
            name = names[part.start + int(np.flatnonzero(~sound)[0])]
            fix = "use other weights, or trainer.precision=32-true"
            raise DataError(name, "the backbone's features are NaN or Inf", fix, 48)


def _check_linear(
    frozen: PartlyFrozen, cached: CachedFeatures, expected: npt.NDArray[np.float32], split: str
) -> None:
    """Raise NotExact where the network makes other logits of its head than a linear head has, which
    are ``expected`` of the first images of ``split`` as they are evaluated."""
    view = cached.val[0] if split == "val" else cached.train[None]
    with from_features(frozen, cached, split) as run:
        answer = run(view.features(range(len(expected)))).float().cpu()
    if answer.shape != expected.shape:
        raise NotExact("the network does not answer with one logit a class")
    # Relative to the answers: of a strong penalty's tiny logits, any network's would be near to 1.
    if np.abs(answer.numpy() - expected).max(initial=0) > _NEAR * np.abs(expected).max(initial=0):
        raise NotExact("the network does more than a mean after its head")


def _rows(solved: Solved, val: Samples | None, specs: Specs) -> list[Plain]:
    """A row of ``metrics.csv`` for every strength, with empty cells where there is no ``val``."""
    rows: list[Plain] = []
    steps = 0
    for i, row in enumerate(solved.solution.path):
        steps += row.steps
        scores: Plain = {"loss": None, "acc": None}
        if val is not None and solved.val is not None:
            answers = _answers(row, solved.val)
            scores = dict(specs.task.values(answers, val.labels, specs.metrics))
        rows.append(
            {
                "epoch": i + 1,
                "step": steps,
                "train_loss": row.train_loss,
                "val_loss": scores.pop("loss"),
                "val_acc": scores.pop("acc"),
                "lr": None,
                "epoch_s": row.seconds,
                "step_ms": 1000 * row.seconds / max(1, row.steps),
                **{f"val_{name}": value for name, value in scores.items()},
                "l2": row.l2,
                "cv_loss": _known(row.cv_loss),
                "cv_acc": _known(row.cv_acc),
            }
        )
    return rows


def _write_held_out(plan: Plan, solved: Solved, train: Samples, path: Path) -> Plain:
    """Write what each training image is taken for by the fit that had not seen it, and return what
    ``result.json`` says of the solution."""
    best = solved.solution.path[solved.solution.best]
    answers, counts = held_out_answers(plan, solved.solution.held_out, train)
    write_predictions(answers, path)
    return {
        "l2": best.l2,
        "chosen_by": "cv_loss" if solved.options.l2 == "auto" else "given",
        "strengths": len(solved.solution.path),
        "folds": solved.options.folds,
        **counts,
        "cv_loss": _known(best.cv_loss),
        "cv_acc": _known(best.cv_acc),
    }


def _known(value: float) -> float | None:
    """``None`` for NaN, which a score is that no image was held out for."""
    return None if math.isnan(value) else value


def at_rest(plan: Plan, net: nn.Module) -> PartlyFrozen:
    """``net`` on the run's device, all of it but the head frozen and in inference mode."""
    device = device_of(plan.specs.trainer.accelerator)
    rows = [
        ParameterRow(n, plan.layout.in_head(n), float(plan.layout.in_head(n)))
        for n in plan.layout.names
    ]
    freeze.apply(net, rows)
    net.train()
    freeze.hold(net, "eval")
    net.to(device)
    if plan.specs.trainer.channels_last:
        net.to(memory_format=torch.channels_last)
    names = freeze.frozen(net, rows, "eval")
    return PartlyFrozen(net, freeze.hashes(net.state_dict(), names), device)


def features_of(plan: Plan, frozen: PartlyFrozen, group: ProcessGroup = ALONE) -> CachedFeatures:
    """The features of every view that is trained on, of each training image as it is evaluated,
    and of the validation images, where there are some; each rank of ``group`` computes an equal
    part. Raises NotExact where there are none."""
    options = plan.specs.features
    if not isinstance(options, AutoFeatures):
        raise NotExact("features are not cached")
    # As many views as are asked for: they are used together, and not one an epoch. One process
    # solves on them, so that they are those of one device.
    trainer = replace(plan.specs.trainer, max_epochs=_ANY_EPOCHS, devices=1, nodes=1)
    many = replace(plan, specs=replace(plan.specs, trainer=trainer, begun=None))
    work = Extraction(many, frozen, options, group)
    with group.rank_zero_first():
        cut = cut_within(work, options, answers=True)
    if isinstance(cut, Refusal):
        raise NotExact(cut.reason)
    cached = CachedFeatures(work, cut)
    for view in (None, *range(work.views or 0)):
        cached.train[view] = cached.view("train", view)
    if "val" in work.splits:
        cached.val[0] = cached.view("val", None)
    return cached


def inputs(
    frozen: PartlyFrozen, cached: CachedFeatures, path: str, split: str, number: int | None = None
) -> npt.NDArray[np.float32]:
    """What enters the head's layer for a split, of train in view ``number``: float32 (n, d), the
    mean over the positions of a map. As it is cached, without a copy, where that is the same."""
    held = (
        cached.val[0] if split == "val" else cached.view(split, None) if split == "test" else None
    )
    view = held or cached.train[number]
    in_order = bool((view.positions == np.arange(len(view.positions))).all())
    parts = cached.cut.parts
    alone = len(parts) == 1 and len(parts[0].shape) == 1 and parts[0].module == path
    if in_order and alone and view.entry.dtype == "float32":
        return view.entry.array
    layer, entered = frozen.net.get_submodule(path), np.empty((0, 0), np.float32)
    count = 0

    def see(entering: torch.Tensor) -> None:
        nonlocal entered, count
        width = entering.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        x = rows_of(layer, entering.float()).view(len(entering), -1, width)
        if not count:
            entered = zeros((len(view.positions), width), np.float32)
        entered[count : count + len(x)] = x.mean(dim=1).cpu().numpy()
        count += len(x)

    with watch(frozen.net, path, see), from_features(frozen, cached, split) as run:
        for features in view.blocks():
            run(features)
    return entered


@contextmanager
def from_features(
    frozen: PartlyFrozen, cached: CachedFeatures, split: str
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """A function of features of ``split`` that gives the network's logits, in inference mode."""
    net, cut, cast = frozen.net, cached.cut, cached.work.cast(split)
    with inference(net), torch.no_grad(), cast, evaluated_from(net, cut) as run:
        yield lambda features: run(features.to(frozen.device))
