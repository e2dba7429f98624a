"""Images as shards: plain tar files with an index beside each, written to last.

They come from a folder, a list, parquet files or a data set of the library ``datasets``. The
bytes of the images are copied as they are. Equal folders give equal shards, byte for byte: what
a shard has depends on names, contents and the limit of its size. Each is written to a temporary
name, synced and renamed, then its index, so that a kill at any moment leaves whole shards; those
are kept when the same command is typed again, after their hashes have been compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xfer.config.verbs import override, shell
from xfer.core.errors import (
    CommandError,
    DataError,
    OutputError,
    plural,
    printable,
)
from xfer.core.files import atomic_write, file_sha256, write_json, write_text
from xfer.core.live_line import working
from xfer.core.log import LINES, log
from xfer.core.types import class_name
from xfer.data.folder import Folder
from xfer.data.image import SUFFIXES, open_image, reason_of
from xfer.data.image_bytes import FileSpan, ImagePlace, read_file
from xfer.data.multilabel_rows import classes_of
from xfer.data.options import ImageRow, place
from xfer.data.pack_index import (
    PACK,
    ShardFacts,
    index_file,
    index_name,
    read_index,
    read_pack,
)
from xfer.data.pack_sources import in_json, listed, packable, place_of
from xfer.data.scan import alone
from xfer.data.shards import CLASSES, key_of

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
Places = Mapping[str, ImagePlace]
_SUFFIX_OF = {"JPEG": "jpg", "MPO": "jpg"}  # the others are called as their format
_PART = re.compile(r"\.(.+)\.[^.]+\.part\Z", re.DOTALL)
_AGAIN = "type the same command again: what is finished stays"


class _Image(NamedTuple):
    """An image to pack: what its source calls it, its name in the shard, what the file beside it
    says of its labels, its bytes when it was listed, and its group, empty for none."""

    path: str
    name: str
    label: str
    size: int
    group: str = ""

    @property
    def beside(self) -> str:
        """The name of the file beside it."""
        return f"{self.name.rpartition('.')[0]}.{'json' if self.label.startswith('{') else 'cls'}"


class _Shard(NamedTuple):
    """A shard to write, what will be in it, and the column that groups them, empty for none."""

    path: Path
    images: list[_Image]
    group: str

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each image, where there are some."""
        return tuple(image.group for image in self.images) if self.group else ()


def pack(data: object, out: str, mb: int, several: bool = False) -> Path:
    """Write the images of a source into ``out``, in shards of at most ``mb`` megabytes (1e6 bytes);
    an image that is larger has a shard of its own. Each has a class, or ``several`` labels.

    Returns the folder of the shards. Raises CombinationError as :func:`packable`, CommandError for
    an ``out`` that holds something else or lies in the folder, DataError for images that cannot be
    read, and OutputError.
    """
    data = packable(data)
    root, target = place_of(data), place(out)
    _refuse_nested(root, target)
    with working("listing images"):
        (rows, places, remarks), labels = listed(data, several)
        where = root or target
        if several:
            classes = list(classes_of(labels, where, (), ()))
            said = [in_json(image, classes) for image in labels]
        else:
            classes = sorted({class_name(row.label) for row in rows})
            position = {name: str(i) for i, name in enumerate(classes)}
            said = [position[class_name(row.label)] for row in rows]
        _check_classes(where, classes, several)
        # Of a split that is called otherwise, as validation is, the folder in the shards as well.
        tops = {row.split: row.name.partition("/")[0] for row in rows if isinstance(data, Folder)}
        group = (data.group or "") if data.groups == "COLUMN" else ""
        shards = list(_planned(rows, places, target, said, mb, tops, group))
    # A pack without groups has the hash that it had before there were any, and resumes.
    facts = [
        [str(shard.path.relative_to(target)), [one[: 4 + bool(one.group)] for one in shard.images]]
        for shard in shards
    ]
    plan = hashlib.sha256(json.dumps([classes, facts]).encode()).hexdigest()
    names = [shard.path.relative_to(target).as_posix() for shard in shards]
    with alone(target, "packs images into"):
        _claim(target, plan, shards)
        try:
            write_json(target / PACK, {"plan": plan, "complete": False, "shards": names})
            if not several:  # a list of labels has their names
                write_text(target / CLASSES, "".join(f"{name}\n" for name in classes))
            finished = _write_all(shards, places)
            write_json(target / PACK, {"plan": plan, "complete": True, "shards": names})
        except OutputError as error:
            raise OutputError(error.where, error.what, f"free space, and {_AGAIN}", 0) from error
    _say(target, [len(rows), len(classes), len(shards), finished], remarks, several)
    return target


