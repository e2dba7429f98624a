"""One file over the network: bounded, hashed, resumed where it was cut.

The clients that we depend on resume too, but they follow redirects before we can check them, set
no bound on size and disk, and take what a server sends later for the same file.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfer.core.errors import OutputError, XferError
from xfer.core.files import handle_of
from xfer.core.live_line import working

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte, or with fewer than _LEAST bytes
_LEAST = 30 << 10
_PAUSES = (1.0, 4.0)  # seconds before the second and the third try
_MAX_BYTES = 32 << 30
_LONGEST_MARK = 1000
_MB = 1_000_000
_RESERVE = 256 << 20  # bytes of the disk that are left free


@dataclass(frozen=True)
class Manner:
    """What a file is fetched as: the class and first number of its errors, and whether a transfer
    that fails leaves its bytes for the next process (``<target>.part``). Such a target must be
    fetched by one process at a time."""

    error: type[XferError]
    number: int
    resumable: bool = False


def shown(url: str) -> str:
    """``url`` without password, query and fragment, any of which may be a secret."""
    return re.split(r"[?#]", re.sub(r"//[^/?#]*@", "//", url), maxsplit=1)[0]


def disk_full(target: Path, reason: str) -> OutputError:
    """The error for a disk that does not take ``target``."""
    return OutputError(target, f"cannot be written ({reason})", "free space, or set XFER_CACHE=DIR")


class _Cut(Exception):
    """A transfer that another try may complete."""


@dataclass(frozen=True)
class Transfer:
    """One address to the file ``part``, in three tries if need be; ``opener`` decides which
    addresses may be asked."""

    url: str
    target: Path
    part: Path
    sha256: str | None
    manner: Manner
    opener: urllib.request.OpenerDirector

    @property
    def mark(self) -> Path:
        """Holds what the server calls the version that ``part`` is of."""
        return self.part.with_name(f"{self.part.name}.mark")

    def complete(self) -> str:
        """Try until ``part`` is whole, and return its sha256."""
        try:
            for pause in _PAUSES:
                try:
                    return self._try_once()
                except _Cut:
                    time.sleep(pause)
            return self._try_once()
        except _Cut as cut:
            raise self._failed(str(cut)) from cut
        finally:
            if not (self.manner.resumable and self.part.is_file()):
                self.mark.unlink(missing_ok=True)

    def _try_once(self) -> str:
        had, digest = 0, hashlib.sha256()
        if self.mark.is_file() and self.part.is_file():
            had = self.part.stat().st_size
            with os.fdopen(handle_of(self.part, follow=False), "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
            if self.sha256 and digest.hexdigest().startswith(self.sha256.lower()):
                return digest.hexdigest()
        with self._open(had) as answer:
            start, end = self._range(answer, had)
            digest = digest if start else hashlib.sha256()
            self._copy(answer, start, end, digest)
        self._check(digest.hexdigest(), start, answer)
        return digest.hexdigest()

    def _open(self, had: int) -> Any:
        parts = urllib.parse.urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(parts._replace(netloc=host).geturl())
        if user:
            secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {secret}")
        if had:
            request.add_header("Range", f"bytes={had}-")
            request.add_header("If-Range", self._marked())
        with self._network_errors():
            return self.opener.open(request, timeout=_TIMEOUT)

    def _range(self, answer: Any, had: int) -> tuple[int, int | None]:
        """Where in the file the answer begins, and the size of the whole file if it is known."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._failed("the server compresses it")
        if answer.status == 200:
            return 0, answer.length
        if answer.status != 206:
            raise self._failed(f"HTTP status {answer.status}")
        text = answer.headers.get("Content-Range", "")
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
        # A server that did not heed If-Range may send another version.
        marks = {answer.headers.get("ETag"), answer.headers.get("Last-Modified")} - {None}
        changed = bool(had and marks) and self._marked() not in marks
        if part is None or int(part[1]) != had or changed:
            self.mark.unlink(missing_ok=True)
            raise _Cut(f"another part or version was sent: {text[:80] or 'no range'}")
        return had, None if part[2] == "*" else int(part[2])

    def _marked(self) -> str:
        with os.fdopen(handle_of(self.mark, follow=False), "rb") as stream:
            return stream.read(_LONGEST_MARK).decode("latin-1")

    def _copy(self, answer: Any, start: int, end: int | None, digest: Any) -> None:
        free = shutil.disk_usage(self.part.parent).free - _RESERVE
        most, size = min(_MAX_BYTES, start + max(free, 0)), start
        if end is not None and end > most:
            raise self._too_large(most, end)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if start else os.O_TRUNC)
        total = None if end is None else (end - start) // _MB + 1
        with (
            # Its name can be guessed: a link there would have the bytes written elsewhere.
            os.fdopen(handle_of(self.part, flags, follow=False), "wb") as out,
            working(f"downloading {self.target.name[:40]}, MB", total) as advance,
        ):
            if not start:
                self._remember(answer)
            for chunk in self._chunks(answer):
                size += len(chunk)
                if size > most:
                    raise self._too_large(most, size)
                digest.update(chunk)
                out.write(chunk)
                advance(len(chunk) / _MB)
        if end is not None and size != end:
            raise _Cut(f"{size} of {end} bytes")

    def _too_large(self, most: int, size: int) -> XferError:
        self.part.unlink(missing_ok=True)
        if most < _MAX_BYTES:
            what = f"it has {size} bytes or more, the disk has space for {most}"
            return disk_full(self.target, what)
        return self._failed(f"it has {size} bytes or more, {most} are allowed")

    def _remember(self, answer: Any) -> None:
        mark = answer.headers.get("ETag", "")
        if not mark.startswith('"'):  # none, or a weak one, which does not promise the same bytes
            mark = answer.headers.get("Last-Modified", "") if self.sha256 else ""
        self.mark.unlink(missing_ok=True)
        if mark.isprintable() and 0 < len(mark) <= _LONGEST_MARK:
            self.mark.write_text(mark, encoding="latin-1")

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        since, got = time.monotonic(), 0
        while True:
            with self._network_errors():
                chunk: bytes = answer.read1(_CHUNK)
                if not chunk and answer.length:
                    raise http.client.IncompleteRead(b"", answer.length)
            if not chunk:
                return
            got += len(chunk)
            if time.monotonic() - since > _TIMEOUT:
                if got < _LEAST:
                    raise _Cut(f"{got} bytes in {_TIMEOUT} s")
                since, got = time.monotonic(), 0
            yield chunk

    def _check(self, sha256: str, start: int, answer: Any) -> None:
        if self.sha256 is None or sha256.startswith(self.sha256.lower()):
            return
        self.part.unlink(missing_ok=True)
        page = ", and it is a web page" * (answer.headers.get_content_type() == "text/html")
        what = f"sha256 is {sha256}, expected {self.sha256}{page}"
        if start:  # the bytes of an earlier try may be at fault
            raise _Cut(what)
        raise self.manner.error(shown(self.url), what, "check the address", self.manner.number + 1)

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Make one line of what the network raises; what the disk raises is not caught here."""
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 416:  # the part is longer than the file
                self.mark.unlink(missing_ok=True)
            if code:
                error.close()  # type: ignore[union-attr]
            reason = error.reason if type(error) is urllib.error.URLError else error
            line = (str(reason).splitlines() or [type(error).__name__])[0][:160]
            # A connection that could not be made, a refusal and a senseless address stay so.
            final = isinstance(error, urllib.error.URLError | ValueError)
            if code >= 500 or code == 416 or not final:
                raise _Cut(line) from error
            raise self._failed(line) from error

    def _failed(self, reason: str) -> XferError:
        return self.manner.error(
            shown(self.url),
            f"cannot be downloaded ({reason})",
            f"put the file at {self.target} yourself",
            self.manner.number,
        )
