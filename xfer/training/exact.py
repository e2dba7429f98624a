"""A linear head solved on the features of a frozen backbone, in place of training it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from xfer import freeze, metrics
from xfer.augment import Plain as NoAugment
from xfer.decoded import decoded
from xfer.errors import DataError
from xfer.evaluate import device_name, device_of
from xfer.extraction import Extraction
from xfer.features import Auto
from xfer.features.cut import Tail, inference
from xfer.features.find import Refusal
from xfer.feed import Kept, Rows, View, fitting, told
from xfer.freeze.table import Row
from xfer.head import Keep
from xfer.loader import EvalLoader, Pictures
from xfer.log import log
from xfer.network import assemble
from xfer.optim import Exact
from xfer.predict import write_predictions
from xfer.preprocess import prepare
from xfer.randomness import derive
from xfer.snapshot import Snapshot, write_snapshot
from xfer.standardize import Standard
from xfer.storage import write_json
from xfer.training import logistic
from xfer.training.fitted import Fitted, write_rows
from xfer.training.head_input import first_layer, moments, rows_of, watched
from xfer.types import Plain, Predictions

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan import Plan
    from xfer.specs import Specs

_ANY_EPOCHS = 1_000_000
_NEAR = 1e-3  # of the largest logit: how far the solved head may answer from what was solved
_BLOCK = 1024


class NotExact(Exception):
    """Why a head cannot be solved after all, in one line."""


@dataclass(frozen=True)
class Frozen:
    """A network of which the head alone trains, and the hashes of the rest."""

    net: nn.Module
    hashes: dict[str, str]
    device: torch.device


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
    plan = _decoded(plan)
    net = assemble(plan.parts, plan.weights)
    frozen = _at_rest(plan, net)
    kept = _features(plan, frozen)
    features, features_s = kept.facts({"cached": False, "hit": None}), time.perf_counter() - began
    log.info(told(features, kept.found, kept.most_bytes))
    found = _solve(plan, frozen, kept)
    solution = found.solution
    verdict = freeze.verdict(frozen.hashes, freeze.hashes(net.state_dict(), frozen.hashes))
    phase = {"phase": plan.phases[0].name, "from_epoch": 1, **verdict}
    write_json(folder / "freeze_proof.json", {**verdict, "phases": [phase]})
    write_json(folder / "features.json", features)
    rows = _rows(plan, found)
    write_rows(folder / "metrics.csv", rows)
    best = rows[solution.best]
    chosen = {
        "metric": "cv_loss",
        "value": best["cv_loss"],
        "epoch": best["epoch"],
        "step": best["step"],
    }
    snapshot = Snapshot(plan.card, net.cpu().state_dict(), chosen)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("best.ckpt", "last.ckpt"):
        write_snapshot(folder / "checkpoints" / name, snapshot)
    _write_held_out(plan, solution, folder / "predictions_cv.csv")
    facts = _facts(plan, solution)
    log.info(_summary(facts))
    return Fitted(
        chosen,
        folder / "checkpoints" / "best.ckpt",
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


def _solve(plan: Plan, frozen: Frozen, kept: Kept) -> Solved:
    """Solve the head of the network, in place. Raises as :func:`fit`."""
    net, began = frozen.net, time.perf_counter()
    (head,) = plan.layout.heads
    path = first_layer(net, head)
    if path is None:
        raise NotExact(f"'{head}' has no linear layer")
    held = _inputs(frozen, kept, path, "train", None)
    views = [_inputs(frozen, kept, path, "train", view) for view in kept.train if view is not None]
    val = _inputs(frozen, kept, path, "val", None)
    seconds = time.perf_counter() - began
    _check_numbers(held, plan.dataset.splits["train"].names)  # type: ignore[union-attr]
    solution = logistic.solve(_problem(plan, views or [held], held), _strengths(plan))
    answers = [(val @ row.weight.T + row.bias).astype(np.float32) for row in solution.path]
    _fill(net.get_submodule(path), solution.path[solution.best])
    _check_linear(frozen, kept, answers[solution.best])
    return Solved(solution, answers, seconds)


def prepare_head(plan: Plan, net: nn.Module) -> Standard:
    """Give ``net`` the best head on its frozen features, where it is to begin with that; and the
    moments of the head's input over the training images, where that is to be standardised."""
    specs = plan.specs
    trainer = replace(specs.trainer, precision="32-true", max_epochs=1)
    specs = replace(specs, trainer=trainer, augment=NoAugment(), optim=Exact())
    plan = replace(plan, specs=specs)
    if specs.trainer.head_start == "zero" and not _standardizes(specs):
        return {}
    frozen, kept = _at_rest(plan, net), None
    if isinstance(specs.features, Auto):
        try:
            kept = _features(plan, frozen)
        except NotExact as error:
            log.info(f"the head's input is computed from the images: {error}")
    if specs.trainer.head_start == "solved":
        if kept is None:
            log.warning("the head does not begin solved: its input cannot be kept")
        else:
            _begin_solved(plan, frozen, kept)
    if not _standardizes(specs):
        return {}
    paths = [path for head in plan.layout.heads if (path := first_layer(net, head))]
    if kept is None:
        return moments(net, paths, _images(plan, frozen.device))
    own, tail = kept.train[None], Tail(net, kept.cut)
    rows = Rows({0: own}, 1, kept.work.samples("train"))
    try:
        return moments(net, paths, (batch.to(frozen.device) for batch in _batches(rows, own)))
    finally:
        tail.remove()


