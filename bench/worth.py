"""How often the band of stages=[worth] holds what a head scores on images that it has not seen.

    XFER_ASSETS=ASSETS python bench/worth.py [--draws 40] [--data canidae hymenoptera digits]
    XFER_ASSETS=ASSETS python bench/worth.py --labels

Each draw takes a random half of a set's images, stratified, and measures the curve on it. `half` is
how often the score of a head that is solved on all of that half, on the other half, lies in the
band for so many images; `quarter` the same for a curve measured on a random half of the half alone,
so that the band is asked about twice as many images as it has seen. The features are computed once.
With --labels the sets are those of bench/multilabel.py, and the score is mAP.
"""

import argparse
import tempfile
import time
from pathlib import Path

import multilabel
import numpy as np
from sets import ASSETS, NETWORKS, overrides

from xfer.config.hydra import compose_specs
from xfer.evaluation import learning_curve
from xfer.plan.make import make_plan
from xfer.training import logistic, subsampling, worth
from xfer.training.backbone_features import backbone_features
from xfer.training.multilabel_subsampling import subsampled_labels

SETS = ("canidae", "hymenoptera", "digits")


def features(data, network):
    """All images of a set: features float32 (n, d) and labels."""
    typed = ["experiment=digits_freeze"]
    if data != "digits":
        root = data.split("=", 1)[1] if "=" in data else ASSETS / data.capitalize()
        typed = [f"data.root={Path(root).resolve()}", *overrides(network)]
    return features_of(typed)


def features_of(typed):
    """The same of what is typed."""
    plan = make_plan(compose_specs([*typed, "stages=[worth]"]))
    made = backbone_features(plan, "worth")
    labels = [made.cached.work.splits[split].labels for split in ("train", "val")]
    return np.concatenate([made.rows["train"], made.rows["val"]]), np.concatenate(labels)


def head(x, labels, seed):
    """Weight and bias of the head that optim=exact solves."""
    classes = int(labels.max()) + 1
    folds, ones = logistic.folds(labels, 5, seed), np.ones(len(labels))
    rows = logistic.TrainingRows([x], x, labels, ones, np.ones(classes), 0.0, folds)
    solution = logistic.solve(rows)
    best = solution.path[solution.best]
    return best.weight, best.bias


def curve(x, labels, seed):
    classes = int(labels.max()) + 1
    return subsampling.subsampled(x, labels, classes, seed).curve(np.arange(classes), seed)


def part(labels, at, drawn):
    """A random stratified half of the positions ``at``."""
    kept = []
    for label in np.unique(labels):
        members = drawn.permutation(at[labels[at] == label])
        kept.append(members[: (len(members) + 1) // 2])
    return np.sort(np.concatenate(kept))


def measure(x, labels, draws):
    """Per draw: truth, and both bands with the medians of them."""
    rows, seconds = [], []
    for seed in range(draws):
        drawn = np.random.default_rng(seed)
        every = np.arange(len(labels))
        mine = part(labels, every, drawn)
        others, fewer = np.setdiff1d(every, mine), part(labels, mine, drawn)
        weight, bias = head(x[mine], labels[mine], seed)
        truth = ((x[others] @ weight.T + bias).argmax(axis=1) == labels[others]).mean()
        bands = []
        for some in (mine, fewer):
            began = time.perf_counter()
            found = curve(x[some], labels[some], seed)
            seconds.append(time.perf_counter() - began)
            bands.append(found.score(len(mine), len(others)))
        rows.append((truth, *bands))
    return rows, float(np.median(seconds))


def measure_labels(x, labels, draws):
    """The same of several labels, whose halves are drawn at random."""
    rows, seconds, classes = [], [], range(labels.shape[1])
    for seed in range(draws):
        mine, others = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
        fewer, check = mine[::2], (x[others], labels[others])
        found = worth.of_features(x[mine], labels[mine], classes, seed, check)
        began = time.perf_counter()
        curve = subsampled_labels(x[fewer], labels[fewer], seed).curve(list(classes), seed)
        seconds.append(time.perf_counter() - began)
        band = learning_curve.Band(**found["check"]["expected"])
        rows.append((found["check"]["map"], band, curve.score(len(mine), len(others))))
    return rows, float(np.median(seconds))


def show(name, rows, seconds, images):
    cells = [name, f"{images}", f"{len(rows)}"]
    for at in (1, 2):
        inside = [row[at].low - 1e-9 <= row[0] <= row[at].high + 1e-9 for row in rows]
        off = [abs(row[at].value - row[0]) for row in rows]
        wide = [row[at].high - row[at].low for row in rows]
        cells += [f"{100 * np.mean(inside):.0f} %", f"{np.mean(off):.3f}", f"{np.mean(wide):.3f}"]
    print(f"| {' | '.join([*cells, f'{seconds:.1f} s'])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--data", nargs="+", default=SETS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--labels", action="store_true", help="several labels an image")
    asked = parser.parse_args()
    print("| set, network | images | draws | half | off | band | quarter | off | band | a curve |")
    print("| --- " * 10 + "|")
    if asked.labels:
        with tempfile.TemporaryDirectory() as work:
            for name, file, network in multilabel.files(Path(work)):
                x, labels = features_of(multilabel.words(file, network))
                show(name, *measure_labels(x, labels, asked.draws), len(labels))
        return
    for data in asked.data:
        for network in asked.networks if data != "digits" else ["digits_resnet"]:
            x, labels = features(data, network)
            rows, seconds = measure(x, labels, asked.draws)
            show(f"{data}, {network}", rows, seconds, len(labels))


if __name__ == "__main__":
    main()
