"""Values as a reader wants them: rounded, with units, a dash for what was not measured."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from xfer.core.errors import first_few, printable

ABSENT = "–"


def short(text: Any, most: int = 200) -> str:
    """``text``, cut in its middle where it would fill the page: of ``most`` characters, a third
    is its end, where file names have their number and classes what sets them apart."""
    whole = str(text)
    if len(whole) <= most:
        return whole
    tail = (most - 1) // 3
    return f"{whole[: most - 1 - tail]}…{whole[len(whole) - tail :]}"


def name_ends(name: str, most: int = 12) -> tuple[str, str]:
    """A name as its beginning, which a page may cut off, and its end of about ``most`` characters
    (half as many of those that are twice as wide), which it shows; one that is read from right to
    left in part is an end as a whole, since its halves would stand in another order."""
    whole = printable(name)
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in whole):
        return "", whole
    at, room = len(whole), most
    # An accent belongs to the letter before it.
    while at and (room > 0 or unicodedata.combining(whole[at])):
        at -= 1
        room -= 2 if unicodedata.east_asian_width(whole[at]) in "WF" else 1
    return whole[:at], whole[at:]


def number(value: Any) -> str:
    """A count with separators, a share or loss with three decimals, ``–`` for ``None``."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def strength(value: float) -> str:
    """The strength of a penalty with two digits: ``0.032``, ``100``, ``3.2e-09``."""
    return f"{float(f'{value:.2g}'):g}"


def seconds(value: float | None) -> str:
    """A duration: ``0.42 s``, ``12.3 s``, ``3 min 05 s``."""
    if value is None:
        return ABSENT
    if value < 60:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: int | None) -> str:
    """A file size in decimal units: ``812 B``, ``4.7 kB``, ``2.9 MB``."""
    if value is None:
        return ABSENT
    if value < 1000:
        return f"{value} B"
    scale, unit = (1e3, "kB") if value < 1e6 else (1e6, "MB") if value < 1e9 else (1e9, "GB")
    return f"{value / scale:.1f} {unit}"


def share(part: int, whole: int) -> str:
    """A count and its share of ``whole``: ``1,026 (0.1 %)``."""
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def listed(value: Any, most: int = 6) -> str:
    """A count as it is; a list as its length and first entries; ``–`` for ``None``."""
    if not isinstance(value, (list, tuple)):
        return number(value)
    if not value:
        return "0"
    return f"{len(value):,}: {first_few([short(each) for each in value], most)}"


def words(value: Any) -> str:
    """Nested plain facts in one line, a spec by its class: ``Timm, name resnet50``."""
    if not isinstance(value, Mapping):
        return _inner(value)
    kind = [str(value["_target_"]).rpartition(".")[2]] if "_target_" in value else []
    rest = [
        f"{key} {_inner(entry)}"
        for key, entry in value.items()
        if key != "_target_" and entry not in (None, "", {}, [])
    ]
    return ", ".join(kind + rest)


def _inner(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({words(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_inner, value))}]"
    return number(value) if value is None or isinstance(value, bool) else str(value)
