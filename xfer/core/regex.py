"""Regular expressions that people type, used on names within bounds of time and memory.

Python's own engine has no bound: ``(a|a)*b`` takes it hours on a name of 40 characters. So they
are compiled by the ``regex`` package, which stops after a given time.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from xfer.core.errors import ConfigError

if TYPE_CHECKING:
    import regex

LONGEST = 500
"""Characters that a pattern may have."""
REPEATS = 100_000
"""The most that all its counts (``{3}``, ``{1,9}``) may give together, multiplied: ``regex``
writes nested ones out."""
SECONDS = 0.2
"""Processor time for one name, of a few microseconds that an honest pattern takes."""

_COUNT = re.compile(r"(?<!\\)\{(\d*),?(\d*)\}")
_OTHER_BRACE = re.compile(r"(?<!\\)\{(?!\d*,?\d*\})")


@lru_cache(maxsize=256)
def compiled(pattern: str, where: str) -> regex.Pattern[str]:
    """``pattern`` in Python's syntax. Raises ConfigError, which names the key ``where``, for what
    is none or is larger than names need."""
    import regex

    try:
        re.compile(pattern)
        if why := _too_much(pattern):
            raise ValueError(why)
        return regex.compile(pattern)
    except (re.error, regex.error, ValueError, OverflowError, RecursionError) as error:
        what = f"'{pattern[:60]}' is not a valid pattern ({error})"
        raise ConfigError(where, what, "write e.g. layer4\\..*", 42) from error


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether ``pattern`` matches the whole of ``name``. Raises as :func:`compiled`, and
    ConfigError when that takes too long to find out."""
    engine = compiled(pattern, where)
    try:
        return engine.fullmatch(name, timeout=SECONDS) is not None
    except TimeoutError as error:
        raise _too_slow(pattern, name, where) from error


def substituted(pattern: str, to: str, name: str, where: str) -> str:
    """``name`` with ``to``, which may use groups (``\\1``), in the place of every match. Raises
    as :func:`matches`, and ConfigError when ``to`` is no replacement."""
    import regex

    engine = compiled(pattern, where)
    try:
        return engine.sub(to, name, timeout=SECONDS)
    except TimeoutError as error:
        raise _too_slow(pattern, name, where) from error
    except (regex.error, IndexError) as error:
        what = f"'{to}' is not a valid replacement ({error})"
        raise ConfigError(where, what, "write e.g. \\1.conv", 44) from error


def _too_much(pattern: str) -> str:
    counts = (max(int(a or 1), int(b or 1), 1) for a, b in _COUNT.findall(pattern))
    reasons = (
        (f"longer than {LONGEST} characters", len(pattern) > LONGEST),
        (f"repeats more than {REPEATS} times", math.prod(counts) > REPEATS),
        # regex would take it for an approximate match.
        ("a { that does not begin a count: write \\{", bool(_OTHER_BRACE.search(pattern))),
    )
    return next((why for why, so in reasons if so), "")


def _too_slow(pattern: str, name: str, where: str) -> ConfigError:
    what = f"'{pattern}' takes more than {SECONDS} s on '{name[:60]}'"
    fix = "write it without a repetition inside a repetition, e.g. layer4\\..*"
    return ConfigError(where, what, fix, 56)
