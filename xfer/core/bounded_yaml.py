"""YAML that somebody else may have written, held to limits before it is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xfer.core.files import read_text

_LARGEST = 1 << 20
_DEEPEST, _MOST = 50, 100_000


def read_yaml(path: Path) -> Any:
    """Read what a regular YAML file holds. Raises OSError, or ValueError as :func:`built`."""
    return built(read_text(path, _LARGEST))


def built(text: str) -> Any:
    """Build what ``text`` says.

    Raises ValueError for what is not YAML, is nested too deeply, or has too many nodes once every
    alias stands for what it repeats. The nodes are counted before anything is built, so that
    nothing can grow.
    """
    count = _Count()
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            count.add(event)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ArithmeticError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def is_deep(text: str) -> bool:
    """Whether brackets in ``text`` lie too deep in each other, whatever they mean."""
    deepest = depth = 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        deepest = max(deepest, depth)
    return deepest > _DEEPEST


@dataclass
class _Count:
    """How many nodes a YAML text has so far, and how many each of its anchors stands for."""

    total: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    within: list[tuple[str | None, int]] = field(default_factory=list)

    def add(self, event: yaml.Event) -> None:
        """Count what ``event`` begins, ends or repeats. Raises ValueError past a limit."""
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.within.pop()
            self.sizes |= {anchor: self.total - before} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.sizes:
                raise ValueError(f"'*{event.anchor}' stands for nothing before it")
            self.total += self.sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            self.sizes |= {event.anchor: 1} if event.anchor else {}
            if isinstance(event, yaml.CollectionStartEvent):
                self.within.append((event.anchor, self.total))
                self.sizes.pop(event.anchor or "", None)
            self.total += 1
        if len(self.within) > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        if self.total > _MOST:
            raise ValueError(f"it holds more than {_MOST:,} values")