def _standardizes(specs: Specs) -> bool:
    """Whether the head is new, and its input to be standardised."""
    return specs.trainer.standardize and not isinstance(specs.head, Keep)


def _begin_solved(plan: Plan, frozen: Frozen, kept: Kept) -> None:
    before = {name: tensor.clone() for name, tensor in frozen.net.state_dict().items()}
    try:
        found = _solve(plan, frozen, kept).solution
    except NotExact as error:
        frozen.net.load_state_dict(before)
        log.warning(f"the head does not begin solved: {error}")
        return
    best = found.path[found.best]
    log.info(
        f"the head begins solved: cross-validated loss {best.cv_loss:.4f}, "
        f"accuracy {best.cv_acc:.4f}"
    )


def _images(plan: Plan, device: torch.device) -> Iterator[torch.Tensor]:
    """The training images as they are evaluated, batch by batch."""
    specs, spec = plan.specs, plan.card.input
    assert plan.dataset is not None and specs.data is not None
    pictures = Pictures(plan.dataset.splits["train"], lambda image: prepare(image, spec))
    loader = EvalLoader(pictures, specs.data.eval_batch_size, specs.data.workers, pin=False)
    for images, _ in loader:
        yield images.to(device)


def _batches(rows: Rows, own: View) -> Iterator[torch.Tensor]:
    count = len(own.positions)
    for start in range(0, count, _BLOCK):
        yield rows.features(range(start, min(start + _BLOCK, count)))


def _decoded(plan: Plan) -> Plan:
    if plan.dataset is None or plan.specs.data is None:
        raise DataError("data", "is needed to fit", "give data=... or data.root=DIR", 43)
    return replace(plan, dataset=decoded(plan.dataset, plan.specs.data.decoded_gb))


def _at_rest(plan: Plan, net: nn.Module) -> Frozen:
    device = device_of(plan.specs.trainer)
    rows = [
        Row(n, plan.layout.in_head(n), float(plan.layout.in_head(n))) for n in plan.layout.names
    ]
    freeze.apply(net, rows)
    net.train()
    freeze.hold(net, "eval")
    net.to(device)
    if plan.specs.trainer.channels_last:
        net.to(memory_format=torch.channels_last)
    names = freeze.frozen(net, rows, "eval")
    return Frozen(net, freeze.hashes(net.state_dict(), names), device)


