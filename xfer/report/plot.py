"""How every figure looks, and how it becomes a file. Matplotlib's object API, never pyplot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.report.lettering import families
from xfer.storage import atomic_write, output_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
INK, GREY, FAINT = "#222222", "#666666", "#dddddd"
RIGHT, WRONG = "blue", "red"
# From the palette of Okabe and Ito (2008), which people with any colour vision can tell apart.
TRAIN, VAL, RATE = "#d55e00", "#0072b2", "#009e73"


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


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as a PNG, cut to what is drawn, atomically; returns ``path``."""
    atomic_write(
        path,
        lambda part: figure.savefig(
            part, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.1
        ),
    )
    return path


def save_any(figure: Figure | None, path: Path) -> Path | None:
    """The same; where there is nothing to draw, remove what an earlier report left at ``path``."""
    if figure is not None:
        return save(figure, path)
    with output_errors(path):
        path.unlink(missing_ok=True)
    return None
