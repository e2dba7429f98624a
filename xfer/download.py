"""Files from the public: fetched whole, hashed, unpacked only below their folder."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from xfer.errors import DataError, OutputError, SafetyError
from xfer.storage import atomic_write, write_json

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_MAX_UNPACKED = 4 << 30
_MAX_FILES = 1_000_000


def fetch(url: str, target: Path, sha256: str | None = None) -> str:
    """Download ``url`` to ``target`` and return its sha256.

    https only (plain http on loopback), redirects included. A cut transfer or a wrong hash leaves
    nothing behind. Raises DataError or SafetyError naming the address, OutputError naming the
    file.
    """
    _check_address(url)
    found = ""

    def write(part: Path) -> None:
        nonlocal found
        found = _stream(url, part, target)
        if sha256 is not None and found != sha256.lower():
            raise DataError(url, f"sha256 is {found}, expected {sha256}", "check the address", 21)

    atomic_write(target, write)
    return found


def _check_address(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DataError(url, f"is no address ({error})", "use https://...", 24) from error
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SafetyError(url, "only https addresses are opened", "use https://...", 10)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Checks an address before it is asked; https is never left."""

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        goal = urllib.parse.urljoin(req.full_url, headers.get("Location", ""))
        with closing(fp):
            _check_address(goal)
            if req.type == "https" and not goal.startswith("https:"):
                raise SafetyError(req.full_url, f"leads to {goal}", "use the final address", 13)
            return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _stream(url: str, part: Path, target: Path) -> str:
    from tqdm import tqdm

    digest = hashlib.sha256()
    with _told(url, target):
        answer = urllib.request.build_opener(_Redirects).open(url, timeout=_TIMEOUT)
    bar = {
        "desc": target.name,
        "unit": "B",
        "unit_scale": True,
        "delay": 1,
        "leave": False,
        "disable": None,
    }
    with answer, part.open("wb") as out, tqdm(total=answer.length, **bar) as progress:
        while chunk := _read(answer, url, target):
            digest.update(chunk)
            out.write(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def _read(answer: Any, url: str, target: Path) -> bytes:
    with _told(url, target):
        chunk: bytes = answer.read(_CHUNK)
        if not chunk and answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        return chunk


@contextmanager
def _told(url: str, target: Path) -> Iterator[None]:
    """What the network raises as one line; what the disk raises is not caught here."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DataError(
            url, f"cannot be downloaded ({reason})", f"put the file at {target} yourself", 20
        ) from error


def fetch_zip(url: str, folder: Path, member: str, sha256: str | None = None) -> str:
    """Download an archive and put its folder ``member`` at ``folder``; return the archive's sha256.

    The hash is written to ``folder/.origin.json``. Entries that would leave the folder, links and
    archives over 4 GiB unpacked are refused. ``folder`` appears whole or not at all.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as staging:
            archive = Path(staging) / "archive.zip"
            digest = fetch(url, archive, sha256)
            found = _unpack(archive, Path(staging) / "out", member, url)
            write_json(found / ".origin.json", {"url": url, "sha256": digest})
            if not folder.exists():  # another process may have been faster
                found.rename(folder)
    except OSError as error:
        raise OutputError(
            folder, f"cannot be written ({error.strerror or error})", "choose another folder"
        ) from error
    return digest


def _unpack(archive: Path, out: Path, member: str, url: str) -> Path:
    try:
        with zipfile.ZipFile(archive) as packed:
            _check_members(packed, url)
            packed.extractall(out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(
            url, f"is no sound zip archive ({error})", "check the address", 22
        ) from error
    found = [path for path in out.rglob(member) if path.is_dir() and "__MACOSX" not in path.parts]
    if not found:
        raise DataError(url, f"holds no folder '{member}'", "check the address", 23)
    return min(found, key=lambda path: (len(path.parts), path))


def _check_members(packed: zipfile.ZipFile, url: str) -> None:
    entries = packed.infolist()
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        if ".." in name.split("/") or name.startswith("/") or name[1:2] == ":" or is_link:
            raise SafetyError(
                url, f"'{entry.filename}' would leave its folder", "do not use it", 11
            )
    total = sum(entry.file_size for entry in entries)
    if total > _MAX_UNPACKED or len(entries) > _MAX_FILES:
        raise SafetyError(
            url, f"unpacks to {len(entries)} files of {total} bytes", "unpack it yourself", 12
        )
