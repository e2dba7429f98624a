"""``xfer --help TOPIC``: a verb, a group, an option of one, or a key."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from xfer.config import other_tools
from xfer.config.catalog import Key, Option, key_called, keys, options
from xfer.config.help import GROUPS, help_width
from xfer.config.verbs import VERBS, quoted
from xfer.core.errors import CommandError, closest, printable

_LEAST = 30  # columns of a text that stands beside its name


def topic(name: str, folders: Sequence[str]) -> str:
    """What there is to say about ``name``, as wide as the terminal.

    Raises CommandError for what is no verb, group, option or key.
    """
    found = "\n\n".join(_sections(name, tuple(folders)))
    if found:
        return found
    known = keys(folders)
    pairs = [f"{group}.{o.name}" for group in GROUPS for o in options(group, tuple(folders))]
    names = [*VERBS, *GROUPS, *known, *pairs]
    key = key_called(name, folders)
    typed = f"type xfer --help {key}" if key else ""
    if not key.endswith(f".{name}"):  # another tool's word is before a key that merely ends so
        typed = _of_another(name, known) or typed
    fix = typed or closest(name, names)
    what = f"there is no verb, group, option or key '{name[:200]}'"
    raise CommandError("--help", what, fix, 7)


def _of_another(name: str, known: Iterable[str]) -> str:
    """The help to ask for in place of another tool's word, or nothing; a word that nothing here
    takes has its reason."""
    advice = other_tools.for_key(name, GROUPS)
    typed = re.findall(r"([\w.]+)=(\w*)", advice)
    # The key itself where there is one, which is named last; else the option that is chosen.
    topics = [key for key, _ in reversed(typed) if key in known]
    topics += [f"{group}.{option}" for group, option in typed if group in GROUPS]
    return f"type xfer --help {topics[0]}; to set it, {advice}" if topics else advice


def _sections(name: str, folders: tuple[str, ...]) -> Iterable[str]:
    if name in VERBS:
        form = f"xfer {name} {VERBS[name].usage} [group=option] [key=value]"
        yield f"{textwrap.fill(form, help_width())}\n{_below(VERBS[name].about)}"
    group, _, rest = name.partition(".")
    if group in GROUPS and not rest:
        yield _group(group, folders)
    found = options(group, folders) if group in GROUPS else ()
    for option in found:
        if option.name == rest:
            yield _option(option)
    if rows := keys(folders).get(name, []):
        yield _key(rows)


def _group(group: str, folders: tuple[str, ...]) -> str:
    found = options(group, folders)
    lines = [f"{group}=OPTION", *_columns((o.name, o.summary) for o in found)]
    rows: dict[str, list[Key]] = {}
    for key in (key for option in found for key in option.keys):
        rows.setdefault(key.name, []).append(key)
    if rows:
        lines += ["", "keys", *_columns((n, _short(found)) for n, found in rows.items())]
    first = found[0].name if found else "OPTION"
    more = [(f"xfer --help {group}.{first}", "one option")]
    more += [(f"xfer --help {next(iter(rows))}", "one key")] if rows else []
    return "\n".join([*lines, "", *_columns(more)])


def _short(rows: Sequence[Key]) -> str:
    defaults = dict.fromkeys(key.shown_default for key in rows)
    default = next(iter(defaults)) if len(defaults) == 1 else "depends on the option"
    return f"{rows[0].type}; {_as_default(default)}. {rows[0].meaning}".strip()


def _as_default(text: str) -> str:
    needed = " " in text and text[0].isalpha() and text != "depends on the option"
    return text if needed else f"default {text}"


def _option(option: Option) -> str:
    lines = [f"{option.group}={option.name}", _below(option.summary)]
    if option.about and option.about != option.summary:
        lines += [_below(option.about)]
    if option.problem:
        lines += [_below(option.problem)]
    if option.keys:
        lines += ["", *_columns((key.name, _short([key])) for key in option.keys)]
    return "\n".join(lines)


def _key(rows: Sequence[Key]) -> str:
    key = rows[0]
    lines = [key.name]
    group = key.name.partition(".")[0]
    meanings: dict[str, list[str]] = {}
    for row in rows:
        if row.meaning:
            meanings.setdefault(row.meaning, []).append(row.option)
    for meaning, names in meanings.items():
        several = len(meanings) > 1
        lines += [_below(f"{group}={', '.join(names)}")] if several else []
        lines.append(_below(meaning, 8 if several else 4))
    facts = [("type", text) for text in dict.fromkeys(row.type for row in rows)]
    by_default: dict[str, list[str]] = {}
    for row in rows:
        by_default.setdefault(row.shown_default, []).append(row.option)
    for default, names in by_default.items():
        of = f" ({group}={', '.join(names)})" if names[0] else ""
        facts.append(("default", default + of))
    facts.append(("example", f"xfer {quoted(key.example)}"))
    return "\n".join([*lines, *_columns(facts)])


_WHOLE: Any = {"break_on_hyphens": False, "break_long_words": False}
"""Words are copied from here, whatever the terminal's width."""


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Names, and beside each its text; below it where the terminal is narrow."""
    pairs = [(printable(name), _plain(text)) for name, text in rows]
    width = min(max((len(name) for name, _ in pairs), default=0), 30)
    return [_pair(name, text, width) for name, text in pairs]


def _pair(name: str, text: str, width: int) -> str:
    left, longest = help_width() - width - 6, max(map(len, text.split()), default=0)
    if left < max(_LEAST, longest) or len(name) > width:
        return f"    {name}\n{_below(text, 8)}"
    lines = textwrap.wrap(text, left, **_WHOLE) or [""]
    rest = [f"{'':{width + 6}}{line}" for line in lines[1:]]
    return "\n".join([f"    {name:<{width}}  {lines[0]}".rstrip(), *rest])


def _below(text: str, by: int = 4) -> str:
    indent = " " * by
    given = {"initial_indent": indent, "subsequent_indent": indent, **_WHOLE}
    return textwrap.fill(_plain(text), help_width(), **given)


def _plain(text: str) -> str:
    """Without the marks that docstrings have around code."""
    return printable(text).replace("``", "")
