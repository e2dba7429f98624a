"""What checkpoints cost a fit, at the default interval.

    python bench/checkpoint.py [--rounds 3] [--epochs 4]

Fits the digits with and without checkpoints, in turn, and prints the ratio of the two times of
every round beside the seconds that went into writing, which the ratio's noise cannot hide. Without
checkpoints the best state is kept in memory and written once, at the end. The promise: at most
5 % of the fit, or 0.2 s where that is more.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import xfer
import xfer.training.fit
from xfer.training.callbacks import progress
from xfer.training.callbacks.progress import History

ALL = ["stages=[fit]", "data.workers=0"]
CASES = {
    "small network, all of it": ["freeze=none", "augment=standard"],
    "ResNet-18, all of it": [
        "backbone=resnet18",
        "backbone.image_size=64",
        "freeze=none",
        "source=none",
    ],
    "ResNet-18, head on features": [
        "backbone=resnet18",
        "backbone.image_size=64",
        "source=none",
        "features=require",
    ],
}


class Spent:
    """Seconds inside what :meth:`around` is put around."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        """``function``, its seconds counted."""

        def timed(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@contextmanager
def replaced(*changes):
    """Have (owner, name, value) hold for a while."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


@contextmanager
def written(spent):
    """Checkpoints as they are, their seconds counted."""
    with replaced(
        (History, "save_resume", spent.around(History.save_resume)),
        (progress, "write_snapshot", spent.around(progress.write_snapshot)),
    ):
        yield


@contextmanager
def held():
    """The best state stays in memory until the end, and nothing else is kept."""
    last = {}

    def hold(path, snapshot):
        state = {name: tensor.detach().clone() for name, tensor in snapshot.state.items()}
        last[path] = progress.Snapshot(snapshot.card, state, snapshot.progress, snapshot.frozen)

    original = progress.write_snapshot

    def write_once(self):
        for path, snapshot in last.items():
            original(path, snapshot)

    with replaced(
        (History, "save_resume", lambda self, trainer, name="last": None),
        (History, "close", write_once),
        (progress, "write_snapshot", hold),
    ):
        yield


def fitted(options, epochs):
    """Seconds that the fit says it took."""
    terminal = sys.stdout
    with Path("log").open("w") as log:
        sys.stdout = log
        try:
            done = xfer.run("digits_sgd", [*ALL, *options, f"trainer.max_epochs={epochs}"])
        finally:
            sys.stdout = terminal
    return done.facts["timing"]["fit_s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["XFER_CACHE"] = scratch
        for name in asked.cases:
            options = CASES[name]
            fitted(options, 1)
            for number in range(asked.rounds):
                spent = Spent()
                with held():
                    without = fitted(options, asked.epochs)
                with written(spent):
                    whole = fitted(options, asked.epochs)
                verdict = "kept" if spent.seconds <= max(0.05 * whole, 0.2) else "BROKEN"
                print(
                    f"{name:<28} round {number + 1}: {without:.2f} s without, {whole:.2f} s with, "
                    f"ratio {whole / without:5.3f}; {spent.seconds:6.3f} s in checkpoints = "
                    f"{100 * spent.seconds / whole:4.2f} %, {verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
