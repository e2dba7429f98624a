"""What the heat maps of a run card cost, and whether hiding what is hottest matters.

    XFER_ASSETS=ASSETS python bench/heat_maps.py [--maps 24] [--images 60]

The cost is that of ``heat_of`` on Canidae's validation images, the search for the layer included:
processor time, and its ratio to that of a plain pass over as many images in the same batches. For
the deletion test a fifth of the pixels is replaced by the mean colour, where the map is hottest or,
in patches of the map's cells, at random; shown is the mean loss of confidence.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from xfer.core.types import InputSpec, Predictions, Samples
from xfer.data.preprocess import prepare
from xfer.evaluation.layer_cam import find_site, heat_maps
from xfer.report.heat import heat_of

ASSETS = Path(os.environ["XFER_ASSETS"])
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SPEC = InputSpec((224, 224), 256, "bilinear", *IMAGENET)
LITE = InputSpec((224, 224), 256, "bicubic", (0.5,) * 3, (0.5,) * 3)


def pictures(count):
    files = [p for n in ("dogs", "wolves") for p in sorted((ASSETS / "Canidae/val" / n).iterdir())]
    return [Image.open(p).convert("RGB") for p in files[:: max(1, len(files) // count)][:count]]


def published(name):
    net = torchvision.models.squeezenet1_0() if name.startswith("sq") else timm.create_model(name)
    net.load_state_dict(load_file(ASSETS / f"weights/{name}_imagenet.safetensors"))
    return net.eval()


def cost(name, net, maps, spec=SPEC):
    """Processor time of the maps, and over that of a plain pass, medians of three."""
    images = pictures(60)
    labels = np.arange(len(images)) % 2
    logits = np.random.default_rng(0).normal(0, 2, (len(images), 2)).astype(np.float32)
    answers = Predictions(tuple(map(str, range(len(images)))), logits, labels, ("a", "b"))
    samples = Samples(answers.names, labels, images, "")
    ours, plain = [], []
    for _ in range(3):
        began = time.process_time()
        heat = heat_of(net, answers, samples, spec, maps)
        middle = time.process_time()
        with torch.inference_mode():
            for start in range(0, maps, 8):
                part = range(start, min(start + 8, maps))
                net(torch.from_numpy(np.stack([prepare(images[i], spec) for i in part])))
        ours.append(middle - began)
        plain.append(time.process_time() - middle)
    took, ratio = statistics.median(ours), statistics.median(ours) / statistics.median(plain)
    where = heat.said.partition("own scale. ")[2] or heat.said
    print(
        f"{name:<24} {took:6.2f} s of processor, {ratio:4.2f} x a plain pass; {where}", flush=True
    )


def deletion(name, net, count, spec):
    x = torch.from_numpy(np.stack([prepare(image, spec) for image in pictures(count)]))
    lost = {"hottest": [], "random": []}
    draw = torch.Generator().manual_seed(0)
    for batch in x.split(10):
        with torch.inference_mode():
            sure, classes = net(batch).softmax(1).max(1)
        maps = torch.from_numpy(heat_maps(net, find_site(net, batch), batch, classes.tolist()))
        cells = {"hottest": maps, "random": torch.rand(maps.shape, generator=draw)}
        for kind, values in cells.items():
            whole = F.interpolate(values[:, None], batch.shape[-2:], mode="bilinear")[:, 0]
            edge = whole.flatten(1).quantile(0.8, dim=1)
            hidden = torch.where((whole > edge[:, None, None])[:, None], 0.0, batch)
            with torch.inference_mode():
                after = net(hidden).softmax(1)[range(len(batch)), classes]
            lost[kind] += (sure - after).tolist()
    said = ", ".join(f"{kind} {statistics.mean(values):.3f}" for kind, values in lost.items())
    print(f"{name:<24} confidence lost with a fifth hidden, {len(x)} images: {said}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--maps", type=int, default=24)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    nets = {"squeezenet1_0": SPEC, "tf_efficientnet_lite0": LITE}
    for name, spec in nets.items():
        cost(name, published(name), options.maps, spec)
    torch.manual_seed(0)
    cost("resnet50", torchvision.models.resnet50().eval(), options.maps)
    cost("deit_tiny_patch16_224", timm.create_model("deit_tiny_patch16_224").eval(), options.maps)
    for name, spec in nets.items():
        deletion(name, published(name), options.images, spec)


if __name__ == "__main__":
    main()
