"""The certificate of a network that has been trained, from answers to images that it had not seen.

It is fitted last, on the answers of the weights as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.certificate import Certificate, FittedOn, Unlike
from xfer.core.device import device_of
from xfer.core.log import log
from xfer.core.types import Predictions, Samples
from xfer.evaluation.certificate_answers import features_at, layer_paths
from xfer.evaluation.conformal import having_labels, least_probabilities
from xfer.evaluation.conformal import in_words as promise
from xfer.evaluation.evaluate import Reading, answers
from xfer.evaluation.out_of_distribution import fit_unlike
from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot

if TYPE_CHECKING:
    from torch import nn

    from xfer.config.specs import Promise
    from xfer.plan.plan import Plan

    Matrix = npt.NDArray[Any]


class HeldOut(NamedTuple):
    """The ``logits`` (n, classes) of images that the fit had not seen, NaN in a row for one that
    every fit had; their ``labels`` int64 (n,), what they are, and the sha256 of their split. With
    several labels an image these are (n, classes), and NaN is a label that the fit could not
    know."""

    logits: Matrix
    labels: npt.NDArray[np.int64]
    fitted_on: FittedOn
    sha256: str


def certify(promise: Promise, held_out: HeldOut, unlike: Unlike | None) -> Certificate | None:
    """The certificate that was asked for, ``None`` where none was.

    Its numbers hold for the weights that gave ``held_out``: whatever scales them comes before.
    """
    if promise.coverage is None:
        return None
    several, known = held_out.labels.ndim == 2, np.isfinite(held_out.logits)
    sound = having_labels(held_out.labels) & (known.all(axis=1) | several)
    # A label that could not be known is missed: nobody can say how probable it would be.
    logits = np.where(known, held_out.logits, -np.inf)[sound].astype(np.float32)
    labels, task = held_out.labels[sound], {"kind": "multilabel"} if several else {}
    names = tuple(map(str, range(logits.shape[1])))
    rows = tuple(map(str, range(len(labels))))
    p = Predictions(rows, logits, labels, names, task=task).probabilities
    least = least_probabilities(p, labels, promise.coverage, promise.by_class)
    bare = Certificate(
        promise.coverage,
        promise.by_class,
        held_out.fitted_on,
        len(labels),
        1.0,
        held_out.sha256,
        least,
        unlike,
        several,
    )
    made = replace(bare, mean_set_size=float(bare.sets(p).sum(axis=1).mean()))
    log.info(in_words(made))
    return made


def in_words(made: Certificate) -> str:
    """One line: what the sets promise, how large they are, and from which p-value on."""
    of = "training images held out" if made.fitted_on == "cv" else "validation images"
    of = f"labelled {of}" if made.several else of
    said = promise(made.coverage, made.by_class, made.several)
    line = (
        f"certificate: prediction sets with {said}, fitted on "
        f"{made.n:,} {of}: {made.mean_set_size:.2f} classes on average; "
    )
    if made.unlike is None:
        return line + "no p_unlike: the features do not vary, or the head has no layer for them"
    of = f"what enters {', '.join(made.unlike.layers)}"
    least = 1 / (1 + len(made.unlike.reference))
    return line + f"p_unlike looks at {of}, and is {least:.2g} or more"


def certify_best(plan: Plan, path: Path) -> None:
    """Write the whole checkpoint ``path`` anew with the certificate that was asked for, unless it
    has one."""
    if plan.specs.certificate.coverage is None:
        return
    from xfer.models.restore import pieces, restore

    snapshot = read_snapshot(path)
    if snapshot.card.certificate is not None:  # by the run that is resumed, before it was stopped
        return
    net = restore(path, snapshot, *pieces(snapshot.card, plan.specs.make)).eval()
    card = replace(snapshot.card, certificate=_of_steps(plan, net))
    write_snapshot(path, replace(snapshot, card=card))


def _of_steps(plan: Plan, net: nn.Module) -> Certificate | None:
    """That of a network trained step by step: on the validation images, with the features of the
    training images from one pass in inference mode."""
    train, val = plan.split("train"), plan.split("val")
    layers = layer_paths(net, plan.layout, plan.card.input.size)
    logits, held = answers_with_features(plan, net, layers, val)
    unlike = None
    if layers:
        _, features = answers_with_features(plan, net, layers, train)
        unlike = fit_unlike(features, train.labels, held=held)
    held_out = HeldOut(logits, val.labels, "val", val.sha256)
    return certify(plan.specs.certificate, held_out, unlike)


def answers_with_features(
    plan: Plan, net: nn.Module, layers: Sequence[str], samples: Samples
) -> tuple[Matrix, dict[str, Matrix]]:
    """Logits (n, classes), and the features (n, d) that enter each of ``layers``, of one pass over
    ``samples`` as they are evaluated. ``net`` is in evaluation mode after it."""
    specs = plan.specs
    if specs.data is None:
        raise ValueError("a fit without data")
    reading = Reading(specs.data.eval_batch_size, specs.data.workers)
    device = device_of(specs.trainer.accelerator)
    with features_at(net, layers) as seen:
        answered = answers(net, samples, plan.card.input, plan.card.classes, reading, device)
    return answered.logits, {path: np.concatenate(blocks) for path, blocks in seen.items()}
