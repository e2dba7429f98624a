"""Images a second of feature extraction and of fine-tuning, against a loop on synthetic data.

    python bench/throughput.py [--model resnet50] [--images 300] [--batch 64] [--epochs 4]
        [--device cpu|gpu] [--precision bf16-mixed] [--workers 2]

Photographs of Canidae (XFER_ASSETS, default ../shared/assets), repeated up to ``--images`` under
other names, weights from a file. The synthetic loop trains the same network on one batch that
stays on the device: what the device could do if data came at once. ``waits`` is the median share
of an epoch's training time that was spent waiting for data, with every file decoded anew in each
epoch and with files decoded once; the first epoch, which decodes and starts workers, is left out.
"""

import argparse
import contextlib
import csv
import io
import os
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import timm
import torch

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()


def photographs(folder, count):
    """``count`` links to photographs, a class a folder, in ``folder/train`` and 60 in val."""
    for split, number in (("train", count), ("val", 60)):
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
        *(f"trainer={options.device}", f"trainer.precision={options.precision}"),
        *(f"trainer.max_epochs={options.epochs}", f"data.batch_size={options.batch}"),
        *(f"data.workers={options.workers}", *more),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        result = xfer.run(None, typed)
    return list(csv.DictReader((result.folder / "metrics.csv").open())), result.facts


def finetuning(options, decoded_gb):
    """Images a second, and the share of time that training waits, behind the first epoch."""
    rows, facts = fit(options, "freeze=none", "features=never", f"data.decoded_gb={decoded_gb}")
    epoch = statistics.median(facts["timing"]["epoch_s"][1:])
    return options.images / epoch, statistics.median(float(r["data_share"]) for r in rows[1:])


def extraction(options):
    """Images a second, decoding included: of one view of each image."""
    _, facts = fit(options, "freeze=head_only", "features=require", "features.views=1")
    return (options.images + 60) / facts["timing"]["features_s"]


def synthetic(options):
    """Images a second of training steps on one batch that stays where it is."""
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    net = timm.create_model(options.model, num_classes=2).to(device)
    net = net.to(memory_format=torch.channels_last).train()
    images = torch.rand(options.batch, 3, 224, 224, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(2, (options.batch,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    cast = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in options.precision)
    steps = max(2, options.images // options.batch)

    def step():
        with cast:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    step().item()
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.item()  # waits for the device
    return steps * options.batch / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["XFER_CACHE"] = str(Path(scratch) / "cache")
        photographs(Path("photos"), options.images)
        torch.save(timm.create_model(options.model).state_dict(), "weights.pt")
        print(f"{options.model}, {options.device}, {options.precision}, batches of {options.batch}")
        ceiling = synthetic(options)
        print(f"  training on synthetic data  {ceiling:8.1f} images/s", flush=True)
        for name, decoded_gb in (("each time", 0), ("once", 8)):
            rate, waits = finetuning(options, decoded_gb)
            print(
                f"  fine-tuning, decoded {name:<9}{rate:6.1f} images/s, "
                f"{rate / ceiling:.2f} of synthetic, waits {waits:.1%}",
                flush=True,
            )
        print(f"  extraction of features      {extraction(options):8.1f} images/s")


if __name__ == "__main__":
    main()
