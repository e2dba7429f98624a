"""Which files are predicted, the answers batch by batch, and their table. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image as PIL

from xfer.core.errors import DataError, DivergedError, XferError, printable
from xfer.core.files import atomic_write, output_errors, path_problem
from xfer.core.log import log
from xfer.core.long_array import zeros
from xfer.core.text_columns import Made, Picked
from xfer.core.types import BLOCK, PixelRange, Predictions, Samples
from xfer.data.bit_depth import range_remarks
from xfer.data.image import SUFFIXES, broken_image, to_rgb
from xfer.data.image_bytes import ImagePlace
from xfer.data.image_places import FilesBelow, lasting
from xfer.data.scan import examine
from xfer.data.scan_cache import positions_but
from xfer.data.unlabelled import in_source
from xfer.data.walk import NO_IMAGE, Tree, is_hidden, note_lines
from xfer.evaluation.certificate_answers import certificate_columns, words_beside
from xfer.evaluation.metrics import FEW
from xfer.evaluation.multilabel_predictions import label_columns, label_summary, views_column
from xfer.evaluation.table_file import Column, write_blocks

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.core.types import Array

Batch = TypeVar("Batch")
LOGITS = "logits_val.npy"
"""The exact answers of the run of one fold, for the run that pools them."""


def find(inputs: Sequence[str], over: PixelRange | None = None) -> Samples:
    """Image files named by folders (walked as training walks them), files or glob patterns,
    sorted, or the images of one table, data set or folder of shards or arrays
    (:func:`xfer.data.unlabelled.in_source`); without labels (-1). What is broken or left out is
    counted in a warning.

    ``over`` is the range of files of more than 8 bits. Raises DataError when an input names
    nothing, or no file is an image.
    """
    given = [_named(text) for text in inputs]
    names, paths = given[0]
    if len(given) > 1:
        paths = list(dict.fromkeys(itertools.chain.from_iterable(some for _, some in given)))
        names = _called(paths)
    facts = examine(paths, Path.cwd())
    broken = facts.broken
    if len(broken) == len(facts):
        first, reason = broken[0].path, str(broken[0].problem)
        error = broken_image(first, reason)
        if len(paths) == 1:
            raise error
        what = f"none of {len(paths)} files is an image ({first.name}: {reason})"
        raise DataError(inputs[0], what, f"{error.fix}, or give a folder of images", 46)
    if broken:
        _warn("broken", [(file.path, file.problem) for file in broken], len(paths))
    for line in range_remarks(facts.deep, over)[1:]:
        log.warning(line)
    sound = positions_but(len(paths), facts.problems)
    return Samples(
        names=Picked(names, sound),
        labels=np.full(len(sound), -1, np.int64),
        images=facts.files(sound, over, lasting(paths)),
        sha256="",
    )


def _called(paths: Sequence[ImagePlace]) -> Sequence[str]:
    return Made(len(paths), partial(_name_of, paths))  # which other ranks can be sent


def _name_of(paths: Sequence[ImagePlace], position: int) -> str:
    return str(paths[position])


def pictures(given: Any) -> Samples:
    """Pictures in memory as samples without labels, called by their position.

    Raises DataError for what is no picture.
    """
    many = isinstance(given, np.ndarray) and given.ndim == 4
    many = many or (isinstance(given, Sequence) and not isinstance(given, bytes))
    images = [_picture(item, i) for i, item in enumerate(given if many else [given])]
    names = tuple(f"image {i}" for i in range(len(images)))
    return Samples(names, np.full(len(images), -1, np.int64), images, sha256="")


def _picture(item: Any, position: int) -> Image:
    where = f"image {position}"
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        plain = item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (3, 4))
        item = PIL.fromarray(item) if plain and 0 not in item.shape else item
    if isinstance(item, PIL.Image):
        try:
            return to_rgb(item)
        except Exception as error:  # as in images.decode
            raise DataError(where, f"cannot be used ({error})", "give an RGB image", 63) from error
    if isinstance(item, str | Path):
        raise DataError(where, "is a path between pictures", "give either paths or pictures", 63)
    shape = f" {item.dtype} {item.shape}" if isinstance(item, np.ndarray) else ""
    what = f"is neither a path nor a picture: {type(item).__name__}{shape}"
    fix = "give paths, PIL images, or uint8 arrays (height, width) or (height, width, 3)"
    raise DataError(where, what, fix, 63)


def _named(text: str) -> tuple[Sequence[str], Sequence[ImagePlace]]:
    """What the images that ``text`` names are called, and where they are; what else it names is a
    warning."""
    fix = "give predict.input=FOLDER, FILE or 'GLOB'"
    images: Sequence[ImagePlace]
    left_out: list[str] = []
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            images, left_out = _walked(path)
        else:
            images, left_out = ([path], []) if path.is_file() else _matches(path)
        # A folder of images is that, whatever lies beside them.
        source = in_source(path) if path.is_file() or not images else None
    except (OSError, ValueError, RuntimeError) as error:
        # Too long, a NUL, an unknown home folder, or stars that pathlib does not take.
        reason = path_problem(text) or getattr(error, "strerror", None) or str(error)
        raise DataError(text[:200], f"cannot be searched for ({reason})", fix, 44) from error
    if source:
        for line in source.remarks:
            log.info(f"{printable(text)}: {line}")
        return source.names, source.places
    if not images:
        raise DataError(text, "; ".join(["names no image file", *left_out]), fix, 44)
    for line in left_out:
        log.warning(f"{printable(text)}: {line}")
    return _called(images), images


def _walked(folder: Path) -> tuple[FilesBelow, list[str]]:
    """The images below a folder, as training walks it, and what it leaves out."""
    tree = Tree(folder)
    return FilesBelow(folder, tree.images("")), tree.remarks()


def _matches(pattern: Path) -> tuple[list[Path], list[str]]:
    """The image files that a pattern names, and what else it names; hidden ones only where it
    says so itself. What ``**`` stands for is walked as any folder."""
    root = Path(pattern.anchor) if pattern.is_absolute() else Path()
    parts = pattern.relative_to(pattern.anchor).parts

    def globbed(parts: Sequence[str]) -> list[Path]:
        return sorted(root.glob(str(Path(*parts)))) if parts else [root]

    stars = parts.index("**") if "**" in parts else len(parts)
    rest = parts[stars + 1 :]
    if rest and not any(part == "**" or is_hidden(part) for part in rest):
        images: list[Path] = []
        lines: list[str] = []
        for folder in globbed(parts[:stars]):
            if folder.is_dir() and _why_not(folder, parts) != "hidden":
                inside, remarks = _walked(folder)
                within = [name for name in inside.names if Path(name).match(str(Path(*rest)))]
                images += [folder / name for name in within]
                lines += remarks
        return images, list(dict.fromkeys(lines))
    reasons = {path: _why_not(path, parts) for path in globbed(parts)}
    notes = {str(path): f"left out ({why})" for path, why in reasons.items() if why}
    return [path for path, why in reasons.items() if not why], note_lines(notes)


def _why_not(path: Path, named: Sequence[str]) -> str:
    """Why a path that a pattern names is not predicted; empty for an image."""
    if any(is_hidden(part) for part in path.parts if part not in {*named, ".."}):
        return "hidden"
    if path.is_dir():
        return "folders, which a pattern does not enter: name them"
    return "" if path.suffix.lower() in SUFFIXES else NO_IMAGE


def _warn(what: str, some: Sequence[tuple[object, str | None]], count: int) -> None:
    shown = [f"{printable(file)}: {why}" for file, why in some[:5]]
    shown += [f"{len(some) - 5} more"] * (len(some) > 5)
    are = f"{len(some)} of {count} files {'is' if len(some) == 1 else 'are'}"
    log.warning(f"{are} {what} and left out: {'; '.join(shown)}")


def warn_of_broken(broken: Sequence[XferError], count: int) -> None:
    """Count the files in a warning that :func:`find` took for sound and decoding did not; raise
    when it is all ``count``."""
    if len(broken) == count:
        raise broken[0]
    if broken:
        _warn("broken inside", [(error.where, error.what) for error in broken], count)


def predict_split(
    run: Callable[[Batch], npt.NDArray[np.float32]],
    batches: Iterable[tuple[Batch | None, Sequence[XferError | None]]],
    samples: Samples,
    classes: tuple[str, ...],
    broken: list[XferError] | None = None,
) -> Predictions:
    """The answers of ``run`` to ``batches``, which hold every image of ``samples`` once and in
    order, whatever it is that answers.

    A batch is what could be decoded of it, ``None`` where nothing could, with the error or
    ``None`` of each of its images. Errors are added to ``broken``; where there is no such list,
    the first one is raised. Raises DivergedError for an answer that is not finite.
    """
    answered = answers_of(run, batches, range(len(samples)), len(classes), broken)
    return predictions(samples, *answered, classes)


def answers_of(
    run: Callable[[Batch], npt.NDArray[np.float32]],
    batches: Iterable[tuple[Batch | None, Sequence[XferError | None]]],
    span: range,
    classes: int,
    broken: list[XferError] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """As :func:`predict_split`, of ``batches`` that hold the images at the positions ``span``: the
    positions (n,) of those that were decoded, and their logits (n, classes), finite or not."""
    decoded = bytearray()

    def answered() -> Iterator[npt.NDArray[np.float32]]:
        for batch, errors in batches:
            failed = [error for error in errors if error is not None]
            if failed and broken is None:
                raise failed[0]
            if broken is not None:
                broken.extend(failed)
            decoded.extend(error is None for error in errors)
            if batch is not None:
                yield run(batch)

    logits = stacked(answered(), len(span), classes)
    return span.start + np.flatnonzero(np.frombuffer(decoded, bool)), logits


def stacked(
    batches: Iterable[npt.NDArray[np.float32]], count: int, classes: int
) -> npt.NDArray[np.float32]:
    """``batches`` of logits, float32 (n, classes), after each other, ``count`` rows at most."""
    logits, rows = np.empty((0, classes), np.float32), 0
    for batch in batches:
        logits = logits if rows else zeros((count, batch.shape[1]), np.float32)
        logits[rows : rows + len(batch)] = batch
        rows += len(batch)
    return logits[:rows]


def predictions(
    samples: Samples,
    at: npt.NDArray[np.integer],
    logits: npt.NDArray[np.float32],
    classes: tuple[str, ...],
) -> Predictions:
    """``logits`` float32 (n, classes) as the answers on the images ``at`` these positions. Raises
    DivergedError where one is not finite."""
    names = samples.names if len(at) == len(samples) else Picked(samples.names, at)
    for start in range(0, len(logits), BLOCK):
        sound = np.isfinite(logits[start : start + BLOCK]).all(axis=1)
        if not sound.all():
            name = names[start + int(np.flatnonzero(~sound)[0])]
            raise DivergedError(name, "the network answers NaN or Inf", "use another checkpoint", 1)
    labels = samples.labels[at]
    # Of several labels an image some may be unknown; of one, then all are.
    known = labels.ndim == 2 or (labels >= 0).all()
    return Predictions(names, logits, labels if known else None, classes)


def mean_over_views(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits (n, views, classes) as the logarithms of the probabilities' mean over the views,
    float32 (n, classes): their softmax is that mean. NaN where a view is not finite."""
    with np.errstate(invalid="ignore"):
        z = logits.astype(np.float64)
        z -= z.max(axis=2, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=2, keepdims=True))
        # The largest is taken out: the mean of probabilities too small for float64 has a logarithm.
        top = z.max(axis=1, keepdims=True)
        mean = np.log(np.exp(z - top).mean(axis=1)) + top[:, 0]
    mean[~np.isfinite(logits).all(axis=(1, 2))] = np.nan
    return np.asarray(mean, np.float32)


