"""Text in figures: any name is drawn as it is written, or escaped, and never interpreted.

Matplotlib draws with DejaVu Sans, which it ships, and then with the first of ``FALLBACKS`` that
is installed and has the glyph. A character that none of them has, and one that is not printable,
is written as its Python escape (``\\u72fc``): no warning about missing glyphs arises, so none has
to be silenced. ``$`` and TeX commands stay plain characters (see :mod:`xfer.report.canvas`).
"""

from __future__ import annotations

from functools import cache

from xfer.errors import printable

FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_LONGEST = 160


@cache
def families() -> tuple[str, ...]:
    """The font families to draw with, in order: DejaVu Sans and the installed fallbacks."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = [findfont(FontProperties(family=[name])) for name in families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))


def drawable(text: object) -> str:
    """``text`` with every character escaped that no font at hand can draw."""
    known = _glyphs()
    return "".join(
        c if ord(c) in known else c.encode("unicode_escape").decode() for c in printable(text)
    )


def width(text: str, size: float) -> float:
    """The width of a drawable ``text`` at font ``size``; both in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=list(families()), size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def fit(text: object, room: float, size: float) -> str:
    """``text`` made drawable, with an ellipsis in the middle if wider than ``room`` points."""
    whole = drawable(text)
    if len(whole) <= _LONGEST and width(whole, size) <= room:
        return whole
    keep = min(len(whole) - 1, _LONGEST)
    while keep > 2 and width(_shortened(whole, keep), size) > room:
        keep -= 1
    return _shortened(whole, keep)


def _shortened(text: str, keep: int) -> str:
    tail = keep // 3
    return f"{text[: keep - tail]}…{text[len(text) - tail :]}"
