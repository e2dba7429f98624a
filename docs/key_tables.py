"""The tables of keys in docs/groups, made from the specs.

``python docs/key_tables.py`` writes them anew, each between its two marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from xfer.config.catalog import Key, keys, options
from xfer.config.help import config_dir

_MOST_DEFAULTS = 4
_MARKS = ("<!-- keys: made by docs/key_tables.py -->\n", "<!-- end of keys -->\n")


def tables(group: str) -> str:
    """The keys of ``group`` as Markdown: a table for each set of options that has the same ones."""
    shipped = (config_dir(),)
    found = [option.name for option in options(group, shipped) if option.keys]
    of_options: dict[tuple[str, ...], list[str]] = {}
    for name, rows in keys(shipped).items():
        alike: dict[tuple[str, str], list[Key]] = {}
        for row in rows if name.startswith(f"{group}.") else []:
            alike.setdefault((row.type, row.meaning), []).append(row)
        for same in alike.values():
            of_options.setdefault(tuple(row.option for row in same), []).append(_line(same))
    text = ""
    for chosen, lines in sorted(of_options.items(), key=lambda item: -len(item[0])):
        text += f"\n### {_title(chosen, found)}\n\n"
        text += "| key | type and range | default | meaning |\n| --- | --- | --- | --- |\n"
        text += "".join(f"{line}\n" for line in lines)
    return text


def _title(chosen: Sequence[str], found: Sequence[str]) -> str:
    if chosen == ("",):
        return "Keys of the group"
    if len(chosen) == len(found) > 1:
        return "Keys of every option that has any"
    *first, last = [f"`{name}`" for name in chosen]
    return f"{', '.join(first)} and {last}" if first else last


def _line(rows: Sequence[Key]) -> str:
    """One key as all of these options have it."""
    row = rows[0]
    defaults: dict[str, list[str]] = {}
    for each in rows:
        defaults.setdefault(_default(each), []).append(f"`{each.option}`")
    shown = next(iter(defaults))
    if len(defaults) > _MOST_DEFAULTS:
        shown = "by option"
    elif len(defaults) > 1:
        usual, *others = sorted(defaults.items(), key=lambda item: -len(item[1]))
        shown = "; ".join([usual[0], *(f"{text}: {', '.join(names)}" for text, names in others)])
    cells = (f"`{row.name}`", row.type, shown, row.meaning.replace("``", "`"))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(row: Key) -> str:
    text = row.shown_default
    return text if text == "must be given" else f"`{text}`"


def with_tables(page: str, group: str) -> str:
    """The text of a page of docs/groups, with the tables in it as they are now."""
    begin, end = (re.escape(mark) for mark in _MARKS)
    made = f"{_MARKS[0]}{tables(group)}\n{_MARKS[1]}"
    return re.sub(f"{begin}.*?{end}", lambda _: made, page, flags=re.DOTALL)


if __name__ == "__main__":
    for file in sorted(Path(__file__).with_name("groups").glob("*.md")):
        file.write_text(with_tables(file.read_text(encoding="utf-8"), file.stem), encoding="utf-8")
