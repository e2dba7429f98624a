"""A network's answers on a split, and their score."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from xfer.core.errors import DivergedError, XferError
from xfer.core.types import InputSpec, Predictions, Samples, Score
from xfer.data.loader import EvalLoader, Pictures
from xfer.data.preprocess import prepare
from xfer.evaluation.metrics import score

if TYPE_CHECKING:
    import numpy.typing as npt


def answers(
    net: nn.Module,
    samples: Samples,
    spec: InputSpec,
    classes: tuple[str, ...],
    loading: tuple[int, int] = (64, 0),
    device: torch.device | None = None,
    broken: list[XferError] | None = None,
) -> Predictions:
    """Logits for every image, once and in order. ``loading`` is (batch size, workers).

    Images that cannot be decoded are left out where there is a list ``broken`` to put their
    errors into; without it the first one's DataError is raised.
    """
    from tqdm import tqdm

    device = device or torch.device("cpu")
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pictures = Pictures(samples, lambda image: prepare(image, spec))
    loader = EvalLoader(pictures, *loading, pin=False, sound=True)
    found: list[npt.NDArray[np.float32]] = []
    sound: list[bool] = []
    with torch.inference_mode():
        for batch, errors in tqdm(loader, desc="evaluating", delay=3, leave=False, disable=None):
            _keep_or_raise([error for error in errors if error], broken)
            sound += [error is None for error in errors]
            if batch:
                images = batch[0].to(device, memory_format=torch.channels_last)
                found.append(net(images).float().cpu().numpy())
    return predictions(samples, np.flatnonzero(sound).tolist(), found, classes)


def predictions(
    samples: Samples,
    kept: Iterable[int],
    found: Sequence[npt.NDArray[np.float32]],
    classes: tuple[str, ...],
) -> Predictions:
    """Batches of logits ``found``, float32 (n, classes), for the images at ``kept``. Raises
    DivergedError where one is not finite."""
    logits = np.concatenate(found) if found else np.empty((0, len(classes)), np.float32)
    kept = [*kept]
    names = tuple(samples.names[i] for i in kept)
    if not np.isfinite(logits).all():
        name = names[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
        raise DivergedError(name, "the network answers NaN or Inf", "use another checkpoint", 1)
    labels = samples.labels[kept]
    return Predictions(names, logits, labels if (labels >= 0).all() else None, classes)


def _keep_or_raise(errors: list[XferError], broken: list[XferError] | None) -> None:
    if errors and broken is None:
        raise errors[0]
    if broken is not None:
        broken += errors


def score_of(predictions: Predictions, used_for_selection: bool) -> Score:
    """The score of answers whose labels are known."""
    if predictions.labels is None:
        raise ValueError("predictions without labels have no score")
    return score(predictions.logits, predictions.labels, predictions.classes, used_for_selection)


def most_wrong(predictions: Predictions, limit: int = 24) -> list[int]:
    """Positions of the wrongly answered images, the most confident first."""
    if predictions.labels is None:
        return []
    chosen = predictions.logits.argmax(axis=1)
    confidence = predictions.confidence
    wrong: Collection[int] = np.flatnonzero(chosen != predictions.labels)
    return sorted((int(i) for i in wrong), key=lambda i: (-confidence[i], predictions.names[i]))[
        :limit
    ]
