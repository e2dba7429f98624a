"""What a further trial of a sweep costs, and 32 of them against one trial on images.

    XFER_ASSETS=ASSETS python bench/sweep.py [--trials 32] [--epochs 20] [--slots 2]

Canidae (default ../shared/assets), a frozen ResNet-18 with random weights (the time does not
depend on them), fp32, batches of 24, one view of each image in the feature cache, stages fit and
evaluate. A trial more is (seconds of the whole sweep - of a sweep of as many trials as slots) over
the further trials. Starting up is ``python -m xfer`` on the digits for one epoch without training
counted: the seconds of a process that only plans.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ |= {"XFER_ASSETS": str(ASSETS), "XFER_DATA": str(ASSETS)}
TRIAL = [
    *("experiment=default", "data=canidae", "backbone=resnet18", "source=none", "optim=sgd"),
    *("freeze=head_only", "data.batch_size=24", "data.workers=0", "stages=[fit,evaluate]"),
]


def seconds(folder, *typed):
    began = time.perf_counter()
    command = [sys.executable, "-m", "xfer", *typed]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return time.perf_counter() - began


def sweep(folder, options, count, persistent):
    """Seconds of a sweep of ``count`` trials over the rate, whose features are there."""
    rates = ",".join(f"{0.001 * 1.2**i:.6g}" for i in range(count))
    return seconds(
        folder,
        *("-m", *TRIAL, f"trainer.max_epochs={options.epochs}", "features=require"),
        *("features.views=1", f"optim.lr={rates}", f"hydra.launcher.slots={options.slots}"),
        f"hydra.launcher.persistent={str(persistent).lower()}",
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--uncached", action="store_true", help="one trial on images as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XFER_CACHE"] = str(Path(folder) / "cache")
        epochs = f"trainer.max_epochs={options.epochs}"
        first = seconds(folder, *TRIAL, epochs, "features=require", "features.views=1")
        plans = [seconds(folder, *TRIAL, "stages=[]") for _ in range(3)]
        starting = statistics.median(plans)
        print(f"first run with its features {first:.1f} s; start-up of a process {starting:.2f} s")
        for persistent in (False, True):
            few = sweep(folder, options, options.slots, persistent)
            many = sweep(folder, options, options.trials, persistent)
            further = (many - few) / (options.trials - options.slots)
            share = further / (starting / options.slots)
            print(
                f"persistent={persistent}: {options.trials} trials {many:.1f} s, a further trial "
                f"{further:.2f} s = {share:.2f} x start-up / {options.slots} slots",
                flush=True,
            )
        if options.uncached:
            one = seconds(folder, *TRIAL, epochs, "features=never")
            print(f"one trial on images: {one:.1f} s")


if __name__ == "__main__":
    main()
