"""Answers with prediction sets and p-values beside them, by the certificate of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.log import log

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn

    from xfer.core.certificate import Certificate
    from xfer.core.types import Predictions, Tta

    Matrix = npt.NDArray[Any]


def layer_path(net: nn.Module, head: str) -> str | None:
    """The path of the first layer of the head whose input are the features: linear, or a
    convolution. ``None`` where the head has none."""
    from torch.nn import Conv2d, Linear

    for name, module in net.get_submodule(head).named_modules():
        if isinstance(module, Linear | Conv2d):
            return f"{head}.{name}" if name else head
    return None


def mean_features(layer: nn.Module, entering: Tensor) -> Tensor:
    """What enters a layer, as float32 (n, d): the mean over the positions of a map or the tokens
    of a sequence."""
    from torch.nn import Conv2d

    x = entering.float()
    if isinstance(layer, Conv2d):
        x = x.movedim(1, -1)
    return x if x.dim() == 2 else x.flatten(1, -2).mean(1)


@contextmanager
def features_at(net: nn.Module, path: str) -> Iterator[list[Matrix]]:
    """Within it, the features that enter the layer at ``path`` are put into the list, float32
    (n, d), one array for each call of ``net``."""
    seen: list[Matrix] = []
    layer = net.get_submodule(path)
    hook = layer.register_forward_pre_hook(
        lambda _, args: seen.append(mean_features(layer, args[0]).cpu().numpy())
    )
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def distances_at(net: nn.Module, certificate: Certificate | None) -> Iterator[list[Matrix]]:
    """The same for their distances by ``certificate``, (n,) each, of which a split takes far less
    memory; nothing is put into the list where it has none."""
    seen: list[Matrix] = []
    unlike = certificate.unlike if certificate is not None else None
    if unlike is None:
        yield seen
        return
    layer = net.get_submodule(unlike.layer)

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        features = mean_features(layer, args[0].detach()).cpu().numpy()
        seen.append(unlike.distance(features))

    hook = layer.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


def usable(certificate: Certificate | None, tta: Tta) -> Certificate | None:
    """``certificate`` where it holds: it is fitted on one view of an image, and left out with a
    warning where answers are the mean over several."""
    if certificate is None or tta == "none":
        return certificate
    warn_of_views(tta)
    return None


def warn_of_views(tta: Tta) -> None:
    """Say that answers which are the mean over several views have no certificate."""
    log.warning(f"no prediction sets and no p_unlike: they hold for one view, tta is {tta}")


def certified(
    predictions: Predictions, certificate: Certificate, distances: list[Matrix]
) -> Predictions:
    """``predictions`` of one view with their sets and p-values; ``distances`` as
    :func:`distances_at` has them."""
    p_unlike = None
    if certificate.unlike is not None:
        p_unlike = certificate.unlike.p_value(np.concatenate([np.empty(0), *distances]))
    blocks = [certificate.sets(block.probabilities) for block in predictions.blocks()]
    sets = np.concatenate([np.empty((0, len(predictions.classes)), np.bool_), *blocks])
    return replace(predictions, sets=sets, p_unlike=p_unlike)