def _say(target: Path, counts: Sequence[int], remarks: Sequence[str], several: bool) -> None:
    images, classes, shards, finished = counts
    task = ["task=multilabel"] * several
    before = f", {finished} of them finished before and unchanged" if finished else ""
    reads = shell([*task, "data=shards", override("data.root", str(target))])
    tars, are = plural(shards, "shard"), "is" if images == 1 else "are"
    lines = [
        *remarks,
        f"{plural(images, 'image')} of {plural(classes, 'class', 'classes')} {are} in "
        f"{tars}{before}: {printable(target)}",
        f"to train on them: {reads}",
    ]
    log.info("\n".join(lines), extra=LINES)


def _refuse_nested(root: Path | None, out: Path) -> None:
    if root is None:
        return
    one, two = root.resolve(), out.resolve()
    if one.is_relative_to(two) or two.is_relative_to(one):
        what = f"and the folder of the images, {root}, lie in each other"
        raise CommandError("pack.out", what, "give a folder beside it", 30)


def _check_classes(root: Path, classes: Sequence[str], several: bool) -> None:
    for name in classes:
        if several and (name != name.strip() or not name.isprintable()):
            what = f"the label {name!r} would not be read as it is from KEY.json"
            raise DataError(root, what, "rename it", 84)
        if {"\n", "\r", "\ufeff"} & set(name) or not name.strip():
            what = f"the class {name!r} cannot be a line of {CLASSES}"
            raise DataError(root, what, "rename it", 84)


def _planned(
    rows: Sequence[ImageRow],
    places: Places,
    out: Path,
    labels: Sequence[str],
    mb: int,
    tops: Mapping[str, str],
    group: str,
) -> Iterator[_Shard]:
    """The images in their order, cut where a shard would be larger than ``mb``; ``labels`` are what
    is said of each, ``tops`` the folders of splits that are called otherwise, ``group`` the column
    that groups them."""
    names = [_with_suffix(row.name, places[row.name]) for row in rows]
    stems = Counter(name.rpartition(".")[0] for name in names)
    most = mb * 1_000_000 - 2 * _RECORD  # zeros end it, up to a whole record
    for split in dict.fromkeys(row.split for row in rows):
        images: list[_Image] = []
        top = tops.get(split, split) if split else ""
        number = used = 0
        each = zip(rows, names, labels, strict=True)
        for row, whole, label in (one for one in each if one[0].split == split):
            below = whole.removeprefix(f"{top}/") if top else whole
            key = key_of(below, stems[whole.rpartition(".")[0]] > 1)
            name = f"{key}.{below.rpartition('.')[2]}"
            size = _size(places[row.name])
            image = _Image(row.name, name, label, size, row.group)
            cost = _cost(name, size) + _cost(image.beside, len(label))
            if images and used + cost > most:
                yield _Shard(_shard_path(out, top, number), images, group)
                images, number, used = [], number + 1, 0
            images.append(image)
            used += cost
        yield _Shard(_shard_path(out, top, number), images, group)


def _with_suffix(name: str, where: ImagePlace) -> str:
    """The name of an image with a suffix: one that is called by file and row has none."""
    if PurePosixPath(name).suffix.lower() in SUFFIXES:
        return name
    try:
        with open_image(read_file(where)[0]) as image:
            form = str(image.format)
    except Exception as error:  # as in decode
        raise _unreadable(where, error) from error
    return f"{name}.{_SUFFIX_OF.get(form, form.lower())}"


def _shard_path(out: Path, top: str, number: int) -> Path:
    return out / top / f"{top or 'images'}-{number:06d}.tar"


def _cost(name: str, size: int) -> int:
    """No fewer bytes than a member of a shard takes."""
    encoded = os.fsencode(name)
    long = len(encoded) > 100 or not name.isascii()
    header = 1024 + len(encoded) + 2 * _BLOCK if long else 0
    return header + _BLOCK + size + _BLOCK


def _size(where: ImagePlace) -> int:
    try:
        if isinstance(where, Path):
            return where.stat().st_size
        return where.size if isinstance(where, FileSpan) else len(where.read()[0])
    except (OSError, ValueError) as error:
        raise _unreadable(where, error) from error


