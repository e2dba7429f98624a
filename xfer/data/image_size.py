"""Images so long and narrow that resizing, as the input recipe has it, would make them huge."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from xfer.core.errors import DataError, printable
from xfer.core.types import Dataset, InputSpec, Samples
from xfer.data.dataset import fingerprint
from xfer.data.image import Files
from xfer.data.options import Row
from xfer.data.preprocess import check_size

_SHOWN = 5


class _Huge(NamedTuple):
    """An image by its split and position, and what is wrong with it."""

    split: str
    position: int
    error: DataError


def resizable(dataset: Dataset, spec: InputSpec, on_bad: str) -> Dataset:
    """``dataset`` as it is where ``spec`` makes no image huge; else without those that it does,
    and with a remark, if ``on_bad`` is ``skip``.

    Raises DataError that names the first of them if they are not skipped, and where they are all
    the images of a class in a split.
    """
    huge = [found for split in dataset.splits for found in _huge(dataset, split, spec)]
    if not huge:
        return dataset
    split, position, error = huge[0]
    files = dataset.splits[split].images
    if on_bad != "skip":
        assert isinstance(files, Files)
        more = f"; {len(huge) - 1} more files are like it" if len(huge) > 1 else ""
        fix = f"{error.fix}, or type data.on_bad=skip"
        raise DataError(files.paths[position], error.what + more, fix, 74) from error
    left = {name: _without(dataset, name, huge) for name in dataset.splits}
    names = [dataset.splits[found.split].names[found.position] for found in huge]
    shown = "; ".join(
        f"'{name}': {found.error.what}"
        for name, found in zip(names[:_SHOWN], huge[:_SHOWN], strict=True)
    )
    told = f"skipped {len(huge)} files ({shown}{'; ...' if len(huge) > _SHOWN else ''})"
    return replace(
        dataset,
        splits=left,
        remarks=(*dataset.remarks, printable(told)),
        leaks=tuple(row for row in dataset.leaks if not {*names} & {*row}),
    )


def _huge(dataset: Dataset, split: str, spec: InputSpec) -> list[_Huge]:
    files, found = dataset.splits[split].images, []
    sizes = files.sizes if isinstance(files, Files) and files.scanned else ()
    for i, size in enumerate(sizes):
        try:
            check_size(size, spec)
        except DataError as error:
            found.append(_Huge(split, i, error))
    return found


def _without(dataset: Dataset, split: str, huge: list[_Huge]) -> Samples:
    samples = dataset.splits[split]
    out = {found.position: found for found in huge if found.split == split}
    if not out:
        return samples
    files = samples.images
    assert isinstance(files, Files)
    kept = [i for i in range(len(samples)) if i not in out]
    labels = samples.labels[kept]
    if lost := set(samples.labels.tolist()) - set(labels.tolist()):
        label = min(lost)
        first = next(i for i in out if samples.labels[i] == label)
        raise DataError(
            files.paths[first],
            f"{out[first].error.what}, and class '{dataset.classes[label]}' has no other image in "
            f"{split}",
            "crop it, or add images",
            19,
        )
    names = tuple(samples.names[i] for i in kept)
    classes = [dataset.classes[label] for label in labels]
    rows = [Row(name, label) for name, label in zip(names, classes, strict=True)]
    scanned = tuple(files.scanned[i] for i in kept)
    return Samples(
        names=names,
        labels=np.asarray(labels, np.int64),
        images=Files(
            tuple(files.paths[i] for i in kept),
            files.range,
            scanned,
            tuple(files.sizes[i] for i in kept),
        ),
        sha256=fingerprint(zip(rows, (digest for _, digest in scanned), strict=True)),
    )
