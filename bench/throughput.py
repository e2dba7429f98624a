"""Where the time of fine-tuning goes, against a careful plain loop and one on synthetic data.

    python bench/throughput.py [--model resnet50] [--images 300] [--val 60] [--batch 64]
        [--epochs 3] [--rounds 3] [--device cpu|gpu] [--precision bf16-mixed] [--workers 2]

Photographs of Canidae (XFER_ASSETS, default ../shared/assets), repeated up to ``--images`` under
other names, weights from a file. xfer and the loops take turns, each in a process of its own, and
the first epoch, which decodes and starts workers, is left out. ``synthetic`` trains on one batch
that stays on the device, and neither validates nor writes anything. ``plain`` is a loop in PyTorch
that decodes, crops, validates and saves as a careful user would. ``waits`` is the share of training
time spent waiting for data. On the CPU the split says how much processor time each part of an epoch
of xfer takes, with one thread and no data workers; a part's time is without the parts inside it,
and ``--rounds 0`` prints nothing else.
"""

import argparse
import contextlib
import csv
import functools
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import timm
import torch

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
SIZE = 224


def photographs(folder, count, val):
    """``count`` links to photographs, a class a folder, in ``folder/train`` and ``val`` in val."""
    for split, number in (("train", count), ("val", val)):
        found = sorted((ASSETS / "Canidae" / split).glob("*/*"))
        for i, path in enumerate(islice(cycle(found[::3] + found[1::3] + found[2::3]), number)):
            target = folder / split / path.parent.name / f"{i}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            # A byte behind the end of a JPEG changes its hash and nothing else.
            target.write_bytes(path.read_bytes() + f"{split}{i}".encode())


def fit(options, *more):
    """The rows of metrics.csv and the result of a fit."""
    import xfer

    typed = [
        *("data=folder", "data.root=photos", f"backbone={options.model}", "source=file"),
        *("source.path=weights.pt", "experiment=default", "stages=[fit]", "optim=sgd"),
        *("data.leakage=ignore", "optim.lr=0.003"),
        *(f"trainer={options.device}", f"trainer.precision={options.precision}"),
        *(f"trainer.max_epochs={options.epochs}", f"data.batch_size={options.batch}"),
        *(f"data.workers={options.workers}", *more),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        result = xfer.run(None, typed)
    return list(csv.DictReader((result.folder / "metrics.csv").open())), result.facts


def ours(options):
    """Median seconds of an epoch, and the share of it that training waits for data."""
    rows, _ = fit(options, "freeze=none", "features=never")
    times, waits = ([float(row[k]) for row in rows[1:]] for k in ("epoch_s", "data_share"))
    return {"epoch": statistics.median(times), "waits": statistics.median(waits)}


def extraction(options):
    """Seconds to compute the features of every image, decoding included, in one view."""
    _, facts = fit(options, "freeze=head_only", "features=require", "features.views=1")
    return {"seconds": facts["timing"]["features_s"]}


def network(options):
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    net = timm.create_model(options.model, num_classes=2).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.003, momentum=0.9)
    cast = functools.partial(
        torch.autocast, device.type, torch.bfloat16, enabled="bf16" in options.precision
    )
    return net.to(memory_format=torch.channels_last).train(), optimizer, cast, device


