"""Images a second from shards against files: their bytes alone, and decoded.

    python bench/shards.py DIR [COPIES] [REPEATS]

Copies the images of DIR COPIES (20) times into a temporary folder, packs that, and reads both in
turn, REPEATS (5) times each, in the order of names as a plan does and in a random one as an epoch
does. Cold is after the files were dropped from the system's cache, warm without. TMPDIR says which
disk it is about.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xfer.core.types import Dataset
from xfer.data import Folder, Shards
from xfer.data.image import Files, decode
from xfer.data.image_bytes import ImagePlace, TarMember, read_file
from xfer.data.pack import pack

_DECODED = 600  # images: more say nothing more


def places(dataset: Dataset) -> list[ImagePlace]:
    """Where all images are, in the order of their names."""
    named = [
        (name, path)
        for samples in dataset.splits.values()
        if isinstance(samples.images, Files)
        for name, path in zip(samples.names, samples.images.paths, strict=True)
    ]
    return [path for _, path in sorted(named, key=lambda pair: pair[0])]


def drop(some: Sequence[ImagePlace]) -> None:
    """Have the files no longer in the system's cache."""
    for path in {p.shard if isinstance(p, TarMember) else p for p in some}:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def rate(some: Sequence[ImagePlace], read: Callable[[ImagePlace], object], cold: bool) -> float:
    """Images a second."""
    if cold:
        drop(some)
    start = time.perf_counter()
    for place in some:
        read(place)
    return len(some) / (time.perf_counter() - start)


def compare(
    name: str,
    pair: tuple[Sequence[ImagePlace], Sequence[ImagePlace]],
    read: Callable[[ImagePlace], object],
    cold: bool,
    repeats: int,
) -> None:
    """Print the medians, and the median of the ratios of turns that follow each other."""
    rates = []
    for turn in range(repeats):
        both = [rate(pair[i], read, cold) for i in ((0, 1) if turn % 2 else (1, 0))]
        rates.append(both if turn % 2 else both[::-1])
    files, shards = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(b / a for a, b in rates)
    print(f"{name:<26} files {files:>7,.0f}  shards {shards:>7,.0f}  x {ratio:.2f}", flush=True)


def main() -> None:
    root, given = Path(sys.argv[1]), sys.argv[2:]
    copies, repeats = (int(text) for text in given + ["20", "5"][len(given) :])
    with tempfile.TemporaryDirectory(prefix="xfer-shards-") as at:
        os.environ["XFER_CACHE"] = f"{at}/cache"
        for path in (path for path in root.rglob("*") if path.is_file()):
            for i in range(copies):
                copy = Path(at, "in", path.relative_to(root).with_stem(f"{path.stem}-{i}"))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        start = time.perf_counter()
        out = pack(Folder(f"{at}/in"), f"{at}/out", 256)
        packed = time.perf_counter() - start
        os.sync()
        quick = {"leakage": "ignore"}
        one, two = (
            places(spec.dataset(True))
            for spec in (Folder(f"{at}/in", **quick), Shards(str(out), **quick))
        )
        size = sum(path.stat().st_size for path in out.rglob("*.tar")) / 1e6
        print(f"{len(one)} images, {size:.0f} MB, packed in {packed:.1f} s; images a second:")
        mixed = list(range(len(one)))
        random.Random(0).shuffle(mixed)
        orders = {"in order": list(range(len(one))), "at random": mixed}
        for name, order in orders.items():
            pair = [one[i] for i in order], [two[i] for i in order]
            compare(f"bytes, {name}, cold", pair, read_file, True, repeats)
            compare(f"bytes, {name}, warm", pair, read_file, False, repeats)
        few = [one[i] for i in mixed[:_DECODED]], [two[i] for i in mixed[:_DECODED]]
        compare("decoded, at random, warm", few, decode, False, repeats)


if __name__ == "__main__":
    main()
