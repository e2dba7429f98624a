"""Accuracy on Canidae with SqueezeNet weights: frozen, fine-tuned, and logistic regression.

    python bench/accuracy.py [--seeds 5] [--first-seed 0] [--folds 5]
        [--experiments freeze finetune]

60 validation photographs are too few to tune on, so all 300 are split into stratified folds, and
every figure is of the last epoch, never of the best one. The logistic regression (scikit-learn)
works on the same network's pooled features of unaugmented images. Data and weights come from
XFER_ASSETS (default ../shared/assets).
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ["XFER_ASSETS"] = str(ASSETS)


def photographs():
    paths = sorted((ASSETS / "Canidae").glob("*/*/*"))
    return paths, [path.parent.name for path in paths]


def manifest(folder, paths, labels, fold, number):
    train, val = fold
    file = folder / f"fold{number}.csv"
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "split"])
        for split, members in (("train", train), ("val", val)):
            rows.writerows([paths[i], labels[i], split] for i in members)
    return file


def features(paths):
    import torch
    from torchvision.models import squeezenet1_0

    from xfer.core.types import InputSpec
    from xfer.data.image import decode
    from xfer.data.preprocess import prepare
    from xfer.weights.formats.read import read

    spec = InputSpec((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = squeezenet1_0().eval()
    net.load_state_dict(read(ASSETS / "weights" / "squeezenet1_0_imagenet.safetensors").state)
    with torch.inference_mode():
        found = [
            net.features(torch.from_numpy(prepare(decode(path), spec))[None]).mean((2, 3))[0]
            for path in paths
        ]
    return torch.stack(found).numpy()


def regression(table, labels, folds):
    scores = []
    for train, val in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(table[train], labels[train])
        scores.append(float(model.score(table[val], labels[val])))
    return scores


def trained(experiment, file, seed, extra):
    import xfer

    typed = ["data=csv", f"data.file={file}", f"seed={seed}", "stages=[fit]", *extra]
    with Path(file).with_suffix(".log").open("w") as log:
        terminal, sys.stdout = sys.stdout, log
        try:
            folder = xfer.run(f"canidae_squeezenet_{experiment}", typed).folder
        finally:
            sys.stdout = terminal
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return float(rows[-1]["val_acc"])


def summary(name, scores, seconds=None):
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    took = f"  {seconds:6.1f} s a run" if seconds else ""
    print(
        f"{name:<22} {statistics.mean(scores):.4f} +- {spread:.4f}  {len(scores)} runs{took}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--experiments", nargs="*", default=["freeze", "finetune"])
    parser.add_argument("overrides", nargs="*", help="further key=value for every run")
    options = parser.parse_args()
    paths, labels = photographs()
    labels = np.array(labels)
    splitter = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    folds = list(splitter.split(paths, labels))
    summary("logistic regression", regression(features(paths), labels, folds))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        files = [manifest(Path(scratch), paths, labels, fold, i) for i, fold in enumerate(folds)]
        scores = {experiment: [] for experiment in options.experiments}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for experiment, found in scores.items():
                began = time.perf_counter()
                new = [trained(experiment, file, seed, options.overrides) for file in files]
                found += new
                seconds = (time.perf_counter() - began) / len(new)
                count = seed + 1 - options.first_seed
                summary(f"{experiment}, {count} seeds", found, seconds)


if __name__ == "__main__":
    main()
