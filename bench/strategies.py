"""Freeze strategies on Canidae with SqueezeNet weights: accuracy, interval, time, trainable share.

    python bench/strategies.py [--strategies head_only last_stage gradual lp_ft none] [--seeds 1]

Every strategy is scored once on each of five stratified folds of the 300 photographs, at its last
epoch; the interval is Wilson's for the 300, however many seeds there are. All train with AdamW at
0.001 for 10 epochs on a cosine, so the strategies differ in ``freeze`` alone. Times are the
median of a run's processor seconds, from its plan to the end of its fit. Further options go to
every run behind ``--``. Assets: XFER_ASSETS.
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

from accuracy import manifest, photographs
from sklearn.model_selection import StratifiedKFold

from xfer.evaluation.statistics import wilson


def run(file, seed, strategy, options):
    """Accuracy at the last epoch, processor seconds, share of the parameters that ever train."""
    import xfer
    import xfer.training.fit  # its imports are no part of the first run

    fixed = [
        *("data=csv", f"data.file={file}", "data.workers=0", "stages=[fit]", f"seed={seed}"),
        *(f"freeze={strategy}", "optim=adamw", "optim.lr=0.001"),
        *("trainer.max_epochs=10", "schedule=cosine"),
    ]
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        result = xfer.run("canidae_squeezenet_freeze", [*fixed, *options])
    with (result.folder / "metrics.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    params = result.facts["params"]
    share = params["trainable"] / params["total"]
    return float(last["val_acc"]), time.process_time() - began, share


def main():
    parser = argparse.ArgumentParser()
    names = ["head_only", "last_stage", "gradual", "lp_ft", "none"]
    parser.add_argument("--strategies", nargs="+", default=names)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("options", nargs="*", help="further key=value for every run")
    options = parser.parse_args()
    paths, labels = photographs()
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(paths, labels)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        files = [manifest(Path(scratch), paths, labels, fold, i) for i, fold in enumerate(folds)]
        print("strategy     accuracy  95 % interval       seconds  trainable", flush=True)
        for strategy in options.strategies:
            found = [
                run(file, seed, strategy, options.options)
                for seed in range(options.seeds)
                for file in files
            ]
            report(strategy, found, len(paths))


def report(strategy, found, images):
    accuracy = statistics.mean(row[0] for row in found)
    low, high = wilson(round(accuracy * images), images)
    seconds = statistics.median(row[1] for row in found)
    told = f"{accuracy:.4f}    {low:.4f} to {high:.4f}   {seconds:7.1f}  {100 * found[0][2]:.2f} %"
    print(f"{strategy:<12} {told}", flush=True)


if __name__ == "__main__":
    main()
