"""``xfer schema``: a JSON schema of an experiment file, for editors.

An editor with a YAML language server checks and completes by it::

    xfer schema >experiment.schema.json
    # yaml-language-server: $schema=experiment.schema.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any

from pydantic import TypeAdapter

from xfer.config.catalog import Key, keys, options
from xfer.config.general_keys import STAGES
from xfer.config.help import GROUPS
from xfer.core.types import Plain

_DRAFT = "http://json-schema.org/draft-07/schema#"


def text(folders: Sequence[str]) -> str:
    """The schema as JSON: draft 7, which is what the language servers of editors read."""
    return json.dumps(schema_of(folders), indent=1)


def schema_of(folders: Sequence[str]) -> Plain:
    """The schema of an experiment: the options that its defaults list may choose, and every key
    of every group with its type, range, default and meaning."""
    definitions: Plain = {}
    top: Plain = {"type": "object", "properties": {}, "additionalProperties": False}
    for name, rows in keys(folders).items():
        _put(top, name.split("."), _described(rows, definitions))
    for group in GROUPS:
        if group in top["properties"]:
            top["properties"][group]["properties"]["_target_"] = {"type": "string"}
    top["properties"]["stages"]["anyOf"][0]["items"] = {"enum": list(STAGES)}
    top["properties"]["defaults"] = _defaults(folders)
    top["properties"]["hydra"] = {"type": "object"}
    return {"$schema": _DRAFT, "title": "xfer experiment", **top, "definitions": definitions}


def _put(node: Plain, path: Sequence[str], leaf: Plain) -> None:
    for part in path[:-1]:
        inner = {"type": "object", "properties": {}, "additionalProperties": False}
        node = node["properties"].setdefault(part, inner)
    node["properties"][path[-1]] = leaf


def _described(rows: Sequence[Key], definitions: Plain) -> Plain:
    """The type of one key: that of any option that has it."""
    kinds = []
    for hint in {repr(row.hint): row.hint for row in rows}.values():
        kind = TypeAdapter(hint).json_schema(ref_template="#/definitions/{model}")
        definitions |= _draft_7(kind.pop("$defs", {}))
        kinds.append(_draft_7(kind))
    # Any value may be an interpolation, such as ${optim.lr}.
    interpolation = {"type": "string", "pattern": r"\$\{"}
    defaults = {json.dumps(row.default): row.default for row in rows if row.default is not MISSING}
    known = {"default": next(iter(defaults.values()))} if len(defaults) == 1 else {}
    meanings = dict.fromkeys(row.meaning for row in rows if row.meaning)
    return {"description": "\n".join(meanings), "anyOf": [*kinds, interpolation], **known}


def _draft_7(node: Any) -> Any:
    """What pydantic writes, in the words of draft 7."""
    if isinstance(node, list):
        return [_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    names = {"prefixItems": "items"}
    return {names.get(name, name): _draft_7(inner) for name, inner in node.items()}


def _defaults(folders: Sequence[str]) -> Plain:
    """The list by which an experiment chooses the option of each group."""
    choices: Plain = {}
    for group in GROUPS:
        one = {"enum": [option.name for option in options(group, tuple(folders))]}
        several = {"anyOf": [one, {"type": "array", "items": one}]}
        for name in (f"override /{group}", f"/{group}", group):
            choices[name] = several if group == "export" else one
    chosen = {
        "type": "object",
        "properties": choices,
        "patternProperties": {"hydra/": {"type": "string"}},
        "additionalProperties": False,
    }
    return {"type": "array", "items": {"anyOf": [{"type": "string"}, chosen]}}
