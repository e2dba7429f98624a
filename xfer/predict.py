"""Which files are predicted, and the table of the answers. No torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xfer.bit_depth import told as told_range
from xfer.data.tree import Tree, is_hidden
from xfer.errors import DataError, XferError, printable
from xfer.images import SUFFIXES, Files, examine
from xfer.log import log
from xfer.storage import write_text
from xfer.types import PixelRange, Predictions, Samples


def find(inputs: Sequence[str], over: PixelRange | None = None) -> Samples:
    """Image files named by folders (walked as training walks them), files or glob patterns,
    sorted, without labels (-1). What is broken or left out is counted in a warning.

    ``over`` is the range of files of more than 8 bits. Raises DataError when an input names
    nothing, or no file is an image.
    """
    paths = list(dict.fromkeys(path for text in inputs for path in _expand(text)))
    facts = examine(paths, Path.cwd())
    sound = [f for f in facts if not f.problem]
    broken = [f for f in facts if f.problem]
    if not sound:
        what = f"none of {len(paths)} files is an image ({broken[0].path.name}: "
        what += f"{broken[0].problem})"
        raise DataError(inputs[0], what, "give a folder of images", 46)
    if broken:
        shown = "; ".join(f"{printable(f.path)}: {f.problem}" for f in broken[:5])
        log.warning(f"{len(broken)} of {len(paths)} files are broken and left out: {shown}")
    for line in told_range([(f.path, f.reach) for f in sound if f.reach], over)[1:]:
        log.warning(line)
    return Samples(
        names=tuple(str(f.path) for f in sound),
        labels=np.full(len(sound), -1, np.int64),
        images=Files(tuple(f.path for f in sound), over, tuple((f.stamp, f.sha256) for f in sound)),
        sha256="",
    )


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    left_out: list[str] = []
    if path.is_dir():
        tree = Tree(path)
        found = [path / name for name in tree.images("")]
        left_out = tree.remarks()
    elif path.is_file():
        found = [path]
    else:
        found = _matches(path)
    if not found:
        told = "".join(f"; {line}" for line in left_out)
        fix = "give predict.input=FOLDER, FILE or 'GLOB'"
        raise DataError(text, f"names no image file{told}", fix, 44)
    for line in left_out:
        log.warning(f"{printable(text)}: {line}")
    return found


def _matches(pattern: Path) -> list[Path]:
    """The image files that a pattern names; hidden ones only where it says so itself."""
    root = Path(pattern.anchor) if pattern.is_absolute() else Path()
    relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    named = set(relative.parts)
    return [
        path
        for path in sorted(root.glob(str(relative)))
        if path.is_file() and path.suffix.lower() in SUFFIXES
        and not any(is_hidden(part) for part in path.parts if part not in named | {".."})
    ]  # fmt: skip


def tell_broken(broken: Sequence[XferError], count: int) -> None:
    """Count what only decoding found to be broken, in a warning; raise when it is all ``count``."""
    if len(broken) == count:
        raise broken[0]
    if broken:
        log.warning(f"{len(broken)} of {count} files are broken and left out: {broken[0]}")


def told(found: Predictions, path: Path) -> list[str]:
    """The answers for people: the first 20, and where all of them are."""
    chosen, confidence = found.logits.argmax(axis=1), found.probabilities.max(axis=1)
    shown = zip(found.names[:20], chosen, confidence, strict=False)
    lines = [f"{name}: {found.classes[top]} ({sure:.3f})" for name, top, sure in shown]
    return [*lines, f"{len(found.names)} predictions in {path}"]


def write_predictions(predictions: Predictions, path: Path) -> None:
    """A CSV row an image: ``path, label, prediction, confidence, p_<class>...``.

    ``label`` is left out where it is unknown. Names that a spreadsheet would run as a formula
    get a leading apostrophe, in the names of the columns as well; ``-1`` and ``+1`` do not.
    """
    probabilities, classes = predictions.probabilities, predictions.classes
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labels = [] if predictions.labels is None else ["label"]
    writer.writerow(
        ["path", *labels, "prediction", "confidence", *(f"p_{cell(c)}" for c in classes)]
    )
    for i, (name, row) in enumerate(zip(predictions.names, probabilities, strict=True)):
        top = int(np.argmax(predictions.logits[i]))
        known = [] if predictions.labels is None else [cell(classes[predictions.labels[i]])]
        numbers = [f"{p:.6f}" for p in row]
        writer.writerow([cell(name), *known, cell(classes[top]), f"{row[top]:.6f}", *numbers])
    write_text(path, text.getvalue())


def cell(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet runs as a formula."""
    return "'" + text if _FORMULA.match(text) else text


# The four signs also in full width, which some spreadsheets take for the same. Signed numbers, and
# paths below a folder that is called so, are what they are: `-1`, `+1`, `-1/0.jpg`.
_FORMULA = re.compile(r"[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d[\w./ -]*\Z)")
