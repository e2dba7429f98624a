"""What every exported file says of itself, and whose network it is."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xfer.config.help import DISTRIBUTION
from xfer.config.schema import load_class
from xfer.core.errors import XferError
from xfer.core.types import Card


def metadata(card: Card) -> dict[str, str]:
    """Class names, preprocessing and card as ASCII JSON, and the version of xfer."""
    try:
        number = version(DISTRIBUTION)
    except PackageNotFoundError:
        number = "not installed"  # a bare checkout on the path has no version of its own
    return {
        "classes": json.dumps(card.classes),
        "preprocess": json.dumps(card.input.to_plain()),
        "card": json.dumps(card.to_plain()),
        "xfer": number,
    }


def spec_class(group: str, target: str) -> Any:
    """xfer's class of a backbone or head that a card names; ``None`` for one of the user's own,
    which may compute otherwise whatever it calls itself."""
    try:
        kind = load_class(group, target, str)
    except XferError:  # not at hand, or not to be imported by this process
        return None
    return kind if kind.__module__.startswith("xfer.") else None


def library_of(card: Card) -> str:
    """The library whose function builds the backbone, ``timm`` or ``torchvision``; empty for a
    class of the user's own."""
    kind = spec_class("backbone", card.backbone["_target_"])
    return str(kind.library) if kind else ""
