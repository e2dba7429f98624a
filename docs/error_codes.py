"""The table of every error number, and the page of the documentation that is made from it.

A number is the ``base`` of its class in :mod:`xfer.core.errors` plus what the raise site gives, and
the class decides the exit code. The table is error_codes.toml beside this. One number has one
meaning: a new mistake takes a number that is free in the hundred of its class. None is free in that
of ConfigError; options that do not go together are a CombinationError, E001 to E049.

``python docs/error_codes.py >docs/errors.md`` makes the page anew.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from xfer.core import errors

_TABLE = Path(__file__).with_suffix(".toml")
_LAST = 999
_TABLE_HEAD = ("| number | meaning | example | remedy |", "| --- | --- | --- | --- |")
_BARE = "A bug in xfer, or a process of the run that ended without saying why."
_HEAD = """# Errors

<!-- Made from error_codes.toml by error_codes.py, both beside this page: change the table. -->

A mistake is one line on stderr, without a traceback:

```
xfer: error E<number>: <where>: <what>. Fix: <remedy>
```

Look the number up here. A number keeps its meaning; the words around it may change. The examples
are what stands between the number and `Fix:`. `<where>` is a file, a folder or a key of the
configuration. The first digits say which kind of mistake it is, and that decides the exit code of
the process. `XFER_FULL_ERROR=1` adds the traceback.
"""


@dataclass(frozen=True)
class ErrorCode:
    """One error number: what it means, a message (``where: what``) and what to do."""

    meaning: str
    example: str
    remedy: str


def entries() -> dict[int, ErrorCode]:
    """The table, by number."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return {int(name.removeprefix("E")): ErrorCode(**fields) for name, fields in table.items()}


def kinds() -> list[tuple[range, type[errors.XferError]]]:
    """Every class of errors with the numbers that it may have, in the order of exit codes; a class
    twice where another one has numbers in between."""
    named = [k for k in vars(errors).values() if isinstance(k, type) and k is not errors.Problems]
    classes = [kind for kind in named if issubclass(kind, errors.XferError)]
    owners = {kind.base: kind for kind in classes}
    for kind in sorted(classes, key=lambda kind: kind.base):
        if kind.last is not None:
            before = max(b for b, of in owners.items() if b < kind.base and of.last is None)
            owners.setdefault(kind.last + 1, owners[before])
    starts = sorted(owners)
    ends = zip(starts, [*starts[1:], _LAST + 1], strict=True)
    spans = [(range(start, end), owners[start]) for start, end in ends]
    return sorted(spans, key=lambda span: (span[1].exit, span[0].start))


def page() -> str:
    """The page ``docs/errors.md``, with its last line ended."""
    lines, table, shown = [_HEAD.rstrip("\n")], entries(), 0
    for numbers, kind in kinds():
        if kind.exit != shown:
            lines += ["", f"## Exit code {kind.exit}"]
            shown = kind.exit
        about = _BARE if kind is errors.XferError else str(kind.__doc__).splitlines()[0]
        lines += ["", f"### E{numbers.start:03d} to E{numbers.stop - 1:03d}: {kind.__name__}"]
        lines += ["", about, "", *_TABLE_HEAD]
        for number in sorted(set(table) & set(numbers)):
            code = table[number]
            cells = (f"E{number:03d}", code.meaning, f"`{code.example}`", code.remedy)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
