"""A network's answers on a split, and their score."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from xfer.core.errors import XferError
from xfer.core.live_line import counted
from xfer.core.types import InputSpec, Predictions, Samples, Score
from xfer.data.loader import EvalLoader, eval_images
from xfer.evaluation.metrics import Parts, score
from xfer.evaluation.predict import predict_split

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
    device = device or torch.device("cpu")
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    loader = EvalLoader(eval_images(samples, spec), *loading, pin=False, sound=True)
    batches = counted(loader, "evaluating", len(loader))

    def run(batch: list[torch.Tensor]) -> npt.NDArray[np.float32]:
        images = batch[0].to(device, memory_format=torch.channels_last)
        logits: npt.NDArray[np.float32] = net(images).float().cpu().numpy()
        return logits

    with torch.inference_mode():
        return predict_split(run, batches, samples, classes, broken)


def score_of(
    predictions: Predictions, used_for_selection: bool, parts: Parts | None = None
) -> Score:
    """The score of answers whose labels are known, the user's metrics ``parts`` among them."""
    if predictions.labels is None:
        raise ValueError("predictions without labels have no score")
    logits, labels, classes = predictions.logits, predictions.labels, predictions.classes
    return score(logits, labels, classes, used_for_selection, parts or {})


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
