"""Wall time of a training epoch in xfer against a plain PyTorch loop on the same settings.

    python bench/overhead.py [--rounds 3] [--epochs 4] [--freeze head_only|none]

Canidae with SqueezeNet weights (XFER_ASSETS, default ../shared/assets), batches of 24, two data
workers, validation and checkpoints included. The two take turns in one process; the first epoch
of each turn, which starts the workers, is not counted.
"""

import argparse
import contextlib
import csv
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import squeezenet1_0
from torchvision.transforms import v2

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ |= {"XFER_ASSETS": str(ASSETS), "XFER_DATA": str(ASSETS)}


def loaders(batch):
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    tensor.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crop = v2.RandomResizedCrop(224, ratio=(0.75, 1.333), antialias=True)
    train = v2.Compose([crop, v2.RandomHorizontalFlip(), *tensor])
    val = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *tensor])
    kept = {"num_workers": 2, "persistent_workers": True}
    return (
        DataLoader(ImageFolder(ASSETS / "Canidae/train", train), batch, shuffle=True, **kept),
        DataLoader(ImageFolder(ASSETS / "Canidae/val", val), 64, **kept),
    )


def network(frozen):
    from safetensors.torch import load_file

    net = squeezenet1_0()
    net.load_state_dict(load_file(ASSETS / "weights/squeezenet1_0_imagenet.safetensors"))
    net.requires_grad_(not frozen)
    net.classifier[1], net.classifier[2] = nn.Conv2d(512, 2, 1), nn.Identity()
    return net.to(memory_format=torch.channels_last)


def plain(epochs, frozen, folder):
    net, (train, val) = network(frozen), loaders(24)
    loss_of = nn.CrossEntropyLoss()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.003, momentum=0.9)
    times = []
    for _ in range(epochs):
        began = time.perf_counter()
        net.train()
        if frozen:
            net.features.eval()
        for images, labels in train:
            images = images.contiguous(memory_format=torch.channels_last)
            loss = loss_of(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        right = 0
        with torch.inference_mode():
            for images, labels in val:
                images = images.contiguous(memory_format=torch.channels_last)
                right += int((net(images).argmax(1) == labels).sum())
        torch.save(net.state_dict(), folder / "plain.pt")
        times.append(time.perf_counter() - began)
    return times[1:]


def ours(epochs, freeze):
    import xfer

    options = [f"freeze={freeze}", f"trainer.max_epochs={epochs}", "stages=[fit]"]
    with contextlib.redirect_stdout(io.StringIO()):
        folder = xfer.run("canidae_squeezenet_freeze", options).folder
    with (folder / "metrics.csv").open() as stream:
        return [float(row["epoch_s"]) for row in csv.DictReader(stream)][1:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--freeze", choices=["head_only", "none"], default="head_only")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for number in range(options.rounds):
            a = statistics.median(ours(options.epochs, options.freeze))
            b = statistics.median(
                plain(options.epochs, options.freeze == "head_only", Path(scratch))
            )
            ratios.append(a / b)
            print(
                f"round {number + 1}: xfer {a:.2f} s, plain {b:.2f} s, ratio {a / b:.3f}",
                flush=True,
            )
    print(f"ratio of an epoch, median of {len(ratios)} rounds: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
