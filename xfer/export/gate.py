"""The gate: an exported file gets its name only when it answers as the network does.

Every file is opened again in its own runtime and compared on real images at batch 1, 2 and all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from xfer.core.errors import ExportError, XferError, raise_all
from xfer.core.files import atomic_write, file_sha256, write_json
from xfer.core.protocols import ChecksCard
from xfer.core.types import Exported
from xfer.export.evidence import Evidence
from xfer.export.parity import FIX, Trials, answers, refuse_nan, run_torch

if TYPE_CHECKING:
    import torch

    from xfer.core.protocols import Writer
    from xfer.core.types import Array, Card, Plain


def refuse_early(writers: Sequence[Writer], card: Card) -> None:
    """Raise ExportError (Problems for several) for formats that cannot hold the network of
    ``card``, as far as can be known without it."""
    errors = []
    for writer in writers:
        if isinstance(writer, ChecksCard):
            try:
                writer.check(card)
            except ExportError as error:
                errors.append(error)
    raise_all(errors)


def export(
    net: torch.nn.Module,
    images: Array,
    writers: Sequence[Writer],
    card: Card,
    folder: Path,
    tolerance: float,
    evidence: Evidence | None = None,
) -> list[Exported]:
    """Write ``net`` in every format, each under its final name only after it passed the gate.

    ``net`` is on the CPU, float32, in eval mode; ``images`` float32 (n, 3, h, w), preprocessed
    validation images, n > 0. No logit may be further from the network's than
    :func:`xfer.export.parity.allowed` says; so the top class agrees wherever the two best differ
    by twice that, which must be so on one image at least.
    A writer's ``trial`` (one of :class:`Trials`) may name another way, which needs ``evidence``.

    All formats are tried. One that fails also loses the file of an earlier export: that was made
    from other weights, and nobody could tell it from the one refused. ``parity.json`` lists what
    passed, with sha256, so a file that it does not list is vouched for by nobody. Raises
    ExportError (Problems for several) at the end, with what passed in ``passed``; OutputError when
    the folder cannot be written.
    """
    import torch

    _check(net, images)
    # A copy in the layout that convolutions like: on a processor it answers almost twice as fast.
    run = run_torch(copy.deepcopy(net).to(memory_format=torch.channels_last))
    expected = answers(run, images)
    given = evidence or Evidence()
    gate = _Gate(net, Trials(run, images, expected, card, tolerance, given))
    done: list[Exported] = []
    errors: list[XferError] = []
    for writer in writers:
        try:
            done.append(gate.admit(writer, folder / writer.file))
        except ExportError as error:
            (folder / writer.file).unlink(missing_ok=True)
            errors.append(error)
    write_json(folder / "labels.json", list(card.classes))
    write_json(folder / "preprocess.json", card.input.to_plain())
    write_json(folder / "parity.json", [asdict(exported) for exported in done])
    try:
        raise_all(errors)
    except XferError as error:
        error.passed = tuple(done)
        raise
    return done


def _check(net: torch.nn.Module, images: Array) -> None:
    if not len(images):
        raise ExportError("export", "there is no image to compare on", "give validation images", 1)
    if any(module.training for module in net.modules()):
        raise ExportError("export", "the network is in training mode", "call net.eval() first", 2)


@dataclass(frozen=True)
class _Gate:
    """The network, and the trials that its files must pass."""

    net: torch.nn.Module
    trials: Trials

    def admit(self, writer: Writer, path: Path) -> Exported:
        """Write, re-open and try under a temporary name; then give the file its name."""
        found: Plain = {}
        trials, name = self.trials, _format(writer)

        def write(part: Path) -> None:
            fix = "train it again: it diverged"
            refuse_nan(path, name, trials.expected, "the network itself", fix)
            with _library_errors(path, name, "written"):
                facts = writer.write(self.net, self._inputs(writer, path), trials.card, part)
            with _library_errors(path, name, "run"):
                trial = getattr(trials, getattr(writer, "trial", "logits"))
                told: Plain = trial(path, name, writer.open(part, self.net))
            found.update(told, facts=facts)

        atomic_write(path, write)
        return Exported(
            format=name,
            file=path.name,
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
            images=found.pop("pictures", len(trials.images)),
            batches=tuple(trials.expected),
            **found,
        )

    def _inputs(self, writer: Writer, path: Path) -> Array:
        """Real inputs to write with; a file that is scored on val must not be fitted to it."""
        if getattr(writer, "trial", "logits") != "score":
            return self.trials.images
        found = self.trials.evidence.calibration
        if found is None or not len(found):
            what = f"{_format(writer)} is calibrated on training images, and there are none"
            raise ExportError(path, what, "give data with a train split", 46)
        return np.asarray(found)


def _format(writer: Writer) -> str:
    return str(getattr(writer, "format", Path(writer.file).suffix.removeprefix(".")))


@contextmanager
def _library_errors(path: Path, name: str, verb: str) -> Iterator[None]:
    """Tell any exception of an exporter or runtime in one line; a full disk stays an OSError."""
    try:
        yield
    except (XferError, OSError, MemoryError):
        raise
    except Exception as error:
        what = f"{name} cannot be {verb}: {_first_line(error)}"
        raise ExportError(path, what, FIX, 3) from error


def _first_line(error: BaseException) -> str:
    # Exporters wrap what went wrong in pages of advice; the first cause is the reason.
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [stripped for line in str(error).splitlines() if (stripped := line.strip())]
    return (lines or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class Gate:
    """``tolerance``: the largest logit difference, see :func:`xfer.export.parity.allowed`.
    ``images``: how many real validation images every file is compared on. ``max_drop``: the
    accuracy that an approximate file (int8) may lose on the validation split."""

    tolerance: Annotated[float, Gt(0)] = 1e-4
    images: Annotated[int, Ge(2)] = 64
    max_drop: Annotated[float, Ge(0), Le(1)] = 0.01
