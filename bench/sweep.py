"""What a further trial of a sweep costs, against the start-up of a process.

    XFER_ASSETS=ASSETS python bench/sweep.py [--trials 32] [--epochs 20] [--slots 2] [--uncached]

Canidae (default ../shared/assets), a frozen ResNet-18 with weights from a file (random ones: the
time does not depend on what they are), fp32, batches of 24, one view of each image in the feature
cache, stages fit and evaluate. A further trial is a whole sweep less one of as many trials as
slots, over the trials between them. Start-up is a process that imports all that training needs,
plans, and ends. Wall time is divided by the slots, time of the processor is not: on a machine that
others use, compare the latter.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ |= {"XFER_ASSETS": str(ASSETS), "XFER_DATA": str(ASSETS)}
TRIAL = [
    *("experiment=default", "data=canidae", "backbone=resnet18", "optim=sgd"),
    *("source=file", "source.path=resnet18.pt"),
    *("freeze=head_only", "data.batch_size=24", "data.workers=0", "stages=[fit,evaluate]"),
]

MAIN = "import xfer.training.fit, xfer.evaluation.evaluate; from xfer.__main__ import main; main()"
# Programs that only plan: with the imports of planning, and with those of training, as xfer does
# them and as a Python does that nobody has told to look for garbage less often.
XFER = ("-m", "xfer")
READY = ("-c", f"from xfer.__main__ import import_at_ease; import_at_ease(); {MAIN}")
PLAIN = ("-c", MAIN)


def seconds(folder, *typed, program=XFER):
    """Wall and processor seconds of a command and everything that it starts."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *program, *typed]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return np.array([time.perf_counter() - began, used])


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
        torch.save(timm.create_model("resnet18").state_dict(), Path(folder) / "resnet18.pt")
        os.environ["XFER_CACHE"] = str(Path(folder) / "cache")
        epochs = f"trainer.max_epochs={options.epochs}"
        first = seconds(folder, *TRIAL, epochs, "features=require", "features.views=1")
        planning, starting, plain = (
            np.median([seconds(folder, *TRIAL, "stages=[]", program=p) for _ in range(3)], axis=0)
            for p in (XFER, READY, PLAIN)
        )
        print(f"wall s / processor s: first run with its features {told(first)}")
        print(f"start-up with the imports of planning {told(planning)}, of training ", end="")
        print(f"{told(starting)}, of training in a Python left as it is {told(plain)}", flush=True)
        for persistent in (False, True):
            few = sweep(folder, options, options.slots, persistent)
            many = sweep(folder, options, options.trials, persistent)
            further = (many - few) / (options.trials - options.slots)
            shares = [further / start * [options.slots, 1] for start in (starting, plain)]
            print(
                f"persistent={persistent}: {options.trials} trials {told(many)}, a further trial "
                f"{told(further)}, over start-up a slot {told(shares[0])}, over that of a "
                f"Python left as it is {told(shares[1])}",
                flush=True,
            )
        if options.uncached:
            one = seconds(folder, *TRIAL, epochs, "features=never")
            print(f"one trial on images: {told(one)}")


def told(pair):
    return f"{pair[0]:.2f} / {pair[1]:.2f}"


if __name__ == "__main__":
    main()
