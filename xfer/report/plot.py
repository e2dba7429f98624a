"""How every figure looks, what is written in it, and how it becomes a file.

Matplotlib's object API, never pyplot. It draws with DejaVu Sans, which it ships, and then with the
first of ``FALLBACKS`` that is installed and has the glyph. A character that none of them has, and
one that is not printable, is written as its Python escape (``\\u72fc``): no warning about missing
glyphs arises, so none has to be silenced. ``$`` and TeX commands stay plain characters.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from xfer.core.errors import OutputError, printable
from xfer.core.files import atomic_write, output_errors
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.export.cache_key import surroundings
from xfer.report.format import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.core.protocols import Graphs

P = ParamSpec("P")
DPI = 120
INK, GREY, FAINT = "#222222", "#666666", "#dddddd"
RIGHT, WRONG = "blue", "#e00000"
# From the palette of Okabe and Ito (2008), which people with any colour vision can tell apart; the
# green is darker, as the red above is, so that texts have a contrast of 4.5 to white.
TRAIN, VAL, RATE = "#d55e00", "#0072b2", "#00805a"


class _Carried(logging.Handler):
    """What matplotlib would print to standard error: that it looks for fonts the first time, or
    has no folder to keep what it found."""

    def emit(self, record: logging.LogRecord) -> None:
        log.info(f"matplotlib: {record.getMessage()}")


logging.getLogger("matplotlib").addHandler(_Carried())
logging.getLogger("matplotlib").propagate = False


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with xfer's look, whatever the user's matplotlibrc says.

    Both building and saving belong inside; the process's settings are restored at the end.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": list(families()),
                "font.size": 9,
                "text.parse_math": False,  # a class named $x$ is a name
                "text.color": INK,
                "axes.edgecolor": GREY,
                "axes.labelcolor": INK,
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "grid.color": FAINT,
                "grid.linewidth": 0.6,
                "xtick.color": GREY,
                "ytick.color": GREY,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "legend.frameon": False,
            }
        )
        yield


def put(path: Path, data: bytes) -> Path | None:
    """Write ``data``, a PNG, to ``path`` in one move; returns ``path``.

    Where there is nothing, ``None``, and what an earlier report left at ``path`` goes.
    """
    if not data:
        with output_errors(path):
            path.unlink(missing_ok=True)
        return None
    atomic_write(path, lambda part: part.write_bytes(data))
    return path


def png(build: Callable[P, Figure | None], *args: P.args, **kwargs: P.kwargs) -> bytes:
    """What ``build`` makes of the other arguments as a PNG, cut to what is drawn; empty where there
    is nothing to draw.

    Matplotlib's settings are the process's: draw from one thread at a time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style():
        figure, stream = build(*args, **kwargs), io.BytesIO()
        if figure is not None:
            look: Plain = {"format": "png", "dpi": DPI, "bbox_inches": "tight", "pad_inches": 0.1}
            if figure.get_layout_engine() is None:
                # Its parts have their places: "tight" would draw it all to find them.
                figure.set_dpi(DPI)
                canvas: Any = FigureCanvasAgg(figure)
                box = figure.get_tightbbox(canvas.get_renderer())
                look["bbox_inches"] = box.padded(look.pop("pad_inches"))
            # Of photographs a fifteenth smaller would take Pillow three times as long.
            figure.savefig(stream, **look, pil_kwargs={"compress_level": 3})
    return stream.getvalue()


def draw(
    path: Path, build: Callable[P, Figure | None], *args: P.args, **kwargs: P.kwargs
) -> Path | None:
    """Write what :func:`png` makes of the other arguments to ``path``, as :func:`put` does."""
    return put(path, png(build, *args, **kwargs))


FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC"),
    *("WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans"),
    *("Malgun Gothic", "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai"),
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
    while keep > 2 and width(short(whole, keep + 1), size) > room:
        keep -= 1
    return short(whole, keep + 1)


_DISTRIBUTIONS = ("matplotlib", "numpy", "pillow")
_CODE = ("core", "data", "evaluation", "report")
_NOTHING = b"nothing to draw"


@dataclass(frozen=True)
class Figures:
    """The figures in ``folder``; those that were drawn before are in ``stored``, where there is a
    store."""

    folder: Path
    stored: Graphs | None

    def draw(
        self, name: str, shows: Plain | None, build: Callable[[], Figure | None]
    ) -> Path | None:
        """Write what ``build`` makes to the file ``name``, see :func:`xfer.report.plot.draw`.

        ``shows`` is everything that the figure depends on beside xfer and the libraries, JSON-like;
        ``None`` where that cannot be said, and it is drawn each time. So is text that is no ASCII:
        which font draws it depends on what is installed.
        """
        path = self.folder / name
        if self.stored is None or not _is_known(shows):
            return draw(path, build)
        code = surroundings(_DISTRIBUTIONS, _CODE)
        key: Plain = {"kind": "figure", "format": 1, "name": name, "shows": shows, **code}
        try:
            data, _ = self.stored.content(key, lambda: png(build) or _NOTHING)
        except OutputError as error:
            log.warning(f"the figure {name} is not cached: {error.where}: {error.what}")
            return draw(path, build)
        return put(path, b"" if data == _NOTHING else data)


def _is_known(shows: Plain | None) -> bool:
    """Whether ``shows`` is text in ASCII and numbers; NaN, which a metric may be, is none."""
    try:
        return (
            shows is not None and json.dumps(shows, ensure_ascii=False, allow_nan=False).isascii()
        )
    except (TypeError, ValueError):
        return False
