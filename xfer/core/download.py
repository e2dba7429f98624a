"""Files from the web: fetched whole, hashed, unpacked only below their folder."""

from __future__ import annotations

import re
import string
import tempfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from xfer.core.errors import DataError, OutputError, SafetyError, WeightsError
from xfer.core.files import atomic_write, write_json
from xfer.core.http import Manner, Transfer, disk_full, shown

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_MAX_UNPACKED = 4 << 30
_MAX_FILES = 1_000_000

DATA = Manner(DataError, 20)
WEIGHTS = Manner(WeightsError, 50)
RESUMABLE_WEIGHTS = Manner(WeightsError, 50, resumable=True)


def fetch(url: str, target: Path, sha256: str | None = None, manner: Manner = DATA) -> str:
    """Download ``url`` to ``target`` and return its sha256. ``sha256`` may be its first digits.

    https only (plain http on loopback), redirects included. A transfer that is cut or stalls and
    an answer 5xx are tried three times; the transfer resumes where it stopped when the server
    says that the file is the same. Nothing is written to ``target`` but the whole file. Raises
    ``manner``'s error or SafetyError naming the address without its password and query,
    OutputError naming the file.
    """
    _check_address(url, target, manner)
    opener = urllib.request.build_opener(_Redirects(manner))
    part = target.with_name(f"{target.name}.part")
    transfer = Transfer(url, target, part, sha256, manner, opener)
    if not manner.resumable:
        digests: list[str] = []
        atomic_write(target, lambda part: digests.append(replace(transfer, part=part).complete()))
        return digests[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = transfer.complete()
        atomic_write(target, part.replace)
        transfer.mark.unlink(missing_ok=True)
    except OSError as error:
        raise disk_full(target, error.strerror or str(error)) from error
    return digest


def _check_address(url: str, where: object, manner: Manner) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
        if re.search(r"[^!-~]", url):
            raise ValueError("it has a character that must be written as %XX")
    except ValueError as error:
        # The reason would quote the address, and with it a password that made it malformed.
        raise manner.error(
            where, "its source is not a valid address", "use https://...", manner.number + 4
        ) from error
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise SafetyError(shown(url), "only https addresses are opened", "use https://...", 10)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Checks an address before it is asked; https is never left."""

    def __init__(self, manner: Manner = DATA) -> None:
        self.manner = manner

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        if not headers.get("Location"):
            return None  # urllib would follow an unchecked header "URI"
        with closing(fp):
            goal = urllib.parse.urljoin(req.full_url, headers["Location"])
            goal = urllib.parse.quote(goal, safe=string.punctuation, encoding="iso-8859-1")
            _check_address(goal, shown(req.full_url), self.manner)
            if req.type == "https" and not goal.startswith("https:"):
                what = f"leads to {shown(goal)}"
                raise SafetyError(shown(req.full_url), what, "use the final address", 13)
            return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


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
            unpacked = _unpack(archive, Path(staging) / "out", member, shown(url))
            write_json(unpacked / ".origin.json", {"url": shown(url), "sha256": digest})
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
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
        what = f"is not a valid zip archive ({error})"
        raise DataError(url, what, "check the address", 22) from error
    folders = [path for path in out.rglob(member) if path.is_dir() and "__MACOSX" not in path.parts]
    if not folders:
        raise DataError(url, f"holds no folder '{member}'", "check the address", 23)
    return min(folders, key=lambda path: (len(path.parts), path))


def _check_members(packed: zipfile.ZipFile, url: str) -> None:
    entries = packed.infolist()
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        if ".." in name.split("/") or name.startswith("/") or name[1:2] == ":" or is_link:
            what = f"'{entry.filename}' would leave its folder"
            raise SafetyError(url, what, "do not use it", 11)
    total = sum(entry.file_size for entry in entries)
    if total > _MAX_UNPACKED or len(entries) > _MAX_FILES:
        what = f"unpacks to {len(entries)} files of {total} bytes"
        raise SafetyError(url, what, "unpack it yourself", 12)