def summary(answers: Predictions, path: Path) -> list[str]:
    """The answers for people: the first 20, and where all of them are."""
    if answers.task:
        return label_summary(answers, path)
    n, first = len(answers.names), answers.at(range(min(20, len(answers.names))))
    each = f", each the mean over {answers.views} views," if answers.views > 1 else ""
    shown = zip(first.names, first.logits.argmax(axis=1), first.confidence, strict=True)
    lines = [
        f"{name}: {answers.classes[top]} ({sure:.3f}){words_beside(first, i)}"
        for i, (name, top, sure) in enumerate(shown)
    ]
    rest = f"; the first {len(lines)} are shown" if n > len(lines) else ""
    return [*lines, f"{n} prediction{'s' * (n != 1)}{each} in {path}{rest}"]


def write_predictions(
    predictions: Predictions, path: Path, columns: Mapping[str, Sequence[int]] | None = None
) -> None:
    """A row an image: ``path, label, prediction, confidence, p_<class>...``, as CSV or, by the
    suffix of ``path``, parquet; ``columns`` are put after the path, each with an entry a row.

    Above 100 classes, the next four answers stand in place of a column a class: ``top2,
    confidence2, ..., top5, confidence5``. With a certificate, ``set`` has the classes of the
    prediction set and ``p_unlike`` the p-value. Where answers are the mean over several views, a
    last column ``views`` says over how many. ``label`` is left out where it is unknown. In CSV,
    names that a spreadsheet would run as a formula get a leading apostrophe, in the names of the
    columns as well; ``-1`` and ``+1`` do not. Several labels an image have other columns, see
    :func:`xfer.evaluation.multilabel_predictions.label_columns`. Raises OutputError.
    """
    write_blocks(_blocks(predictions, columns or {}), path, -(-len(predictions.names) // BLOCK))


def _blocks(
    predictions: Predictions, beside: Mapping[str, Sequence[int]]
) -> Iterator[Sequence[Column]]:
    start, columns = 0, label_columns if predictions.task else _columns
    for block in predictions.blocks() if len(predictions.names) else [predictions]:
        part = slice(start, start + len(block.names))
        path, *rest = columns(block)
        yield [path, *(Column(name, np.asarray(beside[name][part])) for name in beside), *rest]
        start = part.stop


def _columns(block: Predictions) -> list[Column]:
    classes, shares, first = block.classes, block.probabilities, block.logits.argmax(axis=1)

    def answers(place: str, chosen: Array) -> list[Column]:
        sure = shares[np.arange(len(chosen)), chosen]
        name, number = (
            ("prediction", "confidence") if not place else (f"top{place}", f"confidence{place}")
        )
        return [Column(name, [classes[i] for i in chosen]), Column(number, sure)]

    table = [Column("path", block.names)]
    if block.labels is not None:
        table.append(Column("label", [classes[label] for label in block.labels]))
    table += answers("", first)
    if len(classes) <= FEW:
        table += [Column(f"p_{name}", shares[:, i]) for i, name in enumerate(classes)]
    else:
        for place, chosen in enumerate(_runners_up(block.logits), start=2):
            table += answers(str(place), chosen)
    return [*table, *certificate_columns(block), *views_column(block)]


def write_table(predictions: Predictions, folder: Path, suffix: str) -> Path:
    """Write ``predictions.csv`` or ``.parquet`` into a run's ``folder``. Raises OutputError."""
    path = folder / f"predictions.{suffix}"
    write_predictions(predictions, path)
    return path


def write_logits(predictions: Predictions, folder: Path) -> None:
    """Write the logits of a fold, float32 (n, classes), which the table has rounded to
    probabilities, into a run's ``folder``. Raises OutputError."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, predictions.logits, allow_pickle=False)

    atomic_write(folder / LOGITS, write)


def write_beside(predictions: Predictions, folder: Path, suffix: str) -> Path:
    """Write ``predictions.csv`` or ``.parquet`` into ``folder``, where there is either already
    ``predictions_2`` and so on: each may have a page of its name. What is there is never replaced.
    Raises OutputError where it cannot be written."""
    for number in itertools.count(1):
        path = folder / f"predictions{'' if number == 1 else f'_{number}'}.{suffix}"
        if any(path.with_suffix(other).exists() for other in (".csv", ".parquet")):
            continue
        with output_errors(path), suppress(FileExistsError):
            path.touch(exist_ok=False)
            break
    write_predictions(predictions, path)
    return path


def _runners_up(logits: Array) -> Array:
    """The classes of the second to the fifth answer (4, n); of equals the first class leads."""
    rows = np.empty((4, len(logits)), np.int64)
    for i, row in enumerate(logits):
        best = np.flatnonzero(row >= np.partition(row, -5)[-5])  # at least five, in order
        rows[:, i] = best[np.argsort(-row[best], kind="stable")][1:5]
    return rows
