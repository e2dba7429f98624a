"""A network out of a checkpoint of xfer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from xfer.config.verbs import override, quoted
from xfer.core.checksum import fingerprint
from xfer.core.errors import ConfigError, WeightsError, XferError, plural
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Card, Plain
from xfer.models import adapters
from xfer.models.network import Parts, empty, fill, from_weights
from xfer.weights.content import Weights
from xfer.weights.formats.checkpoint_format import Snapshot, read_best
from xfer.weights.formats.detect import kind_of


def restore(
    path: Path, snapshot: Snapshot, parts: Parts, weights: Callable[[], Weights]
) -> nn.Module:
    """The network of a checkpoint, adapters merged. ``weights`` is asked for only when the
    checkpoint comes from an interrupted run and holds what trained alone."""
    net = empty(parts) if snapshot.frozen is None else from_weights(parts, weights())
    missing = {n: t for n, t in net.state_dict().items() if n not in snapshot.state}
    if snapshot.frozen is None:
        if missing:
            what = f"lacks {plural(len(missing), 'tensor')} ({', '.join([*missing][:3])})"
            raise WeightsError(path, what, "train again", 7)
    elif fingerprint(missing.items()) != snapshot.frozen:
        what = (
            "comes from an interrupted run whose source weights have changed since, or from an "
            "earlier xfer"
        )
        fix = "finish that run with checkpoint.resume, or restore the source file"
        raise WeightsError(path, what, fix, 8)
    fill(net, snapshot.state)
    return adapters.merge(net)


def open_checkpoint(path: Path, make: Callable[[str, Plain], Any]) -> tuple[nn.Module, Card]:
    """The network and card of a checkpoint or run folder, in evaluation mode. ``make`` builds a
    spec of a group from its facts."""
    file, snapshot = read_checkpoint(path)
    with of_a_card(file):
        net = restore(file, snapshot, *pieces(snapshot.card, make))
    return net.eval(), snapshot.card.merged()


def read_checkpoint(path: Path) -> tuple[Path, Snapshot]:
    """The checkpoint of a file or run folder, and which file it is. Raises WeightsError, which
    for an ONNX network says how one predicts with it."""
    file = best_checkpoint(path)
    if file.is_file() and kind_of(file) == "ONNX":
        named = quoted(override("predict.model", str(file)))
        fix = f"type 'stages=[predict]' {named} in place of checkpoint.path"
        raise WeightsError(file, "is an ONNX network, not a checkpoint", fix, 37)
    return file, read_best(path)


@contextmanager
def of_a_card(path: Path) -> Iterator[None]:
    """Turn whatever a library raises for what a checkpoint's card asks for into one line that
    names the file. What xfer raises stays as it is, but is the file's fault and not the user's."""
    try:
        yield
    except ConfigError as error:
        what, fix = f"its card describes no network ({error.where}: {error.what})", error.fix
        raise WeightsError(path, what, fix, 99) from error
    except (XferError, MemoryError):
        raise
    except Exception as error:  # any library, given what nobody ever gave it
        if "memory" in str(error):
            raise  # which has an error of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        what, fix = f"its card describes no network ({reason})", "use another copy of the file"
        raise WeightsError(path, what, fix, 99) from error


def pieces(card: Card, make: Callable[[str, Plain], Any]) -> tuple[Parts, Callable[[], Weights]]:
    """The parts of a card's network, and how to read its source weights again."""
    rows = tuple(tuple(row) for row in card.source.get("rows") or ())
    parts = Parts(
        make("backbone", card.backbone),
        make("head", card.head),
        len(card.classes),
        head_from_source=bool(card.source.get("kept")),
        source_classes=card.source.get("classes"),
        rows=rows,
        compat=card.compat,
        adapters=card.adapters,
    )
    return parts, lambda: make("source", card.source["spec"]).load(parts.backbone)
