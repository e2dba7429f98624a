"""The stage ``benchmark``: exported files against eager torch, taking turns on the CPU."""

from __future__ import annotations

import math
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
from xfer.core.files import files_of, write_json
from xfer.core.log import LINES, log
from xfer.core.run_folder import run_of
from xfer.data.preprocess import prepare
from xfer.evaluation.benchmark_names import FOLDERS, RUN
from xfer.evaluation.multilabel_metrics import label_values
from xfer.evaluation.onnx_predict import warn_if_stale
from xfer.evaluation.onnx_session import open_session, runner
from xfer.evaluation.predict import predict_split
from xfer.export.openvino import OpenVino, opened
from xfer.export.parity import accuracy, pixels, run_torch, same_size
from xfer.export.stage import check_split, spread

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from xfer.core.protocols import Runner
    from xfer.core.types import Array, InputSpec, Plain, Samples
    from xfer.plan.plan import Plan as RunPlan

ROUNDS = 7
_ONE, _BATCH = 5, 16  # runs of one image a round; images of the larger batch
_STARTS = 2


@dataclass(frozen=True)
class Contestant:
    """Who is timed: how it answers, how pictures of one size become its input, and the code that
    starts it from nothing."""

    name: str
    size: int | None
    run: Runner
    ready: Callable[[Sequence[Image]], Array]
    start: str | None


def benchmark(
    plan: RunPlan, net: nn.Module, checkpoint: Path | None, folder: Path
) -> tuple[list[Plain], list[str]]:
    """Measure the files of this run, or else those beside ``checkpoint``: ``benchmark.json`` and a
    table on the terminal.

    Returns the rows, one a contestant, eager torch first, whose ratios are torch's time over the
    file's; and a remark on each file that is not measured. Raises ExportError when none is.
    """
    earlier = run_of(checkpoint) if checkpoint else None
    files, remarks = _files([run / "export" for run in (folder, earlier) if run])
    samples = check_split(plan)
    photos = spread(samples, plan.specs.export.gate.images)
    contestants = _contestants(plan.card.input, net, checkpoint, files)
    top1 = [_top1(contestant, photos, plan.card.classes) for contestant in contestants]
    starts = _starts(contestants)
    single = _turns(contestants, [photos.images[0]], _ONE)
    batch = _turns(contestants, (same_size(photos.images) * _BATCH)[:_BATCH], 1)
    rows: list[Plain] = [
        {
            "name": contestant.name,
            "bytes": contestant.size,
            "start_s": starts[i],
            "ms": 1000 * median(single[i]),
            "faster": median(t / s for t, s in zip(single[0], single[i], strict=True)),
            "images_per_s": _BATCH / median(batch[i]),
            "faster_batch": median(t / s for t, s in zip(batch[0], batch[i], strict=True)),
            "top1": top1[i],
            "top1_images": len(photos),
            "images": len(samples),
        }
        for i, contestant in enumerate(contestants)
    ]
    write_json(folder / "benchmark.json", rows)
    log.info("\n".join(map(printable, lines(rows))), extra=LINES)
    return rows, remarks


