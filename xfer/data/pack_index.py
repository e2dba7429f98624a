"""What ``xfer pack`` writes beside shards: an index of each, and ``pack.json`` of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xfer.core.errors import DataError
from xfer.core.files import LARGEST, read_json
from xfer.core.read_back import checked

PACK = "pack.json"
_LARGEST_INDEX = 1 << 30


class ShardFacts(NamedTuple):
    """What ``xfer pack`` writes beside a shard: its bytes, their sha256, and of every image the
    name in the shard, the offset, the bytes and their sha256; where images are grouped, by which
    column, and the group of each."""

    bytes: int
    sha256: str
    images: list[tuple[str, int, int, str]]
    group: str = ""
    groups: tuple[str, ...] = ()


class PackFacts(NamedTuple):
    """What ``xfer pack`` writes into ``pack.json``: which images are packed, as one hash, whether
    all of them are in their shards by now, and the shards."""

    plan: str
    complete: bool
    shards: list[str]


def check_pack(root: Path, tars: Mapping[str, Sequence[Path]]) -> None:
    """Raise DataError where ``xfer pack`` has not ended, or has written other shards than there
    are."""
    path = root / PACK
    facts = read_pack(path)
    if facts is None:
        return
    if not facts.complete:
        what = "says that packing has not ended"
        raise DataError(path, what, "type the same xfer pack again: it resumes", 83)
    there = {tar.relative_to(root).as_posix() for some in tars.values() for tar in some}
    if odd := sorted(there ^ set(facts.shards)):
        what, fix = f"does not name the shard '{odd[0]}'", "put it right, or remove pack.json"
        if odd[0] in facts.shards:
            what = f"names the shard '{odd[0]}', and it is not there"
            fix = "copy it there too, or pack the images again"
        raise DataError(path, what, fix, 83)


def read_pack(path: Path) -> PackFacts | None:
    """What ``pack.json`` says; ``None`` where there is none. Raises DataError for another file."""
    facts: PackFacts | None = _written(path, PackFacts)
    return facts


def index_file(shard: Path) -> Path:
    """The index that ``xfer pack`` writes beside a shard."""
    return shard.with_suffix(".index.json")


def index_name(name: str) -> str:
    """``name`` as an index has it, where bytes that are no UTF-8 are escaped: JSON has none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_index(shard: Path) -> ShardFacts | None:
    """What the index beside ``shard`` says; ``None`` where there is none. Raises DataError for
    another file in its place."""
    facts: ShardFacts | None = _written(index_file(shard), ShardFacts, _LARGEST_INDEX)
    return facts


def _written(path: Path, kind: type, most: int = LARGEST) -> Any:
    try:
        return checked(kind, read_json(path, most))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        what = f"is not what xfer pack writes ({getattr(error, 'strerror', None) or error})"
        raise DataError(path, what, "pack the images again, or remove that file", 83) from error
