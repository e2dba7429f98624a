"""Weights from an address on the web, kept below the cache by their hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfer.core.download import KEPT_WEIGHTS, fetch
from xfer.core.errors import ConfigError, OutputError, WeightsError, XferError
from xfer.core.files import cache_dir, file_sha256, handle_of, read_json, write_json
from xfer.core.http import shown
from xfer.core.locks import Lock, waits
from xfer.core.log import log
from xfer.core.protocols import Backbone
from xfer.weights.content import Weights
from xfer.weights.source.match_rules import Rules

_UNREACHED = 450
"""The number of the error for an address that gives no file."""


@dataclass(frozen=True)
class Url(Rules):
    """``url`` of a file of weights, https only. ``sha256`` is its hash, 64 hex digits, or ``any``:
    then the first answer is taken, and its hash is told. ``key`` names the entry to take.

    A password in the address is sent, and neither it nor the query is ever shown.
    """

    url: str = field(repr=False)
    sha256: str
    key: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sha256 == "any" or re.fullmatch("[0-9a-f]{64}", self.sha256):
            return
        lower = self.sha256.strip().lower()
        known = re.fullmatch("[0-9a-f]{64}", lower)
        raise ConfigError(
            "source.sha256",
            f"'{self.sha256[:80]}' is no sha256: 64 hex digits in lower case",
            f"type source.sha256={lower if known else 'any to learn it'}",
            45,
        )

    def load(self, backbone: Backbone) -> Weights:
        """From the cache, else from the web. Raises WeightsError when the file cannot be had or
        read or has another hash, SafetyError for an address that is not https."""
        from xfer.weights.formats.read import read

        path, found = self._any() if self.sha256 == "any" else self._known()
        try:
            content = read(path, self.key)
        except XferError as error:
            if self.sha256 == "any":  # what the address answers may be mended; ask again then
                self._record().unlink(missing_ok=True)
            error.where = shown(self.url)
            raise
        weights = self.weights("url", content, shown(self.url), found)
        return replace(weights, pinned={"sha256": found})

    def _known(self) -> tuple[Path, str]:
        path = _folder() / self.sha256
        with _alone(path):
            if not _sound(path):
                fetch(self.url, path, self.sha256, KEPT_WEIGHTS)
        return path, self.sha256

    def _any(self) -> tuple[Path, str]:
        record = self._record()
        with _alone(record):
            found = _recorded(record)
            if not (found and _sound(_folder() / found)):
                arrived = record.with_suffix("")
                found = self._first(arrived)
                arrived.replace(_folder() / found)
                write_json(record, {"address": shown(self.url), "sha256": found})
        log.info("%s has sha256 %s: pin it with source.sha256=%s", shown(self.url), found, found)
        return _folder() / found, found

    def _first(self, arrived: Path) -> str:
        """Fetch what the address answers to ``arrived``; its sha256."""
        try:
            return fetch(self.url, arrived, None, KEPT_WEIGHTS)
        except WeightsError as error:
            if error.number == _UNREACHED:
                # Without a hash nothing says that a file put into the cache is the one.
                error.fix = "fetch it another way and type source=file source.path=FILE"
            raise

    def _record(self) -> Path:
        """Remembers the hash of what this address once answered."""
        return _folder() / f"address-{hashlib.sha256(self.url.encode()).hexdigest()}.json"


def _folder() -> Path:
    return cache_dir() / "weights"


def _sound(path: Path) -> bool:
    """Whether the cached file is there and is what its name says."""
    if not path.is_file():
        return False
    if file_sha256(path) == path.name:
        return True
    log.warning("%s is damaged: fetching it again", path)
    return False


def _recorded(record: Path) -> str | None:
    try:
        found = read_json(record)["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time fetch ``path``; the lock ends with the process."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = handle_of(lock, os.O_RDWR | os.O_CREAT, follow=False)
        held = Lock(handle, waiting=waits(f"fetches {path.name}"))
    except OSError as error:
        raise OutputError(
            lock, f"cannot be locked ({error.strerror or error})", "set XFER_CACHE=DIR", 5
        ) from error
    with held:
        yield
