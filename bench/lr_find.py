"""What the rate that lr_find proposes is worth: shipped experiments with it and with their own.

    python bench/lr_find.py [--seeds 3] [--experiments NAME ...] [options]

Each experiment is planned as it is shipped, with features=auto; for every seed lr_find climbs
anew, and one fit is made at the experiment's own rate and one at the proposed one. Accuracy and
loss are those of the best checkpoint on the validation images, means over the seeds, beside the
last epoch's. Further options go to every run. Data and weights come from XFER_ASSETS (default
../shared/assets).
"""

import argparse
import contextlib
import csv
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ["XFER_ASSETS"] = os.environ["XFER_DATA"] = str(ASSETS)
SHIPPED = ["digits_sgd", "digits_finetune", "canidae_squeezenet_freeze"]


def run(experiment, options):
    """A quiet run's folder and result."""
    import xfer

    with contextlib.redirect_stdout(io.StringIO()):
        result = xfer.run(experiment, ["features=auto", *options])
    return result.folder, result.facts


def proposed(experiment, options):
    """The rate, and the processor seconds that it took."""
    began = time.process_time()
    folder, _ = run(experiment, ["stages=[lr_find]", *options])
    rate = json.loads((folder / "lr_find.json").read_text())["suggested"]
    return float(f"{rate:.2g}"), time.process_time() - began


def fitted(experiment, options):
    """Accuracy and loss of the best checkpoint, and those of the last epoch."""
    folder, facts = run(experiment, ["stages=[fit,evaluate]", *options])
    with (folder / "metrics.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    score = facts["scores"]["val"]
    return score["acc"], score["loss"], float(last["val_acc"]), float(last["val_loss"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--experiments", nargs="+", default=SHIPPED)
    parser.add_argument("options", nargs="*", help="further key=value for every run")
    asked = parser.parse_args()
    print("experiment                 rate                    best: acc  loss    last: acc  loss")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for experiment in asked.experiments:
            own, with_proposed, rates, seconds = [], [], [], []
            for seed in range(asked.seeds):
                options = [f"seed={seed}", "data.workers=0", *asked.options]
                rate, took = proposed(experiment, options)
                rates.append(rate)
                seconds.append(took)
                own.append(fitted(experiment, options))
                with_proposed.append(fitted(experiment, [*options, f"optim.lr={rate}"]))
            shown = "/".join(f"{rate:g}" for rate in rates)
            for what, figures in (("its own", own), (shown, with_proposed)):
                acc, loss, last_acc, last_loss = map(statistics.mean, zip(*figures, strict=True))
                print(
                    f"{experiment:<26} {what:<24} {acc:.4f} {loss:8.4f}  {last_acc:.4f} "
                    f"{last_loss:8.4f}",
                    flush=True,
                )
            print(f"{'':<26} lr_find: {statistics.median(seconds):.1f} processor seconds")


if __name__ == "__main__":
    main()
