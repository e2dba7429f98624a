"""The answers of a network to a split: from the features of its fit where it has them, else from
the images, of which every rank takes its part; with what its certificate says beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.device import device_of
from xfer.core.errors import XferError
from xfer.data.tta import VIEWS
from xfer.evaluation.certificate_answers import certified, distances_at, usable
from xfer.evaluation.evaluate import Reading, answered
from xfer.evaluation.predict import predictions, stacked
from xfer.models.adapters import merge
from xfer.models.network import empty
from xfer.models.restore import pieces
from xfer.training.distributed.rendezvous import NOBODY, Lead

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import nn

    from xfer.config.specs import Specs
    from xfer.core.types import Card, Predictions, Samples
    from xfer.training.distributed.group import ProcessGroup
    from xfer.training.features.feature_loader import CachedFeatures

    Matrix = npt.NDArray[Any]


def answer(
    specs: Specs,
    card: Card,
    net: nn.Module,
    samples: Samples,
    cached: CachedFeatures | None = None,
    broken: list[XferError] | None = None,
    lead: Lead = NOBODY,
) -> Predictions:
    """Logits for every image of ``samples``, with the views that ``specs.tta`` names, and what a
    certificate in ``card`` adds to them. ``broken`` as :func:`xfer.evaluation.evaluate.answers` has
    it, which also says what is raised. The ranks of ``lead`` answer equal parts of the batches, so
    that the numbers are those of one process."""
    reading = Reading(tta=specs.tta, several=bool(card.task))
    if specs.data:
        size, workers = specs.data.eval_batch_size, specs.data.workers
        reading = reading._replace(batch_size=size, workers=workers)
    device = device_of(specs.trainer.accelerator)
    card = replace(card.merged(), certificate=usable(card.certificate, specs.tta))
    # Features are those of one view, that which is evaluated without tta. What is unlike is also
    # seen by layers before them.
    unlike = card.certificate.unlike if card.certificate else None
    serves = cached and specs.tta == "none" and (unlike is None or len(unlike.layers) == 1)
    if cached and serves and cached.serve(net, samples, reading.batch_size, device):
        with distances_at(net, card.certificate) as distances:
            logits = stacked(cached.logits(net), len(samples), len(card.classes))
        at = np.arange(len(samples))
    else:
        group = lead.ask(take_part, card, samples, reading, broken is not None)
        at, logits, distances = _shared(net, card, samples, reading, device, group, broken)
    given = predictions(samples, at, logits, card.classes)
    given = replace(given, task=card.task, views=VIEWS[reading.tta])
    return certified(given, card.certificate, distances) if card.certificate else given


def take_part(
    specs: Specs, group: ProcessGroup, card: Card, samples: Samples, reading: Reading, sound: bool
) -> None:
    """Answer the part of one of the other ranks with the network of ``card``; images that cannot be
    decoded are left out where the ``sound`` ones are asked for."""
    net = merge(empty(pieces(card, specs.make)[0]))
    device, broken = device_of(specs.trainer.accelerator), list[XferError]() if sound else None
    _shared(net, card, samples, reading, device, group, broken)


def _shared(
    net: nn.Module,
    card: Card,
    samples: Samples,
    reading: Reading,
    device: torch.device,
    group: ProcessGroup,
    broken: list[XferError] | None,
) -> tuple[Matrix, Matrix, list[Matrix]]:
    """Positions, logits and distances by the certificate of the images that could be decoded, by
    the network of rank 0; on rank 0 those of all ranks."""
    group.broadcast_state(net)
    mine = None if broken is None else list[XferError]()
    with distances_at(net, card.certificate) as seen:
        reading, classes = reading._replace(share=group.share), len(card.classes)
        at, logits = answered(net, samples, card.input, classes, reading, device, mine)
    if broken is not None:
        broken.extend(chain.from_iterable(group.all_gather(mine or [])))
    distances = group.gather_rows(np.concatenate([np.empty(0), *seen]))
    return group.gather_rows(at), group.gather_rows(logits), [distances]
