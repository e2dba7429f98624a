"""A network's answers on a split, and their score."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from xfer.core.errors import XferError
from xfer.core.live_line import counted
from xfer.core.types import InputSpec, LabelScore, Predictions, Samples, Score, Tta
from xfer.data.loader import EvalLoader, eval_images
from xfer.data.preprocess import prepare
from xfer.data.sampler import ALL, RankShare
from xfer.data.tta import VIEWS, prepare_views
from xfer.evaluation.metrics import Parts, score
from xfer.evaluation.multilabel_metrics import label_score
from xfer.evaluation.multilabel_predictions import mean_of_labels
from xfer.evaluation.predict import answers_of, mean_over_views, predictions

if TYPE_CHECKING:
    import numpy.typing as npt


class Reading(NamedTuple):
    """How images come to a network: so many views at a time, decoded by ``workers`` processes,
    with the views of each that ``tta`` names; whether an image may have ``several`` labels, so that
    the mean over its views is one a class; the ``share`` of the batches that this process reads."""

    batch_size: int = 64
    workers: int = 0
    tta: Tta = "none"
    several: bool = False
    share: RankShare = ALL


def answers(
    net: nn.Module,
    samples: Samples,
    spec: InputSpec,
    classes: tuple[str, ...],
    reading: Reading = Reading(),  # noqa: B008 (immutable)
    device: torch.device | None = None,
    broken: list[XferError] | None = None,
) -> Predictions:
    """Logits for every image, once and in order; with views, of their mean probabilities
    (softmax, or sigmoid where there are several labels).

    Images that cannot be decoded are left out where there is a list ``broken`` to put their
    errors into; without it the first one's DataError is raised.
    """
    at, logits = answered(net, samples, spec, len(classes), reading, device, broken)
    return replace(predictions(samples, at, logits, classes), views=VIEWS[reading.tta])


def answered(
    net: nn.Module,
    samples: Samples,
    spec: InputSpec,
    classes: int,
    reading: Reading,
    device: torch.device | None,
    broken: list[XferError] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """As :func:`answers`, of the share of ``reading``: the positions (n,) of the images that were
    decoded, and their logits (n, classes), finite or not."""
    device = device or torch.device("cpu")
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    size, workers, tta, several, share = reading
    count, recipe = VIEWS[tta], prepare if tta == "none" else partial(prepare_views, tta=tta)
    images = eval_images(samples, spec, recipe)
    loader = EvalLoader(images, max(1, size // count), workers, pin=False, share=share, sound=True)
    batches = counted(loader, "evaluating", len(loader))

    def run(batch: list[torch.Tensor]) -> npt.NDArray[np.float32]:
        images = batch[0].flatten(0, -4).to(device, memory_format=torch.channels_last)
        logits: npt.NDArray[np.float32] = net(images).float().cpu().numpy()
        if count == 1:
            return logits
        mean = mean_of_labels if several else mean_over_views
        return mean(logits.reshape(-1, count, logits.shape[1]))

    with torch.inference_mode():
        return answers_of(run, batches, loader.span, classes, broken)


def score_of(
    predictions: Predictions, used_for_selection: bool, parts: Parts | None = None
) -> Score | LabelScore:
    """The score of answers whose labels are known, the user's metrics ``parts`` among them."""
    if predictions.labels is None:
        raise ValueError("predictions without labels have no score")
    logits, labels, classes = predictions.logits, predictions.labels, predictions.classes
    if (thresholds := predictions.thresholds) is not None:
        chosen_on = predictions.task["chosen_on"]
        given = (logits, labels, classes, thresholds, chosen_on, used_for_selection)
        return label_score(*given, parts or {})
    return score(logits, labels, classes, used_for_selection, parts or {})


def most_wrong(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Positions of the wrongly answered images (m,), the most confident first, of equals by name;
    none where the labels are unknown."""
    if predictions.labels is None:
        return np.empty(0, np.int64)
    wrong = np.flatnonzero(predictions.logits.argmax(axis=1) != predictions.labels)
    sure = predictions.confidence[wrong]
    order = np.argsort(-sure, kind="stable")
    wrong, sure = wrong[order], sure[order]
    ends = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1) + 1
    start = 0
    for end in ends:
        if end - start > 1:
            wrong[start:end] = sorted(wrong[start:end], key=lambda i: predictions.names[i])
        start = end
    return wrong
