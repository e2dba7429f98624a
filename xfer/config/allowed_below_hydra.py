"""What a user's YAML may set below ``hydra``: a short list, since most of it runs code.

Hydra sets environment variables (``XFER_ALLOW`` among them), calls back, and configures logging
with whatever its own part of the configuration says, before xfer sees any of it. Who types an
override has the shell anyway; who is given a folder of YAML files has not read them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from xfer.core.errors import SafetyError

_LAUNCHER = (
    *("slots", "jobs_per_gpu", "persistent", "partition", "account", "qos", "constraint"),
    *("timeout_min", "cpus_per_task", "mem_gb", "tasks_per_node", "gpus_per_node", "nodes"),
    *("array_parallelism", "max_num_timeout", "signal_delay_s", "submitit_folder", "name"),
)
MAY_SET = ("hydra.sweep.dir", "hydra.sweep.subdir", *(f"hydra.launcher.{k}" for k in _LAUNCHER))
MAY_CHOOSE = ("hydra/launcher", "hydra/sweeper")
_FIX = "drop it, or type it on the command line if you know what it does"
_PREFIXES = ("override ", "optional ")
# What an interpolation in a value may be; another could name a part of the file that is a class.
_INNOCENT = re.compile(r"\$\{(oc\.env:|now:|xfer\.unique:|hydra\.(job|runtime|sweep)\.)")


def check(where: str, group: str, name: str, package: str | None, content: Any) -> None:
    """Raise SafetyError for a file of the user that sets more below ``hydra`` than it may.

    ``group`` and ``name`` say where the file lies below its root, ``package`` what its header
    says of its place in the configuration.
    """
    if not isinstance(content, dict):
        return
    place = _place(group, name, package)
    for key, value in _leaves(place, {k: v for k, v in content.items() if k != "defaults"}):
        if key.split(".")[0] == "hydra" and not _is_innocent(key, value):
            raise SafetyError(where, f"may not set '{key}'", _FIX, 30)
    for entry in content.get("defaults") or ():
        _check_entry(where, place, entry)


def check_key(where: str, key: str) -> None:
    """Raise SafetyError for an override of a YAML file that is not of xfer's own part."""
    if re.search(r"(^|[~+@./])hydra([./@=:]|$)", key):
        raise SafetyError(where, f"may not set '{key}'", _FIX, 30)


def _place(group: str, name: str, package: str | None) -> str:
    """The dotted key that the file's content is put below."""
    place = package if package is not None else "_group_"
    place = place.replace("_group_", group.replace("/", ".")).replace("_name_", name)
    return ".".join(part for part in place.split(".") if part and part != "_global_")


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, inner in node.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    elif prefix:
        yield prefix, node


def _is_innocent(key: str, value: Any) -> bool:
    if key not in MAY_SET or isinstance(value, dict | list):
        return False
    text = str(value)
    return text.count("${") == len(_INNOCENT.findall(text))


def _check_entry(where: str, place: str, entry: Any) -> None:
    """Refuse an entry of a file's defaults list that reaches below ``hydra`` otherwise."""
    for key, value in (entry if isinstance(entry, dict) else {str(entry): None}).items():
        text = str(key)
        for prefix in _PREFIXES * 2:
            text = text.removeprefix(prefix)
        option, _, package = text.partition("@")
        chosen = option.lstrip("/")
        if chosen in MAY_CHOOSE and not package and isinstance(value, str | None):
            continue
        inside = place.split(".")[0] == "hydra" and (package or "/" in option)
        named = "hydra" in re.split(r"[./@:]", f"{chosen}.{package}") or "_name_" in package
        if inside or named:
            raise SafetyError(where, f"may not choose '{text}'", _FIX, 30)
