"""Files of repositories that speak the Hugging Face hub's protocol, pinned to a commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from xfer.core.errors import ConfigError, OutputError, WeightsError
from xfer.core.files import file_sha256
from xfer.core.log import hush_hub_client, log

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,199}", re.ASCII)
NOT_ASKED = "cannot be downloaded (source.local_files_only=true)"
_FILE = re.compile(r"[^\\:*?\"<>|@]{1,255}")


@dataclass(frozen=True)
class Address:
    """``repo`` is ``owner/name``; ``files`` are tried in order, the first that is there is meant;
    ``revision`` a branch, tag or commit. Raises ConfigError for names that no repository has."""

    repo: str
    files: tuple[str, ...]
    revision: str = "main"

    def __post_init__(self) -> None:
        owner, _, name = self.repo.partition("/")
        unsound = [n for n in (owner, name) if not _NAME.fullmatch(n) or ".." in n or "--" in n]
        if unsound:
            raise _unsound("source.path", self.repo, "repository", "hf://OWNER/REPO/FILE")
        for file in self.files:
            if not _FILE.fullmatch(file) or not file.isprintable() or not _relative(file):
                raise _unsound("source.path", file, "file", "hf://OWNER/REPO/FILE")
        if not _REVISION.fullmatch(self.revision) or not _relative(self.revision):
            raise _unsound("source.revision", self.revision, "revision", "a branch, tag or commit")

    @property
    def shown(self) -> str:
        """As people write it."""
        return f"hf://{self.repo}/{self.files[0]}"


@dataclass(frozen=True)
class HubFile:
    """``file`` of the address is at ``path``, as it was in the commit ``revision``."""

    path: Path
    file: str
    revision: str


def parse(text: str) -> tuple[str, str | None, str | None]:
    """Repository, file and revision of ``hf://owner/repo/file@revision``; without a file it is the
    model that timm opens there."""
    parts = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:/([^@]+))?(?:@([^@]+))?", text)
    if parts is None:
        raise _unnamed(text, "a repository, or a file of one", "hf://OWNER/REPO, ")
    return parts[1], parts[2], parts[3]


def file_at(key: str, text: str) -> Path:
    """The file that ``key`` names as ``hf://owner/repo/file@revision``, as :func:`find` has it.

    Raises ConfigError for a text that names none, and as :func:`find`.
    """
    try:
        repo, file, revision = parse(text)
        if file is None:
            raise _unnamed(text, "a file of a repository", "")
        address = Address(repo, (file,), revision or "main")
    except ConfigError as error:
        error.where = key
        raise
    try:
        path = find(address).path
    except WeightsError as error:
        if "source" in error.fix:
            error.fix = f"check the name, connect, or type {key}=FILE"
        raise
    checked_sha256(path)
    return path


def _unnamed(text: str, what: str, form: str) -> ConfigError:
    fix = f"write {form}hf://OWNER/REPO/FILE or hf://OWNER/REPO/FILE@REVISION"
    return ConfigError("source.path", f"'{text[:160]}' does not name {what}", fix, 46)


def _relative(path: str) -> bool:
    return not {"", ".", ".."} & set(path.split("/")) and ".." not in path


def _unsound(key: str, name: str, what: str, form: str) -> ConfigError:
    return ConfigError(key, f"'{name[:160]}' cannot be a {what}", f"write {form}", 47)


def find(address: Address, local_files_only: bool = False) -> HubFile:
    """The file of ``address``, from the client's cache or from the hub.

    A cached commit is used without a request. A branch or tag is asked for; where the hub cannot
    be reached, what the cache last knew of it is used, and the log says so. With
    ``local_files_only`` nothing is asked. Raises WeightsError, with a number a cause.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    hush_hub_client()
    cached = _cached(address)
    if cached and (local_files_only or _COMMIT.fullmatch(address.revision)):
        return cached
    if local_files_only:
        raise unreachable(address.shown, NOT_ASKED)
    for file in address.files:
        try:
            # What the revision is now. The download itself would hide that nobody answered.
            url = hf_hub_url(address.repo, file, revision=address.revision)
            if not _COMMIT.fullmatch(get_hf_file_metadata(url).commit_hash or ""):
                raise ValueError("the server names no commit, so it is not a hub")
            path = hf_hub_download(address.repo, file, revision=address.revision)
        except Exception as error:  # the client raises many kinds, none of them xfer's bug
            absent = isinstance(error, EntryNotFoundError)
            if absent and not isinstance(error, LocalEntryNotFoundError):
                continue
            return _instead(error, address, cached)
        return _in_cache(Path(path), file)
    what = f"revision '{address.revision}' has no such file"
    raise WeightsError(address.shown, what, "check the name, or give another source.revision", 57)


