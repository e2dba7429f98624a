"""A table that comes in blocks of columns, as CSV or parquet; none of them is held."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xfer.core.files import atomic_write
from xfer.core.live_line import counted
from xfer.core.types import Array

_GROUP = 64  # blocks of a row group


class Column(NamedTuple):
    """A part of a column: texts, or an array (n,) of numbers. A name may come twice."""

    name: str
    values: Sequence[str] | Array


def write_blocks(blocks: Iterable[Sequence[Column]], path: Path, count: int) -> None:
    """Write ``count`` ``blocks``, one at least, as the suffix of ``path`` says, atomically.

    In CSV numbers have six decimals, and no text is a formula. Parquet holds texts as they are and
    numbers as float64 or int64. Raises OutputError.
    """
    blocks = counted(blocks, path.name, count)
    if path.suffix == ".parquet":
        atomic_write(path, lambda part: _write_parquet(blocks, part))
    else:
        rows = _rows(blocks)

        def fill(part: Path) -> None:
            # surrogateescape: as write_text has it.
            with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerows(rows)

        atomic_write(path, fill)


def _rows(blocks: Iterable[Sequence[Column]]) -> Iterator[Sequence[object]]:
    for number, block in enumerate(blocks):
        if not number:
            yield [_heading(column.name) for column in block]
        yield from zip(*(_cells(column.values) for column in block), strict=True)


def _heading(name: str) -> str:
    """With the name of a class as its column of texts has it."""
    class_name = name.removeprefix("p_")
    return name.removesuffix(class_name) + cell(class_name)


def _cells(values: Sequence[str] | Array) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return [cell(text) for text in values]
    numbers: list[Any] = values.tolist()
    return [f"{number:.6f}" for number in numbers] if values.dtype.kind == "f" else numbers


def _write_parquet(blocks: Iterable[Sequence[Column]], part: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    def array(values: Sequence[str] | Array) -> Any:
        if isinstance(values, np.ndarray):
            return arrow.array(values)
        # A file name that is no UTF-8, which parquet cannot hold, has its odd bytes written out.
        texts = [text.encode(errors="backslashreplace").decode() for text in values]
        return arrow.array(texts, arrow.string())

    def table(block: Sequence[Column]) -> Any:
        names = [column.name for column in block]
        return arrow.Table.from_arrays([array(column.values) for column in block], names)

    tables = map(table, blocks)
    group = list(itertools.islice(tables, _GROUP))
    with parquet.ParquetWriter(part, group[0].schema) as writer:
        while group:
            writer.write_table(arrow.concat_tables(group))
            group = list(itertools.islice(tables, _GROUP))


def cell(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet runs as a formula."""
    return "'" + text if _FORMULA.match(text) else text


# The four signs also in full width, which some spreadsheets take for the same. Signed numbers, and
# paths below a folder that is called so, are what they are: `-1`, `+1`, `-1/0.jpg`.
_FORMULA = re.compile(r"[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d[\w./ -]*\Z)")
