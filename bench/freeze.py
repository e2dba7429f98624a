"""What freezing saves: whole fits against plain Lightning loops and the floor, as ratios.

    python bench/freeze.py [--models resnet18 resnet50] [--views 1] [--precision 32-true]
        [--device cpu|gpu]
    python bench/freeze.py --models resnet18 --trials 32

Canidae (XFER_ASSETS, default ../shared/assets), weights from a file (random ones: the time does
not depend on what they are), batches of 24, no data workers beside the one process, so that every
turn has the same processor. All turns of one model come from one process and are taken
alternately. The floor is to decode and preprocess every image once and run one forward pass.
``fit`` counts features and fit together, as result.json has them.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ |= {"XFER_ASSETS": str(ASSETS), "XFER_DATA": str(ASSETS)}


def fit(model, options, *more):
    """Seconds of one fit, and its result."""
    import timm

    import xfer

    weights = Path(f"{model}.pt")
    if not weights.is_file():
        torch.save(timm.create_model(model).state_dict(), weights)
    common = [
        *("data=canidae", f"backbone={model}", "source=file", f"source.path={weights}"),
        *("optim=sgd", "optim.lr=0.01"),
        *("stages=[fit]", f"trainer.max_epochs={options.epochs}", "data.workers=0"),
        *(f"trainer={options.device}", f"trainer.precision={options.precision}"),
        "experiment=default",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        result = xfer.run(None, [*common, *more])
    return result.facts["timing"]["fit_s"], result


def step(model, options, freeze):
    """Milliseconds of a training step on images, at a rate that random weights survive."""
    less = argparse.Namespace(**{**vars(options), "epochs": 2})
    steps = ("features=never", "augment=none", "optim.lr=0.0001")
    _, result = fit(model, less, f"freeze={freeze}", *steps)
    return result.facts["timing"]["step_ms_median"]


def floor(model, options):
    """Decode and preprocess every image once, and one forward pass."""
    import timm

    from xfer.core.types import InputSpec
    from xfer.data.image import decode
    from xfer.data.preprocess import prepare

    spec = InputSpec((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    net = timm.create_model(model, num_classes=0).eval()
    net = net.to(device, memory_format=torch.channels_last)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision != "32-true")
    paths = sorted((ASSETS / "Canidae").glob("*/*/*"))
    began = time.perf_counter()
    with torch.inference_mode(), cast:
        for i in range(0, len(paths), 24):
            arrays = [torch.from_numpy(prepare(decode(path), spec)) for path in paths[i : i + 24]]
            # Back on the processor, so that the time includes what the device still works on.
            net(torch.stack(arrays).to(device, memory_format=torch.channels_last)).cpu()
    return time.perf_counter() - began


def plain_lightning(model, options, epochs):
    """Seconds of the usual frozen LightningModule over the usual loaders, for ``epochs``."""
    import pytorch_lightning as pl
    import timm
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    tensor.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crop = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]

    class Plain(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = timm.create_model(model, num_classes=2)
            self.net.requires_grad_(False)
            self.net.get_classifier().requires_grad_(True)

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.get_classifier().parameters(), 0.01, momentum=0.9)

    train = ImageFolder(ASSETS / "Canidae/train", v2.Compose([*crop, *tensor]))
    val = ImageFolder(
        ASSETS / "Canidae/val", v2.Compose([v2.Resize(256), v2.CenterCrop(224), *tensor])
    )
    loaders = (
        torch.utils.data.DataLoader(train, 24, shuffle=True),
        torch.utils.data.DataLoader(val, 64),
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    device = {"accelerator": options.device, "devices": 1}
    trainer = pl.Trainer(max_epochs=epochs, num_sanity_val_steps=0, **device, **quiet)
    began = time.perf_counter()
    trainer.fit(Plain(), *loaders)
    return time.perf_counter() - began


def said(what, seconds):
    """The seconds, printed at once: whoever ends this early has seen what was measured by then."""
    print(f"  {what} {seconds:.2f} s", flush=True)
    return seconds


def measure(model, options, cache):
    steps, firsts, agains, floors, loops = [], [], [], [], []
    for _ in range(options.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        features = ("freeze=head_only", "features=require", f"features.views={options.views}")
        firsts.append(said(f"{model}: first", fit(model, options, *features)[0]))
        for _ in range(3):
            agains.append(said(f"{model}: again", fit(model, options, *features)[0]))
        floors.append(said(f"{model}: floor", floor(model, options)))
        # Every epoch costs the same; the rest of them is multiplied.
        loop = plain_lightning(model, options, 2) / 2 * options.epochs
        loops.append(said(f"{model}: plain Lightning", loop))
        steps.append(step(model, options, "none") / step(model, options, "head_only"))
    first, again, low, loop = map(statistics.median, (firsts, agains, floors, loops))
    kind = f"{options.views} views, {options.precision}"
    print(f"{model}, {options.epochs} epochs, {kind}, medians of {options.rounds}")
    print(f"  frozen step on images: fine-tuning takes {statistics.median(steps):.2f} x as long")
    print(f"  first run: {first:.2f} s = {first / low:.2f} x the floor ({low:.2f} s)")
    print(f"             allowed 1.3 x the floor + 2 s = {1.3 * low + 2:.2f} s")
    print(f"  again:     {again:.2f} s")
    print(f"  plain Lightning loop: {loop:.1f} s = {loop / first:.1f} x first, ", end="")
    print(f"{loop / again:.0f} x again")


def trials(model, options):
    """Many trials over rate and head on one set of features, against one trial on images."""
    kept = ("freeze=head_only", "features=require", "features.views=1")
    began = time.process_time()
    for i in range(options.trials):
        head = ("linear", "dropout", "mlp", "linear")[i % 4]
        fit(model, options, *kept, f"optim.lr={0.001 * 1.3**i:g}", f"head={head}")
    many, began = time.process_time() - began, time.process_time()
    fit(model, options, "freeze=head_only", "features=never", "trainer.precision=32-true")
    one = time.process_time() - began
    print(
        f"{model}: {options.trials} trials on features take {many:.1f} s of processor time, one "
        f"trial on images in fp32 {one:.1f} s: {many / one:.2f} x",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--views", default="1", help="features.views of the frozen fits")
    parser.add_argument("--trials", type=int, default=0, help="measure so many trials instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["XFER_CACHE"] = str(Path(scratch) / "cache")
        for model in options.models:
            if options.trials:
                trials(model, options)
                continue
            measure(model, options, Path(scratch) / "cache" / "features")


if __name__ == "__main__":
    main()
