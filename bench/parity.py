"""Every writer against torch, on eight architectures and real photographs.

    python bench/parity.py [--models resnet18 ...] [--images 20] [--mindspore PYTHON]

Each network is exported by every writer through the gate of xfer.export, 20 photographs of
Canidae/val by default, at batch 1, 2 and all; `onnx_image` on 60 sizes and formats more. Data and
the weights of SqueezeNet come from XFER_ASSETS (default ../shared/assets); the other networks have
random weights, norm statistics of real training photographs, and a head of two classes whose
logits are centred with a deviation of 3, so that an error would show. `--mindspore` names a python
with MindSpore, which then runs the MindIR files too, and files made from its own checkpoints.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from xfer.core.errors import XferError
from xfer.core.types import Card
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.export import (
    Evidence,
    Int8,
    Mindir,
    MindSporeCkpt,
    Onnx,
    Pt2,
    Safetensors,
    TorchScript,
    export,
)
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Keep, Linear
from xfer.models.network import Parts, from_weights
from xfer.weights.source.local import File
from xfer.weights.source.mindspore import MindSpore

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS / "proofs")]
from networks import make  # noqa: E402

ASSETS = Path(os.environ.get("XFER_ASSETS", "../shared/assets")).resolve()
TOLERANCE = 1e-4
FAMILIES = {
    "resnet18": Timm("resnet18"),
    "resnet50": Timm("resnet50"),
    "mobilenetv3_large_100": Timm("mobilenetv3_large_100"),
    "efficientnet_b0": Timm("efficientnet_b0"),
    "convnext_atto": Timm("convnext_atto"),
    "vit_tiny": Timm("vit_tiny_patch16_224"),
    "squeezenet1_0": Torchvision("squeezenet1_0"),
    "googlenet": Torchvision("googlenet"),
}
WRITERS = {
    "onnx": Onnx(),
    "onnx_image": Onnx(input="image", file="model_image"),
    "mindir": Mindir(),
    "mindspore_ckpt": MindSporeCkpt(),
    "safetensors": Safetensors(),
    "pt2": Pt2(),
    "torchscript": TorchScript(),
    "int8": Int8(images=32),
}


def photographs(split, count):
    folders = [
        sorted(folder.iterdir()) for folder in sorted((ASSETS / "Canidae" / split).iterdir())
    ]
    each = count // len(folders)
    return [decode(paths[i * len(paths) // each]) for paths in folders for i in range(each)]


def ready(pictures, spec):
    return np.stack([prepare(picture, spec) for picture in pictures])


def network(name):
    """The network, its head, its classes and its recipe."""
    backbone = FAMILIES[name]
    spec = backbone.build().input
    if name == "squeezenet1_0":
        file = ASSETS / "weights" / "squeezenet1_0_imagenet.safetensors"
        net = from_weights(Parts(backbone, Keep(), 1000), File(str(file)).load(backbone))
        return net.eval(), Keep(), tuple(map(str, range(1000))), spec
    net = make(backbone)
    settle(net, torch.from_numpy(ready(photographs("train", 32), spec)))
    return net, Linear(), ("dogs", "wolves"), spec


@torch.no_grad()
def settle(net, images):
    """Norm statistics as in training on ``images``; logits that differ from image to image."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    net(images)
    for norm in norms:
        norm.eval()
    head = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    head.weight *= (3 / net(images).std(0)).reshape(-1, *[1] * (head.weight.ndim - 1))
    head.bias -= net(images).mean(0)


def card(name, head, classes, spec):
    def facts(value, group):
        return {"_target_": f"xfer.{group}.{type(value).__name__}", **asdict(value)}

    return Card(facts(FAMILIES[name], "backbone"), facts(head, "head"), classes, spec)


def parity(name, options, folder):
    """What the gate found of every writer, or why there is no file."""
    net, head, classes, spec = network(name)
    photos = photographs("val", options.images)
    images = ready(photos, spec)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images)).numpy()
    top = logits.argmax(1)
    # The labels are the network's own answers, so that int8's accuracy is its agreement.
    own = Evidence(photos, top, ready(photographs("train", 32), spec), lambda: [(images, top)], 1.0)
    found = {}
    for kind, writer in WRITERS.items():
        try:
            made = export(
                net, images, [writer], card(name, head, classes, spec), folder, TOLERANCE, own
            )
            found[kind] = made[0]
        except XferError as error:
            found[kind] = str(error.what)
        print(f"  {name} {kind}: {told(found[kind])}", file=sys.stderr, flush=True)
    if options.mindspore and not isinstance(found["mindir"], str):
        found["MindSpore"] = by_mindspore(options.mindspore, folder / "model.mindir", images)
    return logits, found


