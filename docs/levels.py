"""Draw docs/levels.svg: the packages from the ground up, and which of them imports which.

``python docs/levels.py`` writes the file. Levels and imports are those that
``tests/test_layers.py`` reads from the code, so that picture and test cannot disagree.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SVG = ROOT / "docs" / "levels.svg"
sys.path.insert(0, str(ROOT / "tests"))

import test_layers as layers  # noqa: E402

ROWS = [name for name in (*layers.LEVELS, *layers.TOP) if name][::-1]
WIDTH, HEADER, ROW, FOOTER = 700, 78, 36, 34
NAME, TEXT, GRID = 38, 128, 438
STEP = (WIDTH - 10 - GRID) / (len(ROWS) - 1)  # nothing imports the last row
LINE = 50
"""Letters in a line of the description, of which there are two at most."""

STYLE = """
  svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 11px }
  .page { fill: #ffffff } .band { fill: #f2f5f9 } .self { fill: #c9d6e8 } .rule { stroke: #dde4ee }
  text { fill: #4a5565 } .name { fill: #111827; font-size: 13px; font-weight: 600 }
  .level { fill: #7a8698 } .head { fill: #111827; font-size: 12px }
  .dot { fill: #1d5fc4 } .ring { fill: none; stroke: #1d5fc4; stroke-width: 1.6 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .band { fill: #161c26 } .self { fill: #2e3d55 }
    .rule { stroke: #263041 } text { fill: #aab4c3 }
    .name, .head { fill: #eef2f8 } .level { fill: #8290a5 }
    .dot { fill: #6ea8ff } .ring { stroke: #6ea8ff }
  }
"""


def edges() -> dict[tuple[str, str], bool]:
    """Pairs of importer and imported; whether the import happens when the importer is loaded,
    rather than inside a function or for annotations only."""
    pairs: dict[tuple[str, str], bool] = {}
    for name, how in layers.ours():
        importer, imported = layers.room(name), layers.room(how.module)
        # What ``python -m`` starts is an entry like ``__main__``.
        if importer and importer != imported and name not in layers.STARTED:
            eager = not (how.lazy or how.typing)
            pairs[importer, imported] = pairs.get((importer, imported), False) or eager
    return pairs


def about(name: str) -> list[str]:
    """What the package says of itself: its docstring's first sentence, as lines."""
    package = layers.PACKAGE / name / "__init__.py"
    file = package if package.exists() else layers.PACKAGE / f"{name}.py"
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(doc.split("\n\n")[0].split()).replace("`", "").split(". ")[0].rstrip(".")
    lines = textwrap.wrap(sentence, LINE, break_on_hyphens=False)
    assert 0 < len(lines) <= 2, f"the first sentence of {file} fits no two lines: {sentence}"
    return lines


def text(x: float, y: float, words: str, kind: str = "", more: str = "") -> str:
    """One line of text."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{more}>{escape(words)}</text>'


def column(name: str) -> float:
    """The middle of the column of ``name``."""
    return GRID + (ROWS.index(name) - 0.5) * STEP


def band(name: str) -> list[str]:
    """The row of ``name``: its level, its name, what it is, and its place in the grid."""
    at = ROWS.index(name)
    top = HEADER + at * ROW
    parts = [f'<rect class="band" x="6" y="{top + 1}" width="{WIDTH - 12}" height="{ROW - 2}"/>']
    if name in layers.LEVELS:
        parts.append(text(28, top + 23, str(layers.LEVEL[name]), "level", ' text-anchor="end"'))
    parts.append(text(NAME, top + 23, name, "name"))
    lines = about(name)
    first = top + (22 if len(lines) == 1 else 15)
    parts += [text(TEXT, first + 14 * i, line) for i, line in enumerate(lines)]
    if at:
        x = column(name) - STEP / 2 + 1
        parts.append(
            f'<rect class="self" x="{x:.1f}" y="{top + 1}" width="{STEP - 2:.1f}" '
            f'height="{ROW - 2}"/>'
        )
    return parts


def heading(name: str) -> list[str]:
    """The name of a column, and the line that leads from it down to the package itself."""
    x, end = column(name), HEADER + ROWS.index(name) * ROW
    turned = f' transform="rotate(-60 {x:.1f} {HEADER - 8})"'
    return [
        f'<path class="rule" d="M{x:.1f} {HEADER - 4}V{end}"/>',
        text(x + 2, HEADER - 8, name, "head", turned),
    ]


def mark(importer: str, imported: str, eager: bool) -> str:
    """The dot of one import."""
    x, y = column(imported), HEADER + (ROWS.index(importer) + 0.5) * ROW
    kind, radius = ("dot", 5) if eager else ("ring", 4.2)
    says = f"<title>{escape(importer)} imports {escape(imported)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{says}</circle>'


def legend() -> list[str]:
    """What the marks mean, below the rows."""
    y = HEADER + len(ROWS) * ROW + 21
    return [
        f'<circle class="dot" cx="44" cy="{y - 4}" r="5"/>',
        text(55, y, "its row imports its column"),
        f'<circle class="ring" cx="250" cy="{y - 4}" r="4.2"/>',
        text(261, y, "only inside functions, or for annotations"),
    ]


def drawn() -> str:
    """The picture as text."""
    height = HEADER + len(ROWS) * ROW + FOOTER
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "<title>The packages of xfer from the ground up, and which imports which</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
    ]
    for name in ROWS:
        parts += band(name)
    for name in ROWS[1:]:
        parts += heading(name)
    parts += [mark(*pair, eager) for pair, eager in sorted(edges().items()) if pair[1]]
    return "\n".join([*parts, *legend(), "</svg>", ""])


if __name__ == "__main__":
    SVG.write_text(drawn(), encoding="utf-8")
