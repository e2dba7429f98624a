"""The answers of a network to a split: from the features of its fit where it has them, else from
the images; with what its certificate says beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.evaluation.certified import certified, distances_at, usable
from xfer.evaluation.evaluate import Reading, answers
from xfer.evaluation.predict import predictions, stacked

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xfer.config.specs import Specs
    from xfer.core.errors import XferError
    from xfer.core.types import Card, Predictions, Samples
    from xfer.training.features.feature_loader import CachedFeatures


def answer(
    specs: Specs,
    card: Card,
    net: nn.Module,
    samples: Samples,
    device: torch.device,
    cached: CachedFeatures | None = None,
    broken: list[XferError] | None = None,
) -> Predictions:
    """Logits for every image of ``samples``, with the views that ``specs.tta`` names, and what a
    certificate in ``card`` adds to them. ``broken`` as :func:`xfer.evaluation.evaluate.answers` has
    it, which also says what is raised."""
    reading = Reading(tta=specs.tta, several=bool(card.task))
    if specs.data:
        size, workers = specs.data.eval_batch_size, specs.data.workers
        reading = reading._replace(batch_size=size, workers=workers)
    certificate = usable(card.certificate, specs.tta)
    with distances_at(net, certificate) as distances:
        # Features are those of one view, that which is evaluated without tta. What is unlike is
        # also seen by layers before them.
        whole = certificate and certificate.unlike and len(certificate.unlike.layers) > 1
        serves = cached and specs.tta == "none" and not whole
        if cached and serves and cached.serve(net, samples, reading.batch_size, device):
            logits = stacked(cached.logits(net), len(samples), len(card.classes))
            answered = predictions(samples, np.arange(len(samples)), logits, card.classes)
        else:
            answered = answers(net, samples, card.input, card.classes, reading, device, broken)
    answered = replace(answered, task=card.task)
    return certified(answered, certificate, distances) if certificate else answered
