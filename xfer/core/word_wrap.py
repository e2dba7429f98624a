"""Lines that are longer than the terminal, broken between their words."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from typing import TextIO

_COMMAND = re.compile(r"(?:^|(?<=  )|(?<=: )|(?<=type ))(?:\$ )?(?:(?:python -m )?xfer|srun) \S.*")
"""What is to be copied into a shell: a line break inside would end the command there."""
_NAMED = re.compile(r" {2,}|\S+(?: \S+){0,2} {2,}")
"""The name of a row and the space after it, or the space alone of a row that continues one."""
_LITTLE, _NARROWEST = 2, 20


def wrapped(text: str, stream: TextIO | None) -> str:
    """``text`` with each line as wide as the terminal that ``stream`` is; as it is where that is
    none. What continues a row of a table stands below what it continues. Commands are not broken;
    what is longer than the terminal is left for it to break."""
    with suppress(OSError, ValueError):
        if stream is not None and stream.isatty():
            width = shutil.get_terminal_size().columns
            if width >= _NARROWEST:
                return "\n".join(_broken(line, width) for line in text.split("\n"))
    return text


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    command = _COMMAND.search(line)
    end = command.start() if command else len(line)
    words = re.findall(r"( *)(\S+)", line[:end])
    if command:
        words.append((line[len(line[:end].rstrip()) : end], line[end:]))
    name = _NAMED.match(line)
    indent = name.end() if name and name.end() <= width // 2 else _LITTLE
    lines, used = [""], 0
    for gap, word in words:
        # A word that has a line of its own may begin further left than the others.
        begins = next((i for i in (indent, _LITTLE) if i + len(word) <= width), None)
        if used + len(gap) + len(word) <= width or begins is None or not used:
            lines[-1] += gap + word
            used = (used + len(gap) + len(word) - 1) % width + 1
        else:
            lines.append(" " * begins + word)
            used = begins + len(word)
    return "\n".join(lines)
