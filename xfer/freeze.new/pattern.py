"""Regular expressions over whole names, in steps that grow with the length of the name alone.

Python's own engine tries one way after another: with ``(\\w+)*x`` a name of 40 characters takes it
hours. Here all ways are followed at once. The pattern becomes a position automaton (Glushkov,
1961), and a name of n characters is read in n steps, whatever the pattern. What no such automaton
can do (lookaround, references to groups, flags) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce

from xfer.errors import ConfigError

LONGEST = 500
"""Characters that a pattern may have."""
MOST = 2000
"""Positions that it may have once its counted repetitions are written out."""
DEEPEST = 20
"""Groups within groups."""

_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_SET = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_ESCAPE = re.compile(r"\\[dDwWsS]|\\[^0-9a-zA-Z]")


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Callable[[str], bool]:
    """A function that says whether ``pattern`` matches the whole of a name.

    Raises ValueError, which says why, for what is no pattern or none that is offered here.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return _Automaton(_Reader(pattern).choice()).matches


def check(pattern: str, where: str) -> None:
    """Raise ConfigError, which names ``where``, unless :func:`compiled` takes ``pattern``."""
    try:
        compiled(pattern)
    except ValueError as error:
        raise ConfigError(
            where, f"'{pattern}' is no pattern ({error})", "write e.g. layer4\\..*", 31
        ) from error


@dataclass(frozen=True)
class _All:
    """Its parts, one after the other."""

    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Any:
    """One of its ways."""

    ways: tuple[_Node, ...]


@dataclass(frozen=True)
class _Many:
    """Its part at least and at most so often; ``None`` is without end."""

    part: _Node
    least: int
    most: int | None


_Node = str | _All | _Any | _Many
"""A str is a pattern of one character."""


class _Reader:
    """Reads a pattern, which Python's engine has accepted, from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def choice(self) -> _Node:
        """What stands up to the end of the pattern or of its group."""
        ways = [self._sequence()]
        while self._took("|"):
            ways.append(self._sequence())
        return _Any(tuple(ways))

    def _sequence(self) -> _Node:
        parts = []
        while self._rest and self._rest[0] not in "|)":
            parts.append(self._repeated(self._atom()))
        return _All(tuple(parts))

    @property
    def _rest(self) -> str:
        return self.text[self.at :]

    def _took(self, sign: str) -> bool:
        found = self._rest.startswith(sign)
        self.at += len(sign) * found
        return found

    def _atom(self) -> _Node:
        if (self._rest == "$") or (self.at == 0 and self._rest.startswith("^")):
            # The whole name must match, so that these two say nothing.
            self.at += 1
            return _All(())
        if self._took("(?:") or (self._rest[1:2] != "?" and self._took("(")):
            return self._group()
        found = _SET.match(self.text, self.at) or _ESCAPE.match(self.text, self.at)
        if found is None and self._rest[0] in "\\(^$[":
            raise ValueError(f"'{self._rest[:3]}' is not offered here")
        one = found[0] if found else self._rest[0]
        self.at += len(one)
        return one if found or one == "." else re.escape(one)

    def _group(self) -> _Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"its groups are nested more than {DEEPEST} deep")
        inner = self.choice()
        self.depth -= 1
        self.at += 1
        return inner

    def _repeated(self, part: _Node) -> _Node:
        found = _COUNT.match(self.text, self.at)
        if found and found[0] != "{}":
            least = int(found[1] or 0)
            most = (int(found[3]) if found[3] else None) if found[2] else least
            self.at = found.end()
        elif self._rest[:1] in _SIGNS:
            least, most = _SIGNS[self._rest[0]]
            self.at += 1
        else:
            return part
        # Lazy is as good as greedy where the whole name must match; possessive is not.
        if not self._took("?") and self._rest.startswith("+"):
            raise ValueError("a possessive quantifier is not offered here")
        return _Many(part, least, most)


@dataclass(frozen=True)
class _Part:
    """Whether a piece of the pattern matches nothing at all, and the positions that can read its
    first and its last character."""

    empty: bool = True
    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()


class _Automaton:
    """``reads[i]`` says whether position i reads a character, ``follow[i]`` what may come next."""

    def __init__(self, node: _Node) -> None:
        self.reads: list[re.Pattern[str]] = []
        self.follow: list[set[int]] = []
        self.whole = self._add(node)

    def matches(self, name: str) -> bool:
        """Whether the whole of ``name`` is matched."""
        awake: Iterable[int] = self.whole.first
        at: list[int] = []
        for character in name:
            at = [i for i in awake if self.reads[i].fullmatch(character)]
            awake = set().union(*(self.follow[i] for i in at))
        return not self.whole.last.isdisjoint(at) if name else self.whole.empty

    def _add(self, node: _Node) -> _Part:
        if isinstance(node, _All):
            return self._chain(self._add(part) for part in node.parts)
        if isinstance(node, _Any):
            ways = [self._add(way) for way in node.ways]
            first, last = ((p.first for p in ways), (p.last for p in ways))
            none: frozenset[int] = frozenset()
            return _Part(any(p.empty for p in ways), none.union(*first), none.union(*last))
        if isinstance(node, _Many):
            return self._times(node)
        if len(self.reads) == MOST:
            raise ValueError("its repetitions are too many")
        self.reads.append(re.compile(node))
        self.follow.append(set())
        own = frozenset({len(self.reads) - 1})
        return _Part(False, own, own)

    def _times(self, node: _Many) -> _Part:
        count = max(node.least, 1) if node.most is None else node.most
        parts = [self._add(node.part) for _ in range(count)]
        if node.most is None:
            self._link(parts[-1], parts[-1])
        return self._chain(
            part if i < node.least else _Part(True, part.first, part.last)
            for i, part in enumerate(parts)
        )

    def _chain(self, parts: Iterable[_Part]) -> _Part:
        return reduce(self._link, parts, _Part())

    def _link(self, a: _Part, b: _Part) -> _Part:
        for i in a.last:
            self.follow[i] |= b.first
        return _Part(
            a.empty and b.empty,
            a.first | b.first if a.empty else a.first,
            a.last | b.last if b.empty else b.last,
        )
