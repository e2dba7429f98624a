"""Whether what an earlier run has made would come out the same now: facts for keys of a cache."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xfer.core.files import file_sha256
from xfer.core.types import Plain


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each of ``distributions``; ``None`` where there is none."""
    installed: dict[str, str | None] = dict.fromkeys(distributions)
    for name in installed:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def surroundings(distributions: Iterable[str], rooms: tuple[str, ...]) -> Plain:
    """What code computes with: Python, the versions of ``distributions``, and the code of xfer in
    the packages ``rooms``."""
    return {
        "python": list(sys.version_info[:3]),
        "versions": versions(distributions),
        "code": code_of(rooms),
    }


def arithmetic() -> Plain:
    """What the last bits of a network's answers on the CPU depend on."""
    import torch

    return {
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


@cache
def code_of(rooms: tuple[str, ...]) -> str:
    """The sha256 of the modules of xfer in ``rooms``: a checkout changes under one version."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for room in rooms:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
