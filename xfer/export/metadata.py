"""What every exported file says of itself."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from xfer.config.help import DISTRIBUTION
from xfer.core.types import Card


def metadata(card: Card) -> dict[str, str]:
    """Class names, preprocessing and card as ASCII JSON, and the version of xfer."""
    return {
        "classes": json.dumps(card.classes),
        "preprocess": json.dumps(card.input.to_plain()),
        "card": json.dumps(card.to_plain()),
        "xfer": _version(),
    }


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"  # a bare checkout on the path has no version of its own
