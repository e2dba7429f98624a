"""Answers with prediction sets and p-values beside them, by the certificate of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.log import log
from xfer.evaluation.conformal import one_view_words, set_words
from xfer.evaluation.table_file import Column

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from xfer.core.certificate import Certificate
    from xfer.core.types import Predictions, Tta
    from xfer.freeze.rows import Layout

    Matrix = npt.NDArray[Any]

_STAGES = 4
_SHOWN = 5  # classes of a set in a line for people


def layer_path(net: nn.Module, head: str) -> str | None:
    """The path of the first layer of the head whose input are the features: linear, or a
    convolution. ``None`` where the head has none."""
    from torch.nn import Conv2d, Linear

    for name, module in net.get_submodule(head).named_modules():
        if isinstance(module, Linear | Conv2d):
            return f"{head}.{name}" if name else head
    return None


def layer_paths(net: nn.Module, layout: Layout, size: tuple[int, int]) -> tuple[str, ...]:
    """The paths of the layers whose inputs tell what is unlike: of each stage but the first, its
    first linear or convolution layer, then the head's; none where the head has none.

    A layer counts that ``net``, in evaluation mode, calls once, before the head's, on an input that
    has a row an image (one in windows has more): found out on two empty images of ``size``. Of more
    than four stages four are taken, spread evenly, since each costs its width in the certificate.
    """
    import torch
    from torch.nn import Conv2d, Linear

    last = layer_path(net, layout.heads[-1])
    if last is None:
        return ()
    modules = {path: m for path, m in net.named_modules() if isinstance(m, Linear | Conv2d)}
    calls: list[tuple[str, int]] = []
    with ExitStack() as stack:
        for path, module in modules.items():
            hook = module.register_forward_pre_hook(
                lambda _, args, path=path: calls.append((path, len(args[0])))
            )
            stack.callback(hook.remove)
        with torch.inference_mode():
            net(torch.zeros(2, 3, *size, device=next(net.parameters()).device))
    count = Counter(path for path, _ in calls)
    before = calls[: calls.index((last, 2))] if (last, 2) in calls else []
    sound = {path for path, rows in before if rows == 2 and count[path] == 1}
    stages = []
    for _, names in layout.stages[1:]:
        owners = (name.rpartition(".")[0] for name in names)
        stages += [next((path for path in owners if path in sound), None)]
    found = [path for path in stages if path is not None]
    step = max(1.0, len(found) / _STAGES)
    return (*(found[int(i * step)] for i in range(min(len(found), _STAGES))), last)


def mean_features(layer: nn.Module, entering: Tensor) -> Tensor:
    """What enters a layer, as float32 (n, d): the mean over the positions of a map or the tokens
    of a sequence."""
    from torch.nn import Conv2d

    x = entering.float()
    if isinstance(layer, Conv2d):
        x = x.movedim(1, -1)
    return x if x.dim() == 2 else x.flatten(1, -2).mean(1)


@contextmanager
def features_at(net: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Matrix]]]:
    """Within it, the features that enter the layers at ``paths`` are put into the list of each,
    float32 (n, d), one array for each call of ``net``."""
    seen: dict[str, list[Matrix]] = {path: [] for path in paths}
    with entering(net, paths, lambda path, x: seen[path].append(x.cpu().numpy())):
        yield seen


@contextmanager
def entering(
    net: nn.Module, paths: Sequence[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within it, ``see`` is given each of ``paths`` with the mean features that enter its layer."""

    def watch(path: str) -> RemovableHandle:
        return net.get_submodule(path).register_forward_pre_hook(
            lambda layer, args: see(path, mean_features(layer, args[0].detach()))
        )

    with ExitStack() as stack:
        for path in paths:
            stack.callback(watch(path).remove)
        yield


@contextmanager
def distances_at(net: nn.Module, certificate: Certificate | None) -> Iterator[list[Matrix]]:
    """The same for their distances by ``certificate``, (n,) each, of which a split takes far less
    memory; nothing is put into the list where it has none."""
    distances: list[Matrix] = []
    unlike = certificate.unlike if certificate is not None else None
    if unlike is None:
        yield distances
        return
    features: dict[str, Matrix] = {}

    def see(path: str, x: Tensor) -> None:
        features[path] = x.cpu().numpy()
        if path == unlike.layers[-1]:  # the head's, after all others
            beside = np.concatenate([features[path] for path in unlike.layers], axis=1)
            distances.append(unlike.distance(beside))

    with entering(net, unlike.layers, see):
        yield distances


def usable(certificate: Certificate | None, tta: Tta) -> Certificate | None:
    """``certificate`` where it holds: it is fitted on one view of an image, and left out with a
    warning where answers are the mean over several."""
    if certificate is None or tta == "none":
        return certificate
    warn_of_views(tta)
    return None


def warn_of_views(tta: Tta) -> None:
    """Say that answers which are the mean over several views have no certificate."""
    log.warning(one_view_words(tta))


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


def certificate_columns(block: Predictions) -> list[Column]:
    """What a certificate adds to a table: ``set`` and ``p_unlike``, where they are known."""
    columns = []
    if block.sets is not None:
        columns.append(Column("set", [set_words(row, block.classes) for row in block.sets]))
    if block.p_unlike is not None:
        columns.append(Column("p_unlike", block.p_unlike))
    return columns


def words_beside(answers: Predictions, i: int) -> str:
    """The same of answer ``i``, at the end of a line for people."""
    said = ""
    if answers.sets is not None:
        count = int(answers.sets[i].sum())
        few = 0 < count <= _SHOWN
        words = set_words(answers.sets[i], answers.classes) if few else f"of {count}"
        said += f"; prediction set {words}"
    if answers.p_unlike is None:
        return said
    share = 100 * answers.p_unlike[i]
    return f"{said}; {share:.1f} % of images like those of training look as strange"