def told(entry):
    if isinstance(entry, str):
        return entry
    return f"{entry.max_abs_diff:.1e}, mean {entry.mean_abs_diff:.1e}, agree {entry.agree:.3f}"


def by_mindspore(python, path, images):
    """MindSpore's own logits, by batch size."""
    np.save(path.with_name("images.npy"), images)
    files = [path, path.with_name("images.npy"), path.with_name("logits.npz")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": ""}
    command = [python, TESTS / "proofs" / "mindir_proof.py", *files]
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    with np.load(files[2]) as found:
        return list(found.values())


def table(title, head, rows):
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def cell(entry, field):
    return "refused" if isinstance(entry, str) else f"{getattr(entry, field):.1e}"


def clear(logits):
    """Which images have two best classes further apart than twice the bound."""
    best = np.sort(logits, axis=1)
    return best[:, -1] - best[:, -2] > 2 * bound(logits)


def bound(logits):
    return TOLERANCE * max(1.0, float(np.abs(logits).max()))


def report(results):
    exact = [kind for kind in WRITERS if kind != "int8"]
    head = ["network", "largest logit", "allowed", *exact]
    for title, field in (("Largest", "max_abs_diff"), ("Mean", "mean_abs_diff")):
        rows = [
            [name, f"{np.abs(z).max():.1f}", f"{bound(z):.1e}"]
            + [cell(found[kind], field) for kind in exact]
            for name, (z, found) in results.items()
        ]
        table(f"{title} difference", head, rows)
    rows = [
        [name, f"{clear(z).sum()} of {len(z)}"]
        + [
            "refused" if isinstance(f, str) else f"{100 * f.agree:.1f} %"
            for f in map(found.get, WRITERS)
        ]
        for name, (z, found) in results.items()
    ]
    table("Same top class", ["network", "further apart than twice allowed", *WRITERS], rows)
    print()
    for name, (_, found) in results.items():
        for kind in WRITERS:
            if isinstance(found[kind], str):
                print(f"refused: {name} {kind}: {found[kind]}")


def report_mindspore(results, python):
    rows = []
    for name, (logits, found) in results.items():
        if "MindSpore" in found:
            far = [np.abs(z - logits[: len(z)]) for z in found["MindSpore"]]
            agree = [(z.argmax(1) == logits[: len(z)].argmax(1)).mean() for z in found["MindSpore"]]
            worst, mean = max(d.max() for d in far), max(d.mean() for d in far)
            rows.append([name, f"{worst:.1e}", f"{mean:.1e}", f"{bound(logits):.1e}"])
            rows[-1].append(f"{100 * min(agree):.1f} %")
    head = ["network", "largest difference", "mean", "allowed", "same top class"]
    table("MindIR run by MindSpore, against torch", head, rows)
    head = ["checkpoint", "largest logit", "largest difference", "allowed"]
    rows = [circle(python, *case) for case in CIRCLES]
    table("MindSpore checkpoint, xfer, MindIR, MindSpore", head, rows)


ZOO = Timm("resnet50", {"layers": [1] * 4, "channels": [4, 6, 8, 12]})
CV = Timm("resnet18", {"layers": [1] * 4, "channels": [8, 12, 16, 24]})
CIRCLES = [
    ("zoo", "zoo_v1.0.ckpt", ZOO),
    ("zoo", "zoo_v2.0.ckpt", ZOO),
    ("zoo", "zoo_v2.10.ckpt", ZOO),
    ("cv", "cv_v2.10.ckpt", CV),
]


def circle(python, kind, file, backbone):
    """From a checkpoint of MindSpore to the logits that MindSpore gives for xfer's MindIR."""
    folder = ASSETS / "mindspore"
    images, want = np.load(folder / f"{kind}_x.npy"), np.load(folder / f"{kind}_logits.npy")
    weights = MindSpore(str(folder / file)).load(backbone)
    net = from_weights(Parts(backbone, Keep(), 5, compat=weights.compat), weights).eval()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.mindir"
        spec = backbone.build().input
        Mindir().write(net, images, Card({}, {}, tuple("abcde"), spec), path)
        got = by_mindspore(python, path, images)[-1]
    top = np.abs(want).max()
    return [file, f"{top:.2f}", f"{np.abs(got - want).max():.1e}", f"{2e-5 * max(1, top):.1e}"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--mindspore", default=os.environ.get("XFER_MINDSPORE"))
    options = parser.parse_args()
    results = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            results[name] = parity(name, options, Path(scratch))
    report(results)
    if options.mindspore:
        report_mindspore(results, options.mindspore)


if __name__ == "__main__":
    main()
