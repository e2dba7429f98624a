"""Images of shards, tables, lists, data sets and arrays that are asked for without their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xfer.config.verbs import option_of
from xfer.core.text_columns import Texts
from xfer.data import manifest, shards
from xfer.data.arrays import ArrayFiles
from xfer.data.hf import HuggingFace
from xfer.data.image_bytes import ImagePlace
from xfer.data.options import place
from xfer.data.parquet import Parquet

_TABLES = {"parquet": Parquet, "hf": HuggingFace, "arrays": ArrayFiles}


class Unlabelled(NamedTuple):
    """What images are called, where they lie, and remarks."""

    names: Sequence[str]
    places: Sequence[ImagePlace]
    remarks: Sequence[str]


def in_source(path: Path) -> Unlabelled | None:
    """The images of the shards, the table, the list, the data set or the arrays at ``path``,
    of all splits, in the order of their files; ``None`` where there is none of these. What is said
    of their labels is not read.

    Raises DataError as the option of ``data`` does that reads it for training.
    """
    path, suffix = place(str(path)), path.suffix.lower()
    if path.is_file() and suffix in (".csv", ".json"):
        listed = manifest.unlabelled(path)
        return Unlabelled([name for name, _ in listed], [at for _, at in listed], [])
    option = "shards" if path.is_file() and suffix == ".tar" else option_of(path)
    if option == "shards":
        return Unlabelled(*shards.unlabelled(path))
    if not option:
        return None
    listing = _TABLES[option](root=str(path)).listed(None)
    names = Texts(row.name for row in listing.rows)
    return Unlabelled(names, [listing.places[name] for name in names], listing.remarks)
