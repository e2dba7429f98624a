"""Where a key was set, for error messages: the command line, or the file that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xfer.config import schema
from xfer.config.help import GROUPS
from xfer.core.bounded_yaml import read_yaml
from xfer.core.errors import XferError


def override_key(text: str) -> str:
    """``optim.lr`` of ``++optim.lr=0.1``."""
    return text.partition("=")[0].lstrip("+~").split("@")[0]


class Places:
    """``choices`` are the chosen options by group, ``typed`` the overrides of the command line,
    ``folders`` where config files are searched."""

    def __init__(
        self, choices: Mapping[str, Any], typed: Sequence[str], folders: Sequence[str]
    ) -> None:
        self._choices = choices
        self._typed = {override_key(text) for text in typed}
        self._roots = [Path(folder) for folder in folders if folder and Path(folder).is_dir()]

    def __call__(self, key: str) -> str:
        """``key``, after the place where it, or a value that holds it, was set."""
        if any(_covers(typed, key) for typed in self._typed):
            return f"command line: {key}"
        files = (f"{file}: {key}" for file, inner in self._files(key) if _has(file, inner))
        return next(files, key)

    def elsewhere(self, key: str) -> str:
        """The remedy for a key that only another option of its group has, or nothing."""
        group, _, name = key.partition(".")
        files = [f for root in self._roots for f in sorted(root.glob(f"{group}/*.yaml"))]
        # First an option that asks for the key, then those that have a value of their own for it.
        for file in sorted(files, key=lambda f: _read(f).get(name) != "???"):
            if file.stem != self._choices.get(group) and name in _accepted(group, file):
                return f"choose {group}={file.stem}, which has it, or drop it"
        return ""

    def _files(self, key: str) -> Iterator[tuple[Path, list[str]]]:
        """Files that may hold ``key``, and the key as it reads there; the strongest first."""
        group, *rest = parts = key.split(".")
        chosen = self._choices.get(group)
        names = [
            (f"experiment/{self._choices.get('experiment')}", parts),
            *((f"{group}/{o}", rest) for o in (chosen if isinstance(chosen, list) else [chosen])),
            ("config", parts),
        ]
        for name, inner in names:
            for file in (root / f"{name}.yaml" for root in self._roots):
                if file.is_file():
                    yield file, inner


def _covers(typed: str, key: str) -> bool:
    """Whether that override set ``key``; the choice of a group's option sets none of its keys."""
    if typed in GROUPS:
        return typed == key
    return f"{key}.".startswith(f"{typed}.") or typed.startswith(f"{key}.")


def _has(file: Path, parts: Sequence[str]) -> bool:
    node: Any = _read(file)
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return bool(parts)


def _accepted(group: str, file: Path) -> Mapping[str, Any]:
    target = str(_read(file).get("_target_", ""))
    try:
        return schema.signature(schema.load_class(group, target, str))
    except XferError:
        return {}  # an option that is broken, or not allowed, is no remedy


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except (OSError, ValueError):
        return {}  # what is wrong with the file is said where it is composed
    return content if isinstance(content, dict) else {}
