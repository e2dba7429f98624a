"""Text in a CSV file that a spreadsheet may open."""

from __future__ import annotations

import re


def cell(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet runs as a formula."""
    return "'" + text if _FORMULA.match(text) else text


# The four signs also in full width, which some spreadsheets take for the same. Signed numbers, and
# paths below a folder that is called so, are what they are: `-1`, `+1`, `-1/0.jpg`.
_FORMULA = re.compile(r"[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d[\w./ -]*\Z)")
