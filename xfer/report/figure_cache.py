"""The figures of a run; one that an earlier run has drawn of the same things is not drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import OutputError
from xfer.core.log import log
from xfer.export.cache_key import surroundings
from xfer.report.plot import draw, png, put

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.core.protocols import Graphs
    from xfer.core.types import Plain

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