def _unreadable(where: ImagePlace, error: Exception) -> DataError:
    what = f"cannot be packed ({reason_of(error)})"
    return DataError(where, what, "remove or replace the file", 84)


def _claim(out: Path, plan: str, shards: Sequence[_Shard]) -> None:
    """Make the folder, or see that what is in it is of this very pack, and remove what a kill left
    of a file. Raises CommandError for anything else in it."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise CommandError("pack.out", f"{out} is no folder", "give a new folder", 29)
    try:
        facts = read_pack(out / PACK)
    except DataError as error:
        raise CommandError(
            "pack.out", f"{error.where} {error.what}", "give a new one", 29
        ) from error
    ours = {out / PACK, out / CLASSES, *(shard.path for shard in shards)}
    ours |= {index_file(shard.path) for shard in shards}
    others = [p for p in sorted(out.rglob("*")) if not p.is_dir() and p not in ours]
    parts = [p for p in others if (m := _PART.match(p.name)) and p.with_name(m[1]) in ours]
    odd = [path for path in others if path not in parts]
    if facts is not None and facts.plan != plan:
        what = f"{out} has a pack of other images, or in shards of another size"
        raise CommandError("pack.out", what, "give a new folder, or remove it", 31)
    if odd or (facts is None and others != parts):
        what = f"{out} holds something else, '{(odd or others)[0].relative_to(out)}'"
        raise CommandError("pack.out", what, "give a new folder", 29)
    for path in parts:
        path.unlink(missing_ok=True)


def _write_all(shards: Sequence[_Shard], places: Places) -> int:
    """Write what is not finished; how many shards were finished before."""
    finished = 0
    with working("packing images", sum(len(shard.images) for shard in shards)) as advance:
        for shard in shards:
            if _is_finished(shard, places):
                finished += 1
            else:
                _write(shard, places)
            advance(len(shard.images))
    return finished


def _is_finished(shard: _Shard, places: Places) -> bool:
    """Whether a shard and its index are there and have the bytes that the images have now."""
    try:
        facts = read_index(shard.path)
        if facts is None or file_sha256(shard.path) != facts.sha256:
            return False
    except (DataError, OSError):
        return False  # it is written again
    if [row[0] for row in facts.images] != [index_name(image.name) for image in shard.images]:
        return False
    if (facts.group, facts.groups) != (shard.group, shard.groups):
        return False
    hashes = [row[3] for row in facts.images]
    each = zip(shard.images, hashes, strict=True)
    return all(
        hashlib.sha256(_bytes(places, image)).hexdigest() == digest for image, digest in each
    )


def _write(shard: _Shard, places: Places) -> None:
    """Write a shard, then its index."""
    facts: list[ShardFacts] = []
    atomic_write(shard.path, lambda part: facts.append(_fill(part, shard.images, places)))
    of_all = facts[0]._replace(group=shard.group, groups=shard.groups)
    text = json.dumps(of_all._asdict(), separators=(",", ":"))
    write_text(index_file(shard.path), text + "\n")


def _fill(part: Path, images: Sequence[_Image], places: Places) -> ShardFacts:
    total, at = hashlib.sha256(), 0
    rows: list[tuple[str, int, int, str]] = []
    with part.open("wb") as stream:

        def put(data: bytes) -> None:
            nonlocal at
            total.update(data)
            at += stream.write(data)

        for image in images:
            data = _bytes(places, image)
            put(_header(image.name, len(data)))
            rows.append((index_name(image.name), at, len(data), hashlib.sha256(data).hexdigest()))
            put(data + bytes(-len(data) % _BLOCK))
            label = image.label.encode()
            put(_header(image.beside, len(label)))
            put(label + bytes(-len(label) % _BLOCK))
        put(bytes(2 * _BLOCK + -(at + 2 * _BLOCK) % _RECORD))
    return ShardFacts(at, total.hexdigest(), rows)


def _header(name: str, size: int) -> bytes:
    """The header of a file without an owner or a date."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _bytes(places: Places, image: _Image) -> bytes:
    """An image as it was when it was listed. Raises DataError where it is not."""
    path = places[image.path]
    try:
        data, stamp = read_file(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stamp or len(data) != image.size:
        what = "has changed since it was listed"
        fix = f"leave the images alone while they are packed, and {_AGAIN}"
        raise DataError(path, what, fix, 84)
    return data
