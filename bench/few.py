"""Heads of a few images of each class, by how the variances of features are moderated.

    XFER_ASSETS=ASSETS python bench/few.py [--data hymenoptera canidae NAME=FOLDER]
        [--networks efficientnet_lite0] [--images 10 40] [--draws 10] [--more 0 1 10 100]
        [--optim exact adamw sgd]

Of all images of a set so many of each class are drawn to train on, and the others are asked.
`--more` are the further images in which each feature is taken to vary as features do on average
(xfer/training/feature_moments.py): 0 is plain standardising. The penalty is chosen and the head
calibrated as in a run. With another `--optim` than exact the head is trained step by step, with the
rate and the epochs that a run takes by itself. Figures are means over the draws, the error is that
of the calibration.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from calibration import draw, features

from xfer.core.log import open_log
from xfer.evaluation.calibration import ece, log_losses
from xfer.models.head import Linear
from xfer.sweep.choosing.learners import Steps, TrainedLearner
from xfer.training import feature_moments
from xfer.training.loss import CrossEntropy
from xfer.training.optim import AdamW, Sgd
from xfer.training.schedule import Cosine

EPOCHS, BATCH = 50, 24


def drawn(labels, images, seed):
    """So many images of each class, half of a class that has fewer, and all others."""
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    inside = np.sort(np.concatenate([c[: min(images, len(c) // 2)] for c in classes]))
    return inside, np.setdiff1d(np.arange(len(labels)), inside)


def scores(x, labels, images, draws):
    """Accuracy, loss and calibration error, each the mean of so many draws."""
    found = []
    for seed in range(draws):
        inside, outside = drawn(labels, images, seed)
        logits, truth = draw(x, labels, inside, outside, seed)["auto"], labels[outside]
        right = (logits.argmax(1) == truth).mean()
        found.append((right, log_losses(logits, truth).mean(), ece(logits, truth)))
    return np.mean(found, axis=0)


def stepped(x, labels, optim, images, draws):
    """The same of heads that `optim` trains step by step, with a rate and epochs as a run has."""
    classes, found = int(labels.max()) + 1, []
    kind = {"adamw": AdamW(lr=0.001), "sgd": Sgd(lr=0.01)}[optim]
    for seed in range(draws):
        inside, outside = drawn(labels, images, seed)
        how = Steps(Linear(), CrossEntropy(), kind, Cosine(), EPOCHS, BATCH, seed)
        learner = TrainedLearner("", [x], x, labels, classes, how)
        none_held_out = np.full(len(inside), -1)
        logits = learner.learn(inside, none_held_out, outside).answers.astype(np.float64)
        truth = labels[outside]
        right = (logits.argmax(1) == truth).mean()
        found.append((right, log_losses(logits, truth).mean(), ece(logits, truth)))
    return np.mean(found, axis=0)


def table(name, network, optim, options, work):
    """The rows of one set, network and optimizer."""
    x, labels, _ = features(name, network, work)
    for images in options.images:
        for feature_moments._MORE in options.more:
            if optim == "exact":
                found = scores(x, labels, images, options.draws)
            else:
                found = stepped(x, labels, optim, images, options.draws)
            words = f"{name.split('=')[0]} | {network} | {optim} | {images}"
            figures = " | ".join(f"{figure:.4f}" for figure in found)
            print(f"| {words} | {feature_moments._MORE} | {figures} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["hymenoptera", "canidae"])
    parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--more", type=int, nargs="+", default=[0, 1, 10, 100])
    parser.add_argument("--optim", nargs="+", default=["exact"])
    options = parser.parse_args()
    open_log(None)
    head = "set | network | optim | images a class | more | accuracy | loss | error"
    print(f"| {head} |\n|{' --- |' * (head.count('|') + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.data:
            for network in options.networks:
                for optim in options.optim:
                    table(name, network, optim, options, Path(folder))


if __name__ == "__main__":
    main()
