"""Where a key was set, for error messages: the command line, or the file that holds it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xfer.config import schema
from xfer.config.help import GROUPS, config_dir
from xfer.core.bounded_yaml import read_yaml
from xfer.core.errors import XferError

_KEY = re.compile(r"( *)([^\s:#-][^:]*):(?: (.*))?$")
"""A line of YAML, as OmegaConf writes it, that sets a key."""


def override_key(text: str) -> str:
    """``optim.lr`` of ``++optim.lr=0.1``."""
    return text.partition("=")[0].lstrip("+~").split("@")[0]


def _as_typed(folder: Path) -> Path:
    """A folder of the user's below the working folder by its path from there."""
    if folder == Path(config_dir()) or not folder.is_relative_to(here := Path.cwd()):
        return folder
    return folder.relative_to(here)


class Places:
    """``choices`` are the chosen options by group, ``typed`` the overrides of the command line,
    ``folders`` where config files are searched."""

    def __init__(
        self, choices: Mapping[str, Any], typed: Sequence[str], folders: Sequence[str]
    ) -> None:
        self._choices = choices
        self._typed = {override_key(text) for text in typed}
        found = (Path(folder) for folder in folders if folder)
        self._roots = [_as_typed(folder) for folder in found if folder.is_dir()]

    def __call__(self, key: str) -> str:
        """``key``, after the place where it, or a value that holds it, was set."""
        if any(_covers(typed, key) for typed in self._typed):
            return f"command line: {key}"
        files = (f"{file}: {key}" for file, inner in self._files(key) if _has(file, inner))
        return next(files, key)

    def annotated(self, text: str) -> str:
        """YAML of the whole configuration, each value with a comment that says where it was set."""
        lines: list[str] = []
        path: list[tuple[int, str]] = []
        rows = text.splitlines()
        for line, following in zip(rows, [*rows[1:], ""], strict=True):
            match = _KEY.match(line)
            if not match:  # a further line of a list or of a text
                lines.append(line)
                continue
            indent = len(match[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, match[2])]
            deeper = _KEY.match(following)
            if not match[3] and deeper and len(deeper[1]) > indent:
                lines.append(line)
                continue
            where = self(".".join(name for _, name in path)).rpartition(": ")[0]
            lines.append(f"{line}  # {self._short(where)}" if where else line)
        return "\n".join(lines)

    def _short(self, where: str) -> str:
        """A file of ours by its place in ``conf``."""
        path = Path(where)
        return str(path.relative_to(config_dir())) if path.is_relative_to(config_dir()) else where

    def elsewhere(self, key: str) -> str:
        """The remedy for a key that only another option of its group has, or nothing."""
        group, _, name = key.partition(".")
        files = [f for root in self._roots for f in sorted(root.glob(f"{group}/*.yaml"))]
        chosen = _read(Path(config_dir(), "config.yaml")).get("defaults", [])
        # First the usual option, then one that asks for the key, then those with a value for it.
        for file in sorted(
            files, key=lambda f: ({group: f.stem} not in chosen, _read(f).get(name) != "???")
        ):
            if file.stem != self._choices.get(group) and name in _accepted(group, file):
                return f"choose {group}={file.stem}, which has it, or drop it"
        return ""

    def _files(self, key: str) -> Iterator[tuple[Path, list[str]]]:
        """Files that may hold ``key``, and the key as it reads there; the strongest first."""
        group, *rest = parts = key.split(".")
        # Hydra notes no choice for a group of several options; a writer's keys are below its name.
        chosen = rest[0] if group == "export" and rest else self._choices.get(group)
        names = [
            (f"experiment/{self._choices.get('experiment')}", parts),
            (f"{group}/{chosen}", rest),
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
