"""What no writer could write, told before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.errors import ExportError, raise_all
from xfer.export.air import Air
from xfer.export.mindspore_ckpt import MindSporeCkpt

if TYPE_CHECKING:
    from xfer.types import Card, Writer


def refuse_early(writers: Sequence[Writer], card: Card) -> None:
    """Raise ExportError (Problems for several) for formats that cannot hold the network of
    ``card``, as far as can be known without it."""
    errors = []
    for writer in writers:
        if isinstance(writer, Air | MindSporeCkpt):
            try:
                writer.check(card)
            except ExportError as error:
                errors.append(error)
    raise_all(errors)
