"""The stage ``benchmark``: exported files against eager torch, taking turns on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import ExportError, printable
from xfer.core.files import write_json
from xfer.core.log import LINES, log
from xfer.core.run_folder import run_of
from xfer.data.preprocess import prepare
from xfer.evaluation.benchmark_names import RUN
from xfer.evaluation.onnx_predict import warn_if_stale
from xfer.evaluation.onnx_session import open_session, runner
from xfer.export.evidence import pixels, same_size
from xfer.export.stage import Chosen, check_split, spread

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from xfer.core.protocols import Runner
    from xfer.core.types import Array, Plain
    from xfer.plan.plan import Plan as RunPlan

ROUNDS = 7
_ONE, _BATCH = 5, 16  # runs of one image a round; images of the larger batch
_STARTS = 2


@dataclass(frozen=True)
class Contestant:
    """Who is timed: how it answers, what goes in, and the code that starts it from nothing."""

    name: str
    size: int | None
    run: Runner
    one: Array
    many: Array
    each: Callable[[Image], Array]
    start: str | None


def benchmark(plan: RunPlan, net: nn.Module, checkpoint: Path | None, folder: Path) -> list[Plain]:
    """Measure the files of this run, or those beside ``checkpoint``: ``benchmark.json`` and a table
    on the terminal; returns the rows. Raises ExportError when there is no file."""
    folders = [folder / "export"]
    if checkpoint and (earlier := run_of(checkpoint)):
        folders.append(earlier / "export")
    rows = measured(plan, net, checkpoint, folders)
    write_json(folder / "benchmark.json", rows)
    log.info("\n".join(map(printable, lines(rows))), extra=LINES)
    return rows


def measured(
    plan: RunPlan, net: nn.Module, checkpoint: Path | None, folders: Sequence[Path]
) -> list[Plain]:
    """One row a contestant, eager torch first; ratios are torch's time over the file's.

    ``folders`` are looked through for exported files, the first that has any counts. Raises
    ExportError when none has.
    """
    files = _files(folders)
    samples = check_split(plan)
    at = spread(len(samples), min(len(samples), plan.specs.export.gate.images))
    photos, labels = Chosen(samples.images, at), samples.labels[at]
    contestants = _contestants(plan, net, checkpoint, files, photos)
    scores = [_top1(c, photos, labels) for c in contestants]
    starts = _starts(contestants)
    single = _turns(contestants, lambda c: _seconds(c.run, c.one, _ONE))
    batch = _turns(contestants, lambda c: _seconds(c.run, c.many, 1) / len(c.many))
    return [
        {
            "name": contestant.name,
            "bytes": contestant.size,
            "start_s": starts[i],
            "ms": 1000 * median(single[i]),
            "faster": median(t / own for t, own in zip(single[0], single[i], strict=True)),
            "images_per_s": 1 / median(batch[i]),
            "faster_batch": median(t / own for t, own in zip(batch[0], batch[i], strict=True)),
            "top1": scores[i],
            "top1_images": len(photos),
            "images": len(samples),
        }
        for i, contestant in enumerate(contestants)
    ]


def _files(folders: Sequence[Path]) -> list[Path]:
    for folder in folders:
        found = [p for p in sorted(folder.glob("*")) if p.suffix in RUN]
        if found:
            for file in found:
                if not file.is_file():  # a pipe would be waited for
                    raise ExportError(file, "is no regular file", "remove it", 7)
                warn_if_stale(file)
            return found
    where = folders[0] if folders else "export"
    fix = "add the stage export, or give the checkpoint.path of a run with exported files"
    raise ExportError(where, "there is no exported file to measure", fix, 47)


def _contestants(
    plan: RunPlan, net: nn.Module, checkpoint: Path | None, files: list[Path], photos: Chosen
) -> list[Contestant]:
    import torch

    from xfer.export.parity import run_torch

    spec = plan.card.input
    net = net.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    shaped = (same_size(photos) * _BATCH)[:_BATCH]
    ready, raw = np.stack([prepare(picture, spec) for picture in shaped]), pixels(shaped)

    def tensor(picture: Image) -> Array:
        return prepare(picture, spec)[None]

    def picture(picture: Image) -> Array:
        return pixels([picture])

    start = None if checkpoint is None else f"import xfer; xfer.load({str(checkpoint)!r})"
    size = None if checkpoint is None else checkpoint.stat().st_size
    found = [Contestant("torch, eager", size, run_torch(net), ready[:1], ready, tensor, start)]
    for file in files:
        run, takes_pictures = _opened(file)
        one, many = (pixels([photos[0]]), raw) if takes_pictures else (ready[:1], ready)
        each = picture if takes_pictures else tensor
        code = f"from xfer.export.benchmark import start; start({str(file)!r})"
        size = file.stat().st_size
        found.append(Contestant(file.name, size, run, one, many, each, code))
    return found


def _opened(file: Path) -> tuple[Runner, bool]:
    """A runner with torch's number of threads, and whether it takes pictures."""
    import torch

    if file.suffix == ".onnx":
        session = open_session(file, torch.get_num_threads())
        return runner(session), session.get_inputs()[0].type == "tensor(uint8)"
    from xfer.export import Pt2, TorchScript

    writer = Pt2() if file.suffix == ".pt2" else TorchScript()
    return writer.open(file, torch.nn.Identity()), False


def start(file: str) -> None:
    """Open a file as a program would that does nothing else."""
    path = Path(file)
    if path.suffix == ".onnx":
        open_session(path)
    else:
        _opened(path)


def _starts(contestants: list[Contestant]) -> list[float | None]:
    """Seconds of a fresh process that imports the runtime and opens the file, the best of two:
    the first also reads it from the disk."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(_STARTS):
        for i, contestant in enumerate(contestants):
            if contestant.start:
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", contestant.start], check=True)
                times[i].append(time.perf_counter() - began)
    return [min(found) if found else None for found in times]


def _turns(
    contestants: list[Contestant], measure: Callable[[Contestant], float]
) -> list[list[float]]:
    """Measurements by contestant. All are measured in every round, so that what else the machine
    does in it burdens all alike; the first round warms up and is left out."""
    rounds = [[measure(contestant) for contestant in contestants] for _ in range(ROUNDS + 1)][1:]
    return [list(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Runner, images: Array, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        run(images)
    return (time.perf_counter() - began) / repeats


def _top1(contestant: Contestant, photos: Chosen, labels: Array) -> float | None:
    if (labels < 0).any():
        return None
    found = [contestant.run(contestant.each(photos[i])).argmax() for i in range(len(photos))]
    return float(np.mean(np.asarray(found) == labels))


def lines(rows: list[Plain]) -> list[str]:
    """The table for people."""
    head = f"{'file':<22}{'MB':>8}{'start':>8}{'1 image':>11}{'ratio':>7}{'batch':>13}{'ratio':>7}"
    told = [head + f"{'top-1':>8}", *map(_line, rows)]
    if any(row["top1"] is not None and row["top1_images"] < row["images"] for row in rows):
        part, whole = rows[0]["top1_images"], rows[0]["images"]
        told.append(f"top-1 is of {part} of {whole} images (export.gate.images), evaluate's of all")
    return told


def _line(row: Plain) -> str:
    size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
    start = "" if row["start_s"] is None else f"{row['start_s']:.2f} s"
    top1 = "" if row["top1"] is None else f"{row['top1']:.4f}"
    return (
        f"{row['name']:<22}{size:>8}{start:>8}{row['ms']:>8.2f} ms{row['faster']:>7.2f}"
        f"{row['images_per_s']:>11.1f}/s{row['faster_batch']:>7.2f}{top1:>8}"
    )
