"""How far the probabilities of a solved head are from its accuracy, on images never seen.

    XFER_ASSETS=ASSETS python bench/calibration.py [--data canidae digits] [--draws 20]

All images of a set are drawn into training and test images as often as `--draws` says; head,
penalty, and calibration are fitted on the former alone, as a run fits them, and the latter are
scored. Features are computed once a network. `error` is the calibration error of result.json, over
the answers of all draws together; `by chance` what it would be on the mean if each image were right
exactly as often as it is sure, and `95 % below` its 95th percentile. An image that several draws
answered is right in all of them or in none there: they are no more images for that. `mean of draws`
is the mean of the error of each draw alone, which few images make large.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import sets
from sklearn.model_selection import StratifiedShuffleSplit

from xfer.config.hydra import compose_specs
from xfer.core.log import close_log, open_log
from xfer.evaluation import calibration
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.training import exact, logistic

PAIRS = (
    ("canidae", "squeezenet1_0"),
    ("canidae", "efficientnet_lite0"),
    ("hymenoptera", "squeezenet1_0"),
    ("hymenoptera", "efficientnet_lite0"),
    ("digits", "digits_freeze"),
)


def features(name, network, work):
    """Features (n, d) and labels (n,) of all images of a set, and how many of them train."""
    typed = ["stages=[fit]", "data.workers=0"]
    if network == "digits_freeze":
        typed.append("experiment=digits_freeze")
    else:
        typed += [f"data.root={sets.folder(name, work)}", *sets.overrides(network)]
    plan = make_plan(compose_specs(typed))
    frozen = exact.at_rest(plan, assemble(plan.parts, plan.state))
    cached = exact.features_of(plan, frozen)
    path = exact.first_layer(frozen.net, plan.layout.heads[0])
    parts = [exact.inputs(frozen, cached, path, split) for split in ("train", "val")]
    labels = [plan.split(split).labels for split in ("train", "val")]
    return np.concatenate(parts), np.concatenate(labels), len(labels[0])


def solved(x, labels, seed):
    """The head of these rows as a function, and held-out logits with their folds."""
    classes = int(labels.max()) + 1
    folds = logistic.folds(labels, 5, seed)
    rows = logistic.TrainingRows([x], x, labels, np.ones(len(labels)), np.ones(classes), 0.0, folds)
    found = logistic.solve(rows)
    best = found.path[found.best]
    return (lambda other: other @ best.weight.T + best.bias), *logistic.held_out(rows, found, seed)


def draw(x, labels, inside, outside, seed):
    """Logits of the images outside, by what calibrates them."""
    head, held_out, folds = solved(x[inside], labels[inside], seed)
    seen = np.isfinite(held_out).all(axis=1)
    names = tuple(map(str, range(int(labels.max()) + 1)))
    logits, found = head(x[outside]), {}
    for asked in ("none", "auto"):
        scaling = None
        if asked != "none":
            given = (held_out[seen], labels[inside][seen], folds[seen], asked, names)
            scaling = calibration.calibrate(*given).scaling
        found[asked] = logits if scaling is None else scaling.of(logits)
    return found


def floor(confidence, images, draws=200):
    """Mean and 95th percentile of the calibration error if each image were right exactly as often
    as it is sure; an image that was answered several times is right in all of them or in none."""
    rng, unique = np.random.default_rng(0), np.unique(images, return_inverse=True)[1]
    errors = []
    for _ in range(draws):
        luck = rng.random(unique.max() + 1)[unique]
        errors.append(calibration.confidence_gap(confidence, luck < confidence))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def row(name, logits, truth, images):
    ece = calibration.ece(logits, truth)
    z = logits - logits.max(axis=1, keepdims=True)
    share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    mean, high = floor(share.max(axis=1), images)
    loss = calibration.log_losses(logits, truth).mean()
    return f"| {name} | {len(truth):,} | {loss:.4f} | {ece:.4f} | {mean:.4f} | {high:.4f} |"


def measured(name, network, work, draws):
    """Rows of the published split, and of all draws together."""
    x, labels, train = features(name, network, work)
    first = np.arange(len(labels))
    given = draw(x, labels, first[:train], first[train:], 0)
    lines = []
    for kind, logits in given.items():
        words = f"{name}, {network} | published split | {kind}"
        lines.append(row(words, logits, labels[train:], first[train:]) + " |")
    share = (len(labels) - train) / len(labels)
    splitter = StratifiedShuffleSplit(draws, test_size=share, random_state=0)
    pooled = {kind: [] for kind in given}
    images = []
    each = {kind: [] for kind in given}
    for seed, (inside, outside) in enumerate(splitter.split(x, labels)):
        images.append(outside)
        for kind, logits in draw(x, labels, inside, outside, seed).items():
            pooled[kind].append(logits)
            each[kind].append(calibration.ece(logits, labels[outside]))
    images = np.concatenate(images)
    for kind, parts in pooled.items():
        words = f"{name}, {network} | {draws} draws | {kind}"
        lines.append(
            row(words, np.concatenate(parts), labels[images], images)
            + f" {np.mean(each[kind]):.4f} |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=sorted({name for name, _ in PAIRS}))
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    open_log(None)
    head = "set | images | calibration | n | loss | error | by chance | 95 % below | mean of draws"
    print(f"| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, network in PAIRS:
            if name in options.data:
                for line in measured(name, network, Path(folder), options.draws):
                    print(line, flush=True)
    close_log()


if __name__ == "__main__":
    main()
