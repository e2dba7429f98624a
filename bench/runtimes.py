"""OpenVINO and 16-bit ONNX against ONNX Runtime: answers, sizes, and time for one image.

    python bench/runtimes.py [--models squeezenet1_0 ...] [--rounds 15] [--threads 1]

Needs xfer-vision[openvino]. Each network of bench/parity.py is exported through the gate and asked
for one photograph at a time, by all runtimes in turn, in each round; a ratio is the median over the
rounds of ONNX Runtime's time over the file's in the same round, above 1 is faster: once by the
clock and once by the processor's time, which other work on the machine burdens less. With
`--phones` LiteRT and ExecuTorch take part where their packages are installed; what is missing is
said.
SqueezeNet has its published weights (XFER_ASSETS, default ../shared/assets), the others random
ones; the labels are the network's own answers, so that accuracy is agreement.
"""

import argparse
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from parity import TOLERANCE, bound, card, network, photographs, ready, table

from xfer.core.errors import XferError
from xfer.evaluation.onnx_session import open_session, runner
from xfer.export import Evidence, ExecuTorch, Half, LiteRt, Onnx, OpenVino, export
from xfer.export.openvino import opened
from xfer.export.parity import run_torch

MODELS = ("squeezenet1_0", "resnet18", "mobilenetv3_large_100", "vit_tiny")
PACKAGES = ("torch", "onnxruntime", "openvino", "litert-torch", "executorch")


def writers(phones):
    half = Half("bfloat16", "float32", "model_bf16.onnx")
    found = {"onnx": Onnx(), "openvino": OpenVino(), "onnx_fp16": Half(), "onnx_bf16": half}
    return found | ({"litert": LiteRt(), "executorch": ExecuTorch()} if phones else {})


def run_of(writer, folder, threads):
    """A runner of the exported file with that number of threads, where its runtime can be told."""
    path = folder / writer.file
    if isinstance(writer, OpenVino):
        return opened(path, threads)
    if path.suffix == ".onnx":
        return runner(open_session(path, threads))
    return writer.open(path, torch.nn.Identity())


def turns(runs, image, rounds, repeats=5):
    """Milliseconds for one image, by the clock and by the processor: arrays of rounds x 2 by
    contestant. The first round warms up."""
    times = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                run(image)
            ended = time.perf_counter(), time.process_time()
            times[name].append(1000 * np.subtract(ended, began) / repeats)
    return {name: np.array(found[1:]) for name, found in times.items()}


def measured(name, options, folder):
    """A row a runtime: size, largest difference, agreement, time, ratio; or why there is none."""
    net, head, classes, spec = network(name)
    images = ready(photographs("val", options.images), spec)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images)).numpy()
    top = logits.argmax(1)
    own = Evidence(None, top, None, lambda: [(images, top)], 1.0)
    made, runs, refused = {}, {"torch": run_torch(net)}, {}
    for kind, writer in writers(options.phones).items():
        try:
            if hasattr(writer, "check"):
                writer.check(card(name, head, classes, spec))
            facts = card(name, head, classes, spec)
            (made[kind],) = export(net, images, [writer], facts, folder, TOLERANCE, own)
            runs[kind] = run_of(writer, folder, options.threads)
        except XferError as error:
            refused[kind] = str(error.what)
    times = turns(runs, images[:1], options.rounds)
    rows = []
    for kind in runs:
        entry = made.get(kind)
        ratio = np.median(times["onnx"] / times[kind], axis=0)
        clock, processor = np.median(times[kind], axis=0)
        rows.append([
            name, kind,
            f"{entry.bytes / 1e6:.1f}" if entry else "",
            f"{entry.max_abs_diff:.1e}" if entry else "",
            "" if not entry or entry.bound is None else f"{bound(logits):.1e}",
            f"{100 * entry.agree:.1f} %" if entry else "",
            f"{clock:.1f}", f"{ratio[0]:.2f}", f"{processor:.1f}", f"{ratio[1]:.2f}",
        ])  # fmt: skip
    return rows, {f"{name} {kind}": what for kind, what in refused.items()}


def installed(name):
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--phones", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, refused = [], {}
    for name in options.models:
        print(f"  {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            some, none = measured(name, options, Path(folder))
        rows, refused = rows + some, refused | none
        for row in some:
            print(f"  {' | '.join(row)}", file=sys.stderr, flush=True)
    head = ["network", "file", "MB", "largest difference", "allowed", "same top class"]
    title = f"One image, {options.threads} thread(s); {', '.join(map(installed, PACKAGES))}"
    table(title, [*head, "ms", "ratio", "processor ms", "ratio"], rows)
    for name, what in refused.items():
        print(f"refused: {name}: {what}")


if __name__ == "__main__":
    main()