def _cached(address: Address) -> HubFile | None:
    # hf_hub_download(local_files_only=True) asks the hub for a list to put into its user agent.
    from huggingface_hub import try_to_load_from_cache

    for name in address.files:
        try:
            path = try_to_load_from_cache(address.repo, name, revision=address.revision)
        except (OSError, ValueError):  # a cache that somebody damaged
            continue
        if isinstance(path, str):
            file = _in_cache(Path(path), name)
            if _COMMIT.fullmatch(file.revision):
                return file
    return None


def _in_cache(path: Path, file: str) -> HubFile:
    return HubFile(path, file, path.parents[file.count("/")].name)


def _instead(error: Exception, address: Address, cached: HubFile | None) -> HubFile:
    """What the cache has, when the hub did not answer. Raises WeightsError when it refused, and
    OutputError when the cache cannot be written."""
    of_network = isinstance(error, ConnectionError | TimeoutError)
    ours = type(error).__module__ == "builtins" and not of_network
    if ours and isinstance(error, OSError) and error.errno:
        what = f"cannot be written ({error.strerror})"
        raise OutputError(
            error.filename or "the cache of the hub", what, "free space, or set HF_HOME=DIR"
        ) from error
    refused = _refusal(error, address)
    if refused or not cached:
        raise refused or unreachable(
            address.shown, f"cannot be downloaded ({brief(error)})"
        ) from error
    log.warning(
        "the hub cannot be reached (%s): %s@%s is taken from the cache as of commit %s",
        *(brief(error), address.shown, address.revision, cached.revision),
    )
    return cached


def _refusal(error: Exception, address: Address) -> WeightsError | None:
    """The hub's refusal as one line, or ``None`` when it did not answer or is out of order."""
    from huggingface_hub import errors

    site = f"https://huggingface.co/{address.repo}"
    token = "set HF_TOKEN to a token that may read it"
    revision = f"there is no revision '{address.revision}'"
    repository = "there is no such repository, or it is private"
    by_kind: tuple[tuple[type[Exception], int, str, str], ...] = (
        (errors.GatedRepoError, 52, "is gated: its owner must let you in", f"ask on {site}"),
        (errors.RevisionNotFoundError, 56, revision, "give another source.revision"),
        (errors.RepositoryNotFoundError, 53, repository, f"check the name, or {token}"),
    )
    for kind, number, what, fix in by_kind:
        if isinstance(error, kind):
            return WeightsError(address.shown, what, fix, number)
    by_status = {
        401: (58, "the hub wants a valid token (HTTP 401)", token),
        403: (59, "the hub denies access (HTTP 403)", token),
        404: (57, "is not there (HTTP 404)", "check the name"),
    }
    number, what, fix = by_status.get(_status(error) or 0, (0, "", ""))
    return WeightsError(address.shown, what, fix, number) if number else None


def checked_sha256(path: Path) -> str:
    """The sha256 of a file in the client's cache, which keeps large files under that name.

    Raises WeightsError when the two differ.
    """
    sha256, name = file_sha256(path), path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name) and name != sha256:
        what = f"sha256 is {sha256}, expected {name}"
        raise WeightsError(path, what, f"delete {path.resolve()}", 51)
    return sha256


def brief(error: Exception) -> str:
    """``error`` in a line, without the queries of addresses: they may be signed."""
    status = _status(error)
    if status is not None:
        return f"HTTP {status}"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'[?][^ ]*', '', first)[:160]}"


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def unreachable(what: str, reason: str) -> WeightsError:
    """The error for weights that are neither in the cache nor, for ``reason``, to be had."""
    what = f"'{what}' is not in the cache and {reason}"
    fix = "connect once, or use source=file source.path=FILE and the backbone=NAME that FILE is of"
    return WeightsError("source", what, fix, 11)
