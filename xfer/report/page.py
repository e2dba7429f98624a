"""The run card as ``report.html``, one file that fetches and runs nothing, and ``report.md``.

Every value passes one escape on its way into a template: HTML's by jinja2's autoescape, or
Markdown's. Unprintable characters, lone surrogates among them, are written as Python escapes.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from xfer.core.errors import printable
from xfer.core.files import write_text
from xfer.core.types import Plain
from xfer.report.card import CAPTIONS, sections, verdict
from xfer.report.plot import DPI

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
    ``wrong`` (rows of path, label, prediction, confidence) and ``notes`` (texts). Whatever is
    absent is left out. Figures are the PNG files in ``folder/figures``.
    Raises OutputError when a file cannot be written.
    """
    drawn = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    card = {
        "title": result.get("experiment") or plan.get("experiment") or "run",
        "verdict": verdict(result),
        "command": printable(result.get("command") or ""),
        "sections": sections(result, plan, details, drawn),
        "captions": dict.fromkeys(drawn, "") | CAPTIONS,
        "drawn": drawn,
    }
    lay_out(folder / "report", card)


def lay_out(path: Path, card: Plain, template: str = "report") -> None:
    """Write ``path`` with the suffixes ``.html`` and ``.md``. ``card`` is what the templates name:
    ``title``, ``verdict`` (lines), ``command``, ``sections``, ``captions`` and ``drawn`` (the PNG
    file in ``figures/`` by figure name); ``template`` is the name of both before their suffixes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    for kind, escape in {"html": _plain, "md": _markdown}.items():
        environment = Environment(
            autoescape=kind == "html",
            finalize=escape,
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["picture"] = _picture
        page = environment.get_template(f"{template}.{kind}.j2").render(card)
        write_text(path.with_suffix(f".{kind}"), page)


def _plain(value: Any) -> Any:
    """``value`` without unprintable characters; what is HTML already stays as it is."""
    return value if hasattr(value, "__html__") else printable(value)


def _markdown(value: Any) -> Any:
    """``value`` as text that Markdown shows and does not interpret."""
    if hasattr(value, "__html__"):
        return value
    return _MARKS.sub(lambda mark: f"{mark[0][:-1]}\\{mark[0][-1]}", printable(value).strip())


def _picture(path: Path) -> Plain:
    """A PNG file as a data URI, with its width and height in CSS pixels."""
    from markupsafe import Markup

    data = path.read_bytes()
    # The header of a PNG holds width and height at bytes 16 and 20; CSS has 96 pixels an inch.
    wide, high = (int.from_bytes(data[at : at + 4], "big") * 96 // DPI for at in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return {"uri": Markup(uri), "width": wide, "height": high}  # Base 64 has nothing to escape
