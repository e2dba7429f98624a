"""The gate: an exported file gets its name only when it answers as the network does.

Every file is opened again in its own runtime and compared on real images at batch 1, 2 and all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.errors import ExportError, XferError, raise_all
from xfer.storage import atomic_write, file_sha256, write_json
from xfer.types import Exported

if TYPE_CHECKING:
    import torch

    from xfer.types import Array, Card, Plain, Runner, Writer

    Answers = dict[int, Array]

_FIX = "choose other formats, export=[...] or export=none; the checkpoint is not affected"


def export(
    net: torch.nn.Module,
    images: Array,
    writers: Sequence[Writer],
    card: Card,
    folder: Path,
    tolerance: float,
) -> list[Exported]:
    """Write ``net`` in every format, each under its final name only after it passed the gate.

    ``net`` is on the CPU, float32, in eval mode; ``images`` float32 (n, 3, h, w), preprocessed
    validation images, n > 0. No logit may be further than ``tolerance * max(1, max|logit|)``
    from the network's; so the top class agrees wherever the two best differ by twice that.

    All formats are tried. One that fails also loses the file of an earlier export: that was made
    from other weights, and nobody could tell it from the one refused. ``parity.json`` lists what
    passed, with sha256, so a file that it does not list is vouched for by nobody. Raises
    ExportError (Problems for several) at the end, OutputError when the folder cannot be written.
    """
    _check(net, images)
    comparison = _Comparison(net, images, _answers(run_torch(net), images), card, tolerance)
    done: list[Exported] = []
    errors: list[XferError] = []
    for writer in writers:
        try:
            done.append(comparison.admit(writer, folder / writer.file))
        except ExportError as error:
            (folder / writer.file).unlink(missing_ok=True)
            errors.append(error)
    write_json(folder / "labels.json", list(card.classes))
    write_json(folder / "preprocess.json", card.input.to_plain())
    write_json(folder / "parity.json", [asdict(exported) for exported in done])
    raise_all(errors)
    return done


def run_torch(net: torch.nn.Module) -> Runner:
    """``net`` as a runner: float32 (n, 3, h, w) in, float32 logits (n, classes) out."""

    def run(images: Array) -> Array:
        import torch

        with torch.inference_mode():
            logits: Array = net(torch.from_numpy(images)).numpy()
            return logits

    return run


def _check(net: torch.nn.Module, images: Array) -> None:
    if not len(images):
        raise ExportError("export", "there is no image to compare on", "give validation images", 1)
    if any(module.training for module in net.modules()):
        raise ExportError("export", "the network is in training mode", "call net.eval() first", 2)


def _answers(run: Runner, images: Array) -> Answers:
    """Logits by batch size: 1 on the first 8 images, 2 on the first 16, n on all n."""
    n = len(images)
    counts = {size: min(count, n) for size, count in {1: 8, 2: 16, n: n}.items() if size <= n}
    return {size: _batched(run, images[:count], size) for size, count in counts.items()}


def _batched(run: Runner, images: Array, size: int) -> Array:
    return np.concatenate([run(images[i : i + size]) for i in range(0, len(images), size)])


@dataclass(frozen=True)
class _Comparison:
    """The network, and the answers that every file must give again."""

    net: torch.nn.Module
    images: Array
    expected: Answers
    card: Card
    tolerance: float

    def admit(self, writer: Writer, path: Path) -> Exported:
        """Write, re-open and compare under a temporary name; then give the file its name."""
        found: Plain = {}

        def write(part: Path) -> None:
            _refuse_nan(path, self.expected, "the network itself", "train it again: it diverged")
            with _library_errors(path, "written"):
                facts = writer.write(self.net, self.images, self.card, part)
            with _library_errors(path, "run"):
                answers = _answers(writer.open(part, self.net), self.images)
            found.update(self.compare(path, answers), facts=facts)

        atomic_write(path, write)
        return Exported(
            format=_format(path),
            file=path.name,
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
            images=len(self.images),
            batches=tuple(self.expected),
            **found,
        )

    def compare(self, path: Path, answers: Answers) -> Plain:
        """Largest difference, its bound, and agreement at the worst batch size."""
        _refuse_nan(path, answers, "the file", _FIX)
        pairs = [(want, answers[size]) for size, want in self.expected.items()]
        for want, got in pairs:
            if want.shape != got.shape:
                what = (
                    f"{_format(path)} gives logits of shape {got.shape}, the network {want.shape}"
                )
                raise ExportError(path, what, _FIX, 5)
        bound = self.tolerance * max(1.0, *(float(np.abs(want).max()) for want, _ in pairs))
        worst = max(float(np.abs(want.astype(np.float64) - got).max()) for want, got in pairs)
        agree = min(float(np.mean(want.argmax(1) == got.argmax(1))) for want, got in pairs)
        if worst > bound:
            what = (
                f"{_format(path)} answers otherwise than the network: logits differ by up to "
                f"{worst:.3g}, allowed is {bound:.3g}; the top class agrees on {agree:.1%}"
            )
            raise ExportError(path, what, _FIX, 6)
        return {"max_abs_diff": worst, "bound": bound, "agree": agree}


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".")


def _refuse_nan(path: Path, answers: Answers, who: str, fix: str) -> None:
    if not all(np.isfinite(logits).all() for logits in answers.values()):
        what = f"{_format(path)}: {who} answers NaN or Inf on real images"
        raise ExportError(path, what, fix, 4)


@contextmanager
def _library_errors(path: Path, verb: str) -> Iterator[None]:
    """Tell any exception of an exporter or runtime in one line; a full disk stays an OSError."""
    try:
        yield
    except (XferError, OSError, MemoryError):
        raise
    except Exception as error:
        what = f"{_format(path)} cannot be {verb}: {_first_line(error)}"
        raise ExportError(path, what, _FIX, 3) from error


def _first_line(error: BaseException) -> str:
    # Exporters wrap what went wrong in pages of advice; the first cause is the reason.
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [stripped for line in str(error).splitlines() if (stripped := line.strip())]
    return (lines or [type(error).__name__])[0][:200]
