"""Images a second from shards, parquet files, data sets and arrays against files.

Copies the images of DIR COPIES times into a temporary folder, writes that in each of the other
forms, and reads files and the other form in turn, REPEATS times each, in the order of names as a
plan does and in a random one as an epoch does: their bytes alone, and decoded. Cold is after the
files were dropped from the system's cache, warm without. TMPDIR says which disk it is about.

Forms: `shards`, as `xfer pack` writes them; `parquet`, uncompressed, as the library datasets writes
images; `packed`, the same compressed with zstd in row groups of 100; `hf`, as `save_to_disk` writes
it; `arrays`, pixels of 224 x 224 in an .npy file against JPEG files of that size.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xfer.core.types import Dataset
from xfer.data import ArrayFiles, Folder, HuggingFace, Parquet, Shards
from xfer.data.image import Files, decode
from xfer.data.image_bytes import ImagePlace, read_file
from xfer.data.pack import pack

_DECODED = 600  # images: more say nothing more
_PIXELS = (224, 224)
FORMS = ("shards", "parquet", "packed", "hf", "arrays")


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
    for path in {p if isinstance(p, Path) else p.file for p in some}:
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
    files, others = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(b / a for a, b in rates)
    print(f"| {name} | {files:,.0f} | {others:,.0f} | {ratio:.2f} |", flush=True)


def copied(root: Path, out: Path, copies: int) -> None:
    for path in (path for path in root.rglob("*") if path.is_file()):
        for i in range(copies):
            copy = out / path.relative_to(root).with_stem(f"{path.stem}-{i}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def rows_of(root: Path) -> dict[str, list[object]]:
    """The columns of a table of the images below ``root``."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path.relative_to(root).as_posix() for path in paths]
    images = [{"bytes": p.read_bytes(), "path": n} for p, n in zip(paths, names, strict=True)]
    splits: list[object] = [name.split("/")[0] for name in names]
    return {"image": list(images), "label": [p.parent.name for p in paths], "split": splits}


def in_parquet(root: Path, out: Path, packed: bool) -> Path:
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table(rows_of(root))
    if packed:
        parquet.write_table(table, out, compression="zstd", row_group_size=100)
    else:
        parquet.write_table(
            table, out, compression="none", use_dictionary=False, row_group_size=1000
        )
    return out


def in_data_set(root: Path, out: Path) -> Path:
    import datasets

    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": text, "split": text})
    datasets.Dataset.from_dict(rows_of(root), features=features).save_to_disk(out)
    return out


def in_array(root: Path, files: Path, out: Path) -> Path:
    """Small JPEG files in ``files``, and their pixels in ``out``."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    pixels = np.lib.format.open_memmap(
        out / "images.npy", "w+", np.uint8, (len(paths), *_PIXELS, 3)
    )
    for i, path in enumerate(paths):
        small = files / path.relative_to(root).with_suffix(".jpg")
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize(_PIXELS).save(small, quality=90)
        pixels[i] = np.asarray(Image.open(small))
    pixels.flush()
    np.save(out / "labels.npy", np.array([path.parent.name for path in paths]))
    np.save(out / "split.npy", np.array([path.relative_to(root).parts[0] for path in paths]))
    return out


def written(form: str, at: Path) -> tuple[Dataset, Dataset]:
    """The files, and the same images in another form; both have been looked through."""
    root, quick = at / "in", {"leakage": "ignore"}
    files = root
    start = time.perf_counter()
    if form == "shards":
        other = Shards(str(pack(Folder(str(root)), str(at / "shards"), 256)), **quick)
    elif form in ("parquet", "packed"):
        path = in_parquet(root, at / f"{form}.parquet", form == "packed")
        other = Parquet(str(path), **quick)
    elif form == "hf":
        other = HuggingFace(str(in_data_set(root, at / "hf")), **quick)
    else:
        files = at / "small"
        (at / "arrays").mkdir()
        other = ArrayFiles(str(in_array(root, files, at / "arrays")), **quick)
    took = time.perf_counter() - start
    os.sync()
    both, plans = [], []
    for spec in (Folder(str(files), **quick), other):
        shutil.rmtree(at / "cache", ignore_errors=True)
        start = time.perf_counter()
        both.append(spec.dataset(True))
        plans.append(f"{time.perf_counter() - start:.1f} s")
    print(f"\n{form}: written in {took:.1f} s; first plan {plans[0]} of files, {plans[1]} of it\n")
    return both[0], both[1]


def measure(form: str, at: Path, repeats: int) -> None:
    one, two = map(places, written(form, at))
    mixed = list(range(len(one)))
    random.Random(0).shuffle(mixed)
    print(f"| {form}, images a second | files | {form} | ratio |\n| --- | --- | --- | --- |")
    for name, order in {"in order": list(range(len(one))), "at random": mixed}.items():
        pair = [one[i] for i in order], [two[i] for i in order]
        # A row group is read for one image: all of them at random would take minutes.
        pair = tuple(some[:_DECODED] for some in pair) if form == "packed" else pair
        compare(f"bytes, {name}, cold", pair, read_file, True, repeats)
        compare(f"bytes, {name}, warm", pair, read_file, False, repeats)
    few = [one[i] for i in mixed[:_DECODED]], [two[i] for i in mixed[:_DECODED]]
    compare("decoded, at random, warm", few, decode, False, repeats)


def main() -> None:
    about = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**about)  # type: ignore[arg-type]
    parser.add_argument("dir", type=Path, metavar="DIR", help="a folder of train and val")
    parser.add_argument("copies", type=int, nargs="?", default=20, metavar="COPIES")
    parser.add_argument("repeats", type=int, nargs="?", default=5, metavar="REPEATS")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["shards"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xfer-shards-") as at:
        os.environ["XFER_CACHE"] = f"{at}/cache"
        copied(asked.dir, Path(at, "in"), asked.copies)
        count = sum(path.is_file() for path in Path(at, "in").rglob("*"))
        print(f"{count} images, {asked.repeats} turns")
        for form in asked.forms:
            measure(form, Path(at), asked.repeats)


if __name__ == "__main__":
    main()