def _files(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The exported files in the first of ``folders`` that has any to measure, and a remark on each
    other one."""
    remarks: list[str] = []
    for folder in folders:
        files = [path for path in sorted(folder.glob("*")) if path.suffix in RUN]
        for file in files:
            if not file.is_file():  # a pipe would be waited for
                raise ExportError(file, "is not a regular file", "remove it", 7)
            warn_if_stale(file)
        files += [
            folder / name for name, main in FOLDERS.items() if (folder / name / main).is_file()
        ]
        exported = {*files, *folder.glob("model.*"), folder / "hub", folder / "service"}
        reasons = {path: _why_not(path) for path in sorted(exported) if path.exists()}
        remarks = [f"{path.name} is not measured: {why}" for path, why in reasons.items() if why]
        if measured := [path for path, why in reasons.items() if not why]:
            return measured, remarks
    where = folders[0] if folders else "export"
    fix = "add the stage export, or give the checkpoint.path of a run with exported files"
    what = "; ".join(["there is no exported file to measure", *remarks])
    raise ExportError(where, what, fix, 47)


def _why_not(path: Path) -> str:
    """Why an exported file is not measured; empty for one that is."""
    if path.name == "hub" or path.suffix in (".safetensors", ".ckpt"):
        return "it has weights without a graph"
    if path.suffix not in RUN and path.name not in FOLDERS:
        return f"the stage runs {', '.join((*RUN, *FOLDERS))} alone"
    if path.name == OpenVino.file:
        try:
            OpenVino().check()
        except ExportError as error:
            return f"{error.what} ({error.fix})"
    return ""


def _contestants(
    spec: InputSpec, net: nn.Module, checkpoint: Path | None, files: Sequence[Path]
) -> list[Contestant]:
    import torch

    def tensors(pictures: Sequence[Image]) -> Array:
        return np.stack([prepare(picture, spec) for picture in pictures])

    net = net.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    size = checkpoint.stat().st_size if checkpoint else None
    code = f"import xfer; xfer.load({str(checkpoint)!r})" if checkpoint else None
    contestants = [Contestant("torch, eager", size, run_torch(net), tensors, code)]
    for file in files:
        run, takes_pictures = _opened(file)
        ready = pixels if takes_pictures else tensors
        code = f"from xfer.export.benchmark import start; start({str(file)!r})"
        bytes_ = sum(part.stat().st_size for part in files_of(file))
        contestants.append(Contestant(file.name, bytes_, run, ready, code))
    return contestants


def _opened(file: Path) -> tuple[Runner, bool]:
    """A runner with torch's number of threads, and whether it takes pictures."""
    import torch

    if file.suffix == ".onnx":
        session = open_session(file, torch.get_num_threads())
        return runner(session), session.get_inputs()[0].type == "tensor(uint8)"
    from xfer.export import Pt2, TorchScript

    if file.name == OpenVino.file:
        return opened(file, torch.get_num_threads()), False
    writer = Pt2() if file.suffix == ".pt2" else TorchScript()
    return writer.open(file, torch.nn.Identity()), False


def start(file: str) -> None:
    """Open a file as a program would that does nothing else."""
    path = Path(file)
    if path.suffix == ".onnx":
        open_session(path)
    elif path.name in FOLDERS:
        opened(path)
    else:
        _opened(path)


def _starts(contestants: Sequence[Contestant]) -> list[float | None]:
    """Seconds of a fresh process that imports the runtime and opens the file, the best of two:
    the first also reads it from the disk."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(_STARTS):
        for seconds, contestant in zip(times, contestants, strict=True):
            if contestant.start:
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", contestant.start], check=True)
                seconds.append(time.perf_counter() - began)
    return [min(seconds, default=None) for seconds in times]


def _turns(
    contestants: Sequence[Contestant], pictures: Sequence[Image], repeats: int
) -> list[list[float]]:
    """Seconds of one run on ``pictures``, by contestant and round. All are measured in every
    round, so that what else the machine does in it burdens all alike; the first warms up."""
    inputs = [contestant.ready(pictures) for contestant in contestants]
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(ROUNDS + 1):
        for seconds, contestant, images in zip(times, contestants, inputs, strict=True):
            began = time.perf_counter()
            for _ in range(repeats):
                contestant.run(images)
            seconds.append((time.perf_counter() - began) / repeats)
    return [seconds[1:] for seconds in times]


def _top1(contestant: Contestant, photos: Samples, classes: tuple[str, ...]) -> float | None:
    """The share of right top classes; with several labels an image, of images whose most probable
    label is one that they have. ``None`` where labels are not known."""
    several = photos.labels.ndim == 2
    if not several and (photos.labels < 0).any():
        return None
    pictures = (photos.images[i] for i in range(len(photos)))
    batches = ((contestant.ready([picture]), [None]) for picture in pictures)
    answers = predict_split(contestant.run, batches, photos, classes)
    if several and answers.labels is not None:
        hits = label_values(answers.logits, answers.labels)["hit1"]
        return None if math.isnan(hits) else hits
    return accuracy(answers.logits, answers.labels)


def lines(rows: Sequence[Plain]) -> list[str]:
    """The table for people."""
    head = f"{'file':<19}{'MB':>7}{'start':>8}{'1 image':>11}{'ratio':>7}{'batch':>12}{'ratio':>7}"
    table = [head + f"{'top-1':>8}"]
    for row in rows:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        began = "" if row["start_s"] is None else f"{row['start_s']:.2f} s"
        top1 = "" if row["top1"] is None else f"{row['top1']:.4f}"
        table.append(
            f"{row['name']:<19}{size:>7}{began:>8}{row['ms']:>8.2f} ms{row['faster']:>7.2f}"
            f"{row['images_per_s']:>10.1f}/s{row['faster_batch']:>7.2f}{top1:>8}"
        )
    if any(row["top1"] is not None and row["top1_images"] < row["images"] for row in rows):
        part, whole = rows[0]["top1_images"], rows[0]["images"]
        table.append(
            f"top-1 is over {part} of {whole} images (export.images); evaluate scores all of them"
        )
    return table
