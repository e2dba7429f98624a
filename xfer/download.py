"""Files from the public: fetched whole, hashed, unpacked only below their folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

from xfer.errors import DataError, SafetyError
from xfer.storage import write_json

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def fetch(url: str, target: Path, sha256: str | None = None) -> str:
    """Download ``url`` to ``target`` and return its sha256.

    https only (plain http on loopback); a wrong length or hash leaves nothing behind. Raises
    DataError or SafetyError naming the address.
    """
    _check_scheme(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        digest = _stream(url, part)
        if sha256 is not None and digest != sha256:
            raise DataError(url, f"sha256 is {digest}, expected {sha256}", "check the address", 21)
        part.replace(target)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            url, f"cannot be downloaded ({reason})", f"put the file at {target} yourself", 20
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return digest


def _check_scheme(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SafetyError(url, "only https addresses are opened", "use https://...", 10)


def _stream(url: str, part: Path) -> str:
    from tqdm import tqdm

    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, part.open("wb") as out:  # noqa: S310
        _check_scheme(answer.url)  # where redirects ended
        length = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=length or None, desc=part.stem, unit="B", unit_scale=True, delay=1) as bar:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
                bar.update(len(chunk))
        if length and part.stat().st_size != length:
            raise OSError(f"got {part.stat().st_size} of {length} bytes")
    return digest.hexdigest()


def fetch_zip(url: str, folder: Path, member: str, sha256: str | None = None) -> str:
    """Download an archive and put its folder ``member`` at ``folder``; return the archive's sha256.

    The hash is written to ``folder/.origin.json``. Entries that would leave the folder, links and
    archives over 4 GiB unpacked are refused.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as staging:
        archive = Path(staging) / "archive.zip"
        digest = fetch(url, archive, sha256)
        try:
            with zipfile.ZipFile(archive) as packed:
                _check_members(packed, url)
                packed.extractall(Path(staging) / "out")
        except zipfile.BadZipFile as error:
            raise DataError(url, f"is no zip archive ({error})", "check the address", 22) from error
        found = sorted((Path(staging) / "out").rglob(member), key=lambda p: len(p.parts))
        if not found:
            raise DataError(url, f"holds no folder '{member}'", "check the address", 23)
        shutil.move(found[0], folder)
    write_json(folder / ".origin.json", {"url": url, "sha256": digest})
    return digest


def _check_members(packed: zipfile.ZipFile, url: str) -> None:
    total = 0
    for entry in packed.infolist():
        parts = Path(entry.filename.replace("\\", "/")).parts
        is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        if ".." in parts or entry.filename.startswith(("/", "\\")) or is_link:
            raise SafetyError(url, f"'{entry.filename}' would leave its folder", "do not use it", 11)
        total += entry.file_size
    if total > 4 << 30:
        raise SafetyError(url, f"unpacks to {total} bytes; more than 4 GiB", "unpack it yourself", 12)