def _features(plan: Plan, frozen: Frozen) -> Kept:
    """The features of every view that is trained on, of each training image as it is evaluated,
    and of the validation images."""
    options = plan.specs.features
    assert isinstance(options, Auto)
    # As many views as are asked for: they are used together, and not one an epoch.
    trainer = replace(plan.specs.trainer, max_epochs=_ANY_EPOCHS)
    many = replace(plan, specs=replace(plan.specs, trainer=trainer))
    work = Extraction(many, frozen, options)
    cut = fitting(work, options)
    if isinstance(cut, Refusal):
        raise NotExact(cut.reason)
    kept = Kept(work, cut)
    shown: list[int | None] = [None, *range(work.views or 0)]
    for view in shown:
        kept.train[view] = kept.view("train", view)
    kept.val[0] = kept.view("val", None)
    return kept


def _inputs(
    frozen: Frozen, kept: Kept, path: str, split: str, view: int | None
) -> npt.NDArray[np.float32]:
    """What enters the head's layer, float32 (n, d), the mean over the positions of a map. As it is
    kept, without a copy, where that is the same."""
    own: View = kept.val[0] if split == "val" else kept.train[view]
    in_order = bool((own.positions == np.arange(len(own.positions))).all())
    parts = kept.cut.parts
    alone = len(parts) == 1 and len(parts[0].shape) == 1 and parts[0].module == path
    if in_order and alone and own.entry.dtype == "float32":
        return own.entry.array
    found: list[npt.NDArray[np.float32]] = []
    layer = frozen.net.get_submodule(path)

    def see(entering: torch.Tensor) -> None:
        x = rows_of(layer, entering.float()).view(
            len(entering), -1, entering.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        )
        found.append(x.mean(dim=1).cpu().numpy())

    with watched(frozen.net, path, see):
        for _ in _logits(frozen, kept, split, own):
            pass
    return np.concatenate(found)


def _logits(frozen: Frozen, kept: Kept, split: str, own: View) -> Iterator[torch.Tensor]:
    """Logits of a split, a block at a time, in inference mode from the features on."""
    rows, tail = Rows({0: own}, 1, kept.work.samples(split)), Tail(frozen.net, kept.cut)
    try:
        with torch.no_grad(), inference(frozen.net), kept.work.cast(split):
            for features in _batches(rows, own):
                yield frozen.net(features.to(frozen.device))
    finally:
        tail.remove()


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
    count, largest = 0, max(1.0, float(np.abs(expected).max(initial=0)))
    for logits in _logits(frozen, kept, "val", kept.val[0]):
        wanted = torch.from_numpy(expected[count : count + len(logits)])
        if logits.shape != wanted.shape:
            raise NotExact("the network's answer is no logit a class")
        if float((logits.float().cpu() - wanted).abs().max()) > _NEAR * largest:
            raise NotExact("the network does more than a mean behind its head")
        count += len(logits)


def _rows(plan: Plan, found: Solved) -> list[Plain]:
    """A row of ``metrics.csv`` for every strength."""
    assert plan.dataset is not None
    labels, rows, steps = plan.dataset.splits["val"].labels, [], 0
    for i, (row, logits) in enumerate(zip(found.solution.path, found.answers, strict=True)):
        steps += row.steps
        val = metrics.values(torch.from_numpy(logits), torch.from_numpy(labels))
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


def _write_held_out(plan: Plan, solution: logistic.Solution, path: Path) -> None:
    """What each training image is taken for by the fit that had not seen it."""
    assert plan.dataset is not None
    samples, logits = plan.dataset.splits["train"], solution.held_out
    seen = np.flatnonzero(np.isfinite(logits).all(axis=1))
    names = tuple(samples.names[i] for i in seen)
    found = Predictions(names, logits[seen], samples.labels[seen], plan.card.classes)
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
