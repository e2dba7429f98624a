"""Weights from an address on the web, kept below the cache by their hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfer.core.download import RESUMABLE_WEIGHTS, fetch
from xfer.core.errors import ConfigError, OutputError, WeightsError, XferError
from xfer.core.files import cache_dir, file_sha256, handle_of, read_json, write_json
from xfer.core.http import shown
from xfer.core.locks import Lock, waits
from xfer.core.log import log
from xfer.core.protocols import Backbone
from xfer.weights.content import Weights
from xfer.weights.formats.read import read
from xfer.weights.hub.libraries import recognised
from xfer.weights.source.match_rules import Rules

_SHA256 = "[0-9a-f]{64}"
_UNREACHED = 450
"""The number of the error for an address that gives no file."""


@dataclass(frozen=True)
class Url(Rules):
    """``url`` of a file of weights, https only. ``sha256`` is its hash, 64 hex digits, or ``any``:
    then the first answer is taken, and its hash is logged. ``key`` names the entry to take.

    A password in the address is sent, and neither it nor the query is ever shown.
    """

    url: str = field(repr=False)
    """an https address"""
    sha256: str
    """the hash of the file; ``any`` takes the first answer, prints its hash and pins it"""
    key: str | None = None
    """as for ``file``"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sha256 == "any" or re.fullmatch(_SHA256, self.sha256):
            return
        lower = self.sha256.strip().lower()
        known = re.fullmatch(_SHA256, lower)
        what = f"'{self.sha256[:80]}' is not a sha256: 64 hex digits in lower case"
        fix = f"type source.sha256={lower if known else 'any to learn it'}"
        raise ConfigError("source.sha256", what, fix, 45)

    def load(self, backbone: Backbone) -> Weights:
        """From the cache, else from the web. Raises WeightsError when the file cannot be had or
        read or has another hash, SafetyError for an address that is not https."""
        if self.sha256 == "any":
            path, sha256 = self._first_answer()
        else:
            path, sha256 = _folder() / self.sha256, self.sha256
            with _alone(path):
                if not _sound(path):
                    fetch(self.url, path, self.sha256, RESUMABLE_WEIGHTS)
        try:
            content = read(path, self.key)
        except XferError as error:
            if self.sha256 == "any":  # what the address answers may be mended; ask again then
                self._record().unlink(missing_ok=True)
            error.where = shown(self.url)
            raise
        weights = self.weights("url", content, shown(self.url), sha256)
        return recognised(replace(weights, pinned={"sha256": sha256}), backbone)

    def _first_answer(self) -> tuple[Path, str]:
        """What the address once answered, or answers now, and its sha256."""
        record = self._record()
        with _alone(record):
            sha256 = _recorded(record)
            if not (sha256 and _sound(_folder() / sha256)):
                arrived = record.with_suffix("")
                try:
                    sha256 = fetch(self.url, arrived, None, RESUMABLE_WEIGHTS)
                except WeightsError as error:
                    if error.number == _UNREACHED:
                        # Without a hash nothing says that a file put into the cache is the one.
                        error.fix = "fetch it another way and type source=file source.path=FILE"
                    raise
                arrived.replace(_folder() / sha256)
                write_json(record, {"address": shown(self.url), "sha256": sha256})
        log.info("%s has sha256 %s: pin it with source.sha256=%s", shown(self.url), sha256, sha256)
        return _folder() / sha256, sha256

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
        sha256 = read_json(record)["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return sha256 if isinstance(sha256, str) and re.fullmatch(_SHA256, sha256) else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time fetch ``path``; the lock ends with the process."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = handle_of(lock, os.O_RDWR | os.O_CREAT, follow=False)
        held = Lock(handle, waiting=waits(f"fetches {path.name}"))
    except OSError as error:
        what = f"cannot be locked ({error.strerror or error})"
        raise OutputError(lock, what, "set XFER_CACHE=DIR", 5) from error
    with held:
        yield
