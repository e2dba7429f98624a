"""The run card as ``report.html``, one file that fetches nothing, and ``report.md``.

The page is whole without the script that filters its mistakes, and runs no other.

Every value passes one escape on its way into a template: HTML's by jinja2's autoescape, or
Markdown's. Unprintable characters, lone surrogates among them, are written as Python escapes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.core.errors import printable
from xfer.core.files import read_text, write_text
from xfer.core.types import Plain
from xfer.report.card import ALTS, CAPTIONS, about, data_name, sections, verdict
from xfer.report.format import name_ends, short
from xfer.report.image_tiles import data_uri, jpeg
from xfer.report.plot import DPI

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_HERE = Path(__file__).parent
_SMALL = 90_000
"""Bytes of a figure inside the page."""


@dataclass(frozen=True)
class Reload:
    """How a page of something at work is read anew: ``every`` so many seconds.

    Once it is older than ``within`` seconds it says ``silent`` instead, with its age in place of
    ``{}``: whatever wrote it may have been killed, and cannot say so itself.
    """

    every: int
    within: int
    silent: str
    written: int = field(default_factory=lambda: int(time.time()))


_MARKS = re.compile(
    r"[\\`*<\[\]|~$&]"  # emphasis, code, HTML, links, cells, math, entities
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is no mark
    r"|:(?=//)|(?<=www)\."  # bare addresses would become links
    r"|^[-+=>#]|^\d{1,9}[.)](?=\s|$)"  # lists, quotes and headings
)


def render(folder: Path, result: Plain, plan: Plain, details: Plain) -> None:
    """Write ``folder/report.html`` and ``folder/report.md`` from the facts of a run.

    ``result`` is ``result.json`` and ``plan`` is ``plan.json``. ``details`` may hold, a split,
    ``per_class`` and ``mistakes``; and ``history`` (rows of ``metrics.csv``), ``exports``,
    ``wrong`` (rows of path, label, prediction, confidence), ``shots`` and ``table`` (the file that
    has them all), ``right`` (shots to compare those with), ``heat`` (how their maps are made),
    ``pairs``, ``charts`` (by part of the card) and ``notes`` (texts). Whatever is
    absent is left out. Figures are the PNG files in ``folder/figures``.
    Raises OutputError when a file cannot be written.
    """
    drawn = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    card = _card(result, plan, details, drawn) | {"verdict": verdict(result)}
    pictures = details.get("shots") or details.get("right")
    lay_out(folder / "report", card | {"script": "mistakes.js" if pictures else None})


def render_live(
    folder: Path,
    result: Plain,
    plan: Plain,
    details: Plain,
    lines: Sequence[str],
    live: Reload | None = None,
) -> None:
    """Write ``folder/report.html`` of a run at work, or of one that ended too early, from what is
    known so far. It begins with ``lines`` and, while the run is ``live``, is read anew. Raises
    OutputError when it cannot be written.
    """
    card = _card(result, plan, details, {}) | {"verdict": list(lines), "live": live}
    card["script"] = "live.js" if live else None
    _write("html", folder / "report", card, "report")


def _card(result: Plain, plan: Plain, details: Plain, drawn: Mapping[str, Path]) -> Plain:
    return {
        "title": data_name(result, plan),
        "about": about(result, plan),
        "command": printable(result.get("command") or ""),
        "sections": sections(result, plan, details, drawn),
        "captions": dict.fromkeys(drawn, "") | CAPTIONS,
        "drawn": drawn,
    }


def lay_out(
    path: Path, card: Plain, template: str = "report", kinds: Sequence[str] = ("html", "md")
) -> None:
    """Write ``path`` with the suffixes ``.html`` and ``.md``, or one of these ``kinds`` alone.

    ``card`` is what the templates name: ``title``, ``verdict`` (lines), ``command``, ``sections``;
    where there are figures ``captions`` and ``drawn`` (the PNG file in ``figures/`` by figure
    name); and where there is one ``about``, a line below the title, and ``script``, names of files
    beside the templates that the page may run, with blanks between them. ``template`` is the name
    of the HTML page's, before its suffixes.
    """
    for kind in kinds:
        _write(kind, path, card, template)


def _write(kind: str, path: Path, card: Plain, template: str) -> None:
    known: Plain = {"about": "", "at_work": "", "captions": {}, "drawn": {}, "live": None}
    known |= {"charts_in_words": False, **card}
    known["alts"] = dict.fromkeys(known["drawn"], "") | ALTS
    known["script"] = _script(card["script"]) if card.get("script") else None
    name = f"{template}.html.j2" if kind == "html" else "report.md.j2"
    page = _environment(kind).get_template(name).render(known)
    write_text(path.with_suffix(f".{kind}"), page)


@cache
def _environment(kind: str) -> Environment:
    """The templates of one kind; read once, for a page that is written every epoch."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=kind == "html",
        finalize={"html": _plain, "md": _markdown}[kind],
        loader=FileSystemLoader(_HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "prose": _PROSE[kind],
        "picture": _picture,
        "short": short,
        "name_ends": name_ends,
        "unique_with": lambda some, others: sorted({*some, *others}),
    }
    environment.filters.update(filters)
    return environment


def _unbroken(text: object) -> Markup:
    """``text`` in HTML, no percent sign of which begins a line."""
    from markupsafe import Markup, escape

    whole = text if hasattr(text, "__html__") else escape(printable(text))
    return Markup(re.sub(r"(?<=\d) %", "&nbsp;%", str(whole)))


_PROSE: Mapping[str, Callable[[object], object]] = {"html": _unbroken, "md": str}


def _script(names: str) -> Plain:
    """Scripts beside the templates as one, and the hash under which the page's policy allows it."""
    from markupsafe import Markup

    text = "".join(read_text(_HERE / name) for name in names.split())
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return {"text": Markup(text), "sha256": Markup(f"sha256-{digest}")}


def _plain(value: Any) -> Any:
    """``value`` without unprintable characters; what is HTML already stays as it is."""
    return value if hasattr(value, "__html__") else printable(value)


def _markdown(value: Any) -> Any:
    """``value`` as text that Markdown shows and does not interpret."""
    if hasattr(value, "__html__"):
        return value
    return _MARKS.sub(lambda mark: f"{mark[0][:-1]}\\{mark[0][-1]}", printable(value).strip())


def _picture(path: Path) -> Plain:
    """A PNG file as a data URI, with its width and height in CSS pixels: as it is where that is
    small, else as a JPEG of about as many bytes as a page can spare for it."""
    from PIL import Image

    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        # CSS has 96 pixels an inch.
        wide, high = (side * 96 // DPI for side in image.size)
        if len(data) <= _SMALL:
            return {"uri": data_uri(data, "png"), "width": wide, "height": high}
        opaque = image.convert("RGB").resize((wide, high), Image.Resampling.LANCZOS)
        for quality in (82, 65, 45, 25):
            smaller = jpeg(opaque, quality)
            if len(smaller) <= _SMALL:
                break
    return {"uri": data_uri(smaller), "width": wide, "height": high}