def step(net, optimizer, cast, images, labels):
    with cast():
        loss = torch.nn.functional.cross_entropy(net(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def synthetic(options):
    """Median seconds of an epoch's steps on one batch that stays where it is."""
    net, optimizer, cast, device = network(options)
    images = torch.rand(options.batch, 3, SIZE, SIZE, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(2, (options.batch,), device=device)
    times = []
    for _ in range(options.epochs):
        began = time.perf_counter()
        for _ in range(max(1, round(options.images / options.batch))):
            loss = step(net, optimizer, cast, images, labels)
        loss.item()  # waits for the device
        times.append(time.perf_counter() - began)
    return {"epoch": statistics.median(times[1:])}


def plain(options):
    """Median seconds of an epoch of a plain loop, and its processor time: steps, validation and one
    file."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    tensor.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crop = v2.RandomResizedCrop(SIZE, ratio=(0.75, 1.333), antialias=True)
    views = (
        v2.Compose([crop, v2.RandomHorizontalFlip(), *tensor]),
        v2.Compose([v2.Resize(256), v2.CenterCrop(SIZE), *tensor]),
    )
    kept = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    train = DataLoader(ImageFolder("photos/train", views[0]), options.batch, shuffle=True, **kept)
    val = DataLoader(ImageFolder("photos/val", views[1]), 64, **kept)
    net, optimizer, cast, device = network(options)

    def placed(batch):
        images, labels = (part.to(device) for part in batch)
        return images.contiguous(memory_format=torch.channels_last), labels

    times, processor = [], []
    for _ in range(options.epochs):
        began, before = time.perf_counter(), time.process_time()
        net.train()
        for batch in train:
            step(net, optimizer, cast, *placed(batch))
        net.eval()
        with torch.inference_mode(), cast():
            answers = [(net(images).argmax(1) == labels) for images, labels in map(placed, val)]
        torch.cat(answers).float().mean().item()
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, "plain.pt")
        times.append(time.perf_counter() - began)
        processor.append(time.process_time() - before)
    return {"epoch": statistics.median(times[1:]), "cpu": statistics.median(processor[1:])}


class Clock:
    """Processor seconds by part; a part's are without those of the parts inside it."""

    def __init__(self):
        self.spent, self.inside, self.last = {}, ["everything else"], time.process_time()

    def turn(self):
        """Give the time since the last turn to the part that is under way."""
        now, part = time.process_time(), self.inside[-1]
        self.spent[part] = self.spent.get(part, 0) + now - self.last
        self.last = now

    def watch(self, owner, name, part):
        """Count what the function ``name`` of ``owner`` takes as ``part``."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*given, **named):
            self.turn()
            self.inside.append(part)
            try:
                return inner(*given, **named)
            finally:
                self.turn()
                self.inside.pop()

        static = isinstance(owner, type) and isinstance(owner.__dict__.get(name), staticmethod)
        setattr(owner, name, staticmethod(timed) if static else timed)


def watched(clock):
    """Lay ``clock`` around the parts of an epoch."""
    import pytorch_lightning
    from torchvision.transforms import v2

    from xfer.data import augment, decode_cache, image, loader
    from xfer.training import fit as fitting
    from xfer.training import module, nan_guard
    from xfer.training.callbacks import progress

    classifier = module.Classifier
    for owner, name, part in (
        (image, "decode", "decode"),
        (decode_cache.Decoded, "__getitem__", "read what was decoded"),
        (v2.RandomResizedCrop, "__call__", "crop"),
        (v2.RandomHorizontalFlip, "__call__", "flip"),
        (decode_cache, "fit_to_size", "resize for validation"),
        (augment, "normalise", "pixels to numbers"),
        (fitting, "normalise", "pixels to numbers"),
        (loader.ImageDataset, "__getitem__", "seed an image"),
        (loader.ImageDataset, "collate", "collate"),
        (classifier, "_placed", "channels last"),
        (classifier, "loss_of", "forward"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.SGD, "step", "optimizer"),
        (module, "norm", "look for NaN"),
        (nan_guard.NanGuard, "note", "look for NaN"),
        (nan_guard.NanGuard, "check", "look for NaN"),
        (classifier, "check_weights", "look for NaN"),
        (classifier, "seed_step", "seed a step"),
        (classifier, "validation_step", "validation forward"),
        (classifier, "score", "metrics"),
        (progress, "write_snapshot", "checkpoints"),
        (pytorch_lightning.Trainer, "save_checkpoint", "checkpoints"),
    ):
        clock.watch(owner, name, part)


def split(options):
    """Processor seconds of the parts of an epoch: of each the median."""
    from xfer.training.callbacks.timeline import Timeline

    torch.set_num_threads(1)
    options.workers = 0
    clock, epochs = Clock(), []
    watched(clock)
    end = Timeline.on_train_epoch_end

    def ended(*given):
        end(*given)
        clock.turn()
        epochs.append(clock.spent)
        clock.spent = {}

    Timeline.on_train_epoch_end = ended
    fit(options, "freeze=none", "features=never")
    parts = {part for epoch in epochs[1:] for part in epoch}
    return {part: statistics.median(e.get(part, 0) for e in epochs[1:]) for part in parts}


PARTS = {f.__name__: f for f in (ours, plain, synthetic, extraction, split)}


def turn(part, *more, **env):
    """What ``part`` measures in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *more, "--part", part]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **env}
    )
    return json.loads(done.stdout.splitlines()[-1])


def told_split():
    """Print where the processor time of an epoch goes, and what a plain loop needs."""
    one = {"OMP_NUM_THREADS": "1"}
    parts, other = turn("split", **one), turn("plain", "--workers=0", **one)["cpu"]
    total = sum(parts.values())
    print(f"  an epoch of xfer, processor time {total:.2f} s; of the plain loop {other:.2f} s")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"    {part:<24}{seconds:8.3f} s {100 * seconds / total:5.1f} %", flush=True)


def compare(options):
    """Rounds in which the three take turns, and the medians."""
    names, rounds = ("ours", "plain", "synthetic"), []
    for _ in range(options.rounds):
        rounds.append({name: turn(name) for name in names})
    for name in names:
        epoch = statistics.median(r[name]["epoch"] for r in rounds)
        ratio = statistics.median(r[name]["epoch"] / r["plain"]["epoch"] for r in rounds)
        called = "xfer" if name == "ours" else name
        print(f"  {called:<10}{epoch:8.2f} s an epoch, {ratio:.2f} of plain", flush=True)
    waits = statistics.median(r["ours"]["waits"] for r in rounds)
    print(f"  xfer waits for data {100 * waits:.1f} % of the training time")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--val", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["XFER_CACHE"] = str(Path(scratch) / "cache")
        photographs(Path("photos"), options.images, options.val)
        torch.save(timm.create_model(options.model).state_dict(), "weights.pt")
        print(f"{options.model}, {options.device}, {options.precision}, batches of {options.batch}")
        if options.device == "cpu":
            told_split()
        if options.rounds:
            compare(options)
            rate = (options.images + options.val) / turn("extraction")["seconds"]
            print(f"  extraction of features {rate:.1f} images/s")


if __name__ == "__main__":
    main()
