"""The gate: an exported file gets its name only when it answers as the network does.

Every file is opened again in its own runtime and compared on real images at batch 1, 2 and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from xfer.core.errors import Attempts, ExportError, XferError, raise_all
from xfer.core.files import (
    atomic_folder,
    atomic_write,
    file_sha256,
    files_of,
    remove,
    tree_sha256,
    write_json,
)
from xfer.core.protocols import Certifies, ChecksCard, Describes, GivesLabels, Traces, WritesFolder
from xfer.core.types import Exported
from xfer.export.answer_parity import UNCHECKED, CertifiedFile, LabelledFile, Pledge, pledge
from xfer.export.earlier_files import earlier_files
from xfer.export.parity import FIX, Evidence, Trials, refuse_nan

if TYPE_CHECKING:
    import torch

    from xfer.core.protocols import Writer
    from xfer.core.types import Array, Card, Plain


def refuse_early(writers: Sequence[Writer], card: Card) -> None:
    """Raise ExportError (Problems for several) for formats that cannot hold the network of
    ``card``, as far as can be known without it."""
    attempt = Attempts()
    for writer in writers:
        if isinstance(writer, ChecksCard):
            attempt(writer.check, card)
    raise_all(attempt.errors)


def export(
    net: torch.nn.Module,
    images: Array | Callable[[], Array],
    writers: Sequence[Writer],
    card: Card,
    folder: Path,
    tolerance: float,
    evidence: Evidence | None = None,
) -> list[Exported]:
    """Write ``net`` in every format, each under its final name only after it passed the gate.

    ``net`` is on the CPU, float32, in eval mode; ``images`` float32 (n, 3, h, w), preprocessed
    validation images, n > 0, or what makes them, called where they are needed. No logit may be
    further from the network's than :func:`xfer.export.parity.allowed` says; so the top class agrees
    wherever the two best differ by twice that, which must be so on one image at least.
    A writer's ``trial`` (one of :class:`Trials`) may name another way, which needs ``evidence``.

    A file that an earlier run has written and tried is copied where everything is the same that it
    and the trial depend on (:mod:`xfer.export.earlier_files`); its facts then have ``proved_at``.

    All formats are tried. One that fails also loses the file of an earlier export: that was made
    from other weights, and nobody could tell it from the one refused. ``parity.json`` lists what
    passed, with sha256, so a file that it does not list is vouched for by nobody. Raises
    ExportError (Problems for several) at the end, with what passed in ``passed``; OutputError when
    the folder cannot be written.
    """
    from xfer.core.memory import give_back

    if any(module.training for module in net.modules()):
        raise ExportError("export", "the network is in training mode", "call net.eval() first", 2)
    evidence = evidence or Evidence()
    trials = _PromisedTrials(net, images, card, tolerance, evidence)
    if not callable(images):
        trials.images  # noqa: B018 (refused early where there are none)
    earlier = earlier_files(net, card, tolerance, evidence)
    done: list[Exported] = []
    errors: list[XferError] = []
    for writer in writers:
        try:
            path = folder / writer.file
            found = earlier.copied(writer, path) if earlier else None
            if found is None:
                found = _tried(trials, writer, path)
                if earlier:
                    earlier.note(writer, path, found)
            done.append(found)
        except ExportError as error:
            remove(folder / writer.file)
            errors.append(error)
    give_back()
    write_json(folder / "labels.json", list(card.classes))
    write_json(folder / "preprocess.json", card.input.to_plain())
    write_json(folder / "parity.json", [asdict(exported) for exported in done])
    try:
        raise_all(errors)
    except XferError as error:
        error.passed = tuple(done)
        raise
    return done


class _PromisedTrials(Trials):
    """With what the network promises of the images."""

    @cached_property
    def promised(self) -> Pledge | None:
        """Where its card has a certificate."""
        certificate = self.card.certificate
        return pledge(self.faster, certificate, self.images) if certificate else None


def _tried(trials: _PromisedTrials, writer: Writer, path: Path) -> Exported:
    """As :func:`_admit`; a file of a graph that an earlier run has traced is not refused before the
    network has been traced again."""
    graphs = trials.evidence.graphs
    try:
        return _admit(trials, writer, path)
    except ExportError:
        if graphs is None or not graphs.forget(writer.file):
            raise
    return _admit(trials, writer, path)


def _admit(trials: _PromisedTrials, writer: Writer, path: Path) -> Exported:
    """Write, re-open and try under a temporary name; then give the file its name."""
    name = str(getattr(writer, "format", Path(writer.file).suffix.removeprefix(".")))
    kind, images = getattr(writer, "trial", "logits"), trials.images
    outcome: Plain = {}
    net, card, graphs = trials.net, trials.card, trials.evidence.graphs
    if not isinstance(writer, Certifies):  # the file carries the network alone, and says no more
        card = replace(card, certificate=None)
    if kind == "score":  # on val, which it must not be fitted to
        calibration = trials.evidence.calibration
        images = images[:0] if calibration is None else calibration

    def write(part: Path) -> None:
        fix = "train it again: it diverged"
        refuse_nan(path, name, trials.expected, "the network itself", fix)
        if not len(images):
            what = f"{name} is calibrated on training images, and there are none"
            raise ExportError(path, what, "give data with a train split", 46)
        with _library_errors(path, name, "written"):
            if graphs is not None and isinstance(writer, Traces):
                outcome["facts"] = writer.write_cached(net, images, card, part, graphs)
            else:
                outcome["facts"] = writer.write(net, images, card, part)
        with _library_errors(path, name, "run"):
            tried = getattr(trials, kind)(path, name, writer.open(part, net))
            outcome["facts"] |= tried.pop("facts", {})
            outcome.update(tried)
            said = (path, name, kind == "pictures", outcome["bound"])
            outcome["facts"] |= _further(writer, part, said, trials)
        if isinstance(writer, Describes):
            writer.describe(part, card, trials.evidence.figures)
        if isinstance(writer, WritesFolder):
            files = {p.relative_to(part).as_posix(): file_sha256(p) for p in files_of(part)}
            outcome["facts"]["files"] = files

    place = atomic_folder if isinstance(writer, WritesFolder) else atomic_write
    place(path, write)
    return Exported(
        format=name,
        file=path.name,
        bytes=sum(file.stat().st_size for file in files_of(path)),
        sha256=tree_sha256(path),
        images=outcome.pop("pictures", len(trials.images)),
        batches=tuple(trials.expected),
        **outcome,
    )


def _further(
    writer: Writer,
    part: Path,
    said: tuple[Path, str, bool, Any],
    trials: _PromisedTrials,
) -> Plain:
    """The facts of what a file answers beside logits: of a certificate, its sets and p-values and
    what the sets cover of images that nothing was fitted on; of several labels, which they are."""
    path, name, pictures, bound = said
    evidence = trials.evidence
    facts: Plain = {}
    if isinstance(writer, Certifies) and (promised := trials.promised):
        file = CertifiedFile(path, name, writer.open_certified(part), pictures, bound)
        held = file.check(promised, trials.images, evidence.photos, trials.tolerance)
        covers = file.coverage(evidence.unseen) if evidence.unseen else UNCHECKED
        facts["certificate"] = held | covers
    if trials.card.task and isinstance(writer, GivesLabels):
        labelled = LabelledFile(path, name, writer.open_labelled(part), pictures, bound)
        logits, least = trials.expected[max(trials.expected)], trials.card.task["thresholds"]
        facts |= labelled.check(logits, least, trials.images, evidence.photos)
    return facts


@contextmanager
def _library_errors(path: Path, name: str, verb: str) -> Iterator[None]:
    """Any exception of an exporter or runtime in one line; a full disk stays an OSError."""
    try:
        yield
    except (XferError, OSError, MemoryError):
        raise
    except Exception as error:
        # Exporters wrap what went wrong in pages of advice; the first cause is the reason.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        what = f"{name} cannot be {verb}: {(lines or [type(cause).__name__])[0][:200]}"
        raise ExportError(path, what, FIX, 3) from error


@dataclass(frozen=True)
class Strictness:
    """What an exported file must be held to, see :func:`xfer.export.parity.allowed`."""

    tolerance: Annotated[float, Gt(0)] = 1e-4
    """largest logit difference, relative to the size and spread of the logits"""
    images: Annotated[int, Ge(2)] = 64
    """validation images that every exported file is compared on"""
    max_drop: Annotated[float, Ge(0), Le(1)] = 0.01
    """accuracy that an approximate file (int8, 16 bits) may lose on the validation split; with
    several labels an image the same of right labels, of mAP, and of the mean distance of
    probabilities"""
