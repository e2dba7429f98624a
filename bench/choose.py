"""What a choice is worth: its model against the best single candidate, what its interval covers,
and whether it ends within its minutes.

    XFER_ASSETS=ASSETS python bench/choose.py accuracy [--draws 10]
    XFER_ASSETS=ASSETS python bench/choose.py coverage [--draws 200] [--images 100] [--repeats 2]
    XFER_ASSETS=ASSETS python bench/choose.py minutes [--minutes 2 5]

The candidates of the first two are pooled features at two cuts of SqueezeNet and two of
EfficientNet-Lite0, each with a solved head, chosen as ``xfer choose`` chooses. A draw takes
``--images`` images of a set, evenly of each class, to choose and fit on; all others are the truth.
Features are written to ``outputs/bench_choose``. The third runs the command itself, and its time is
that of the whole process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.preprocessing import StandardScaler

from xfer.config.hydra import compose_specs
from xfer.core.seeds import derive
from xfer.sweep.choosing.halving import Halving, Learned, halve, judge, worth
from xfer.sweep.choosing.learners import SolvedLearner
from xfer.training.logistic import STRENGTHS

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
WEIGHTS = {
    "squeezenet1_0": ASSETS / "weights/squeezenet1_0_imagenet.safetensors",
    "tf_efficientnet_lite0": ASSETS / "weights/tf_efficientnet_lite0_imagenet.safetensors",
}
CUTS = {
    "squeezenet1_0": ("features.9", "features.12"),
    "tf_efficientnet_lite0": ("blocks.4", "bn2"),
}
SETS = {
    "hymenoptera": [f"data.root={ASSETS / 'Hymenoptera'}"],
    "canidae": [f"data.root={ASSETS / 'Canidae'}"],
    "digits": ["data=digits"],
}
STORE = Path("outputs/bench_choose")
NONE = np.empty(0, np.int64)


def pooled(name, backbone):
    """Features of all images of a set at the cuts of a backbone, and the labels."""
    import torch

    from xfer.data.loader import EvalLoader, eval_images
    from xfer.models.network import assemble
    from xfer.plan.make import make_plan

    file = STORE / f"{name}_{backbone}.npz"
    if file.is_file():
        return np.load(file)
    library = "torchvision" if backbone == "squeezenet1_0" else "timm"
    chosen = [f"backbone={library}", f"backbone.name={backbone}", "stages=[fit]"]
    source = ["source=file", f"source.path={WEIGHTS[backbone]}"]
    plan = make_plan(compose_specs([*SETS[name], *chosen, *source]))
    net = assemble(plan.parts, plan.state).eval()
    records, labels = {cut: [] for cut in CUTS[backbone]}, []

    def see(cut):
        def hook(module, given, answer):
            records[cut].append(answer.mean((2, 3)).numpy())

        return hook

    for cut in records:
        net.get_submodule(cut).register_forward_hook(see(cut))
    with torch.inference_mode():
        for split in ("train", "val"):
            images = eval_images(plan.split(split), plan.card.input)
            for batch, truth in EvalLoader(images, 32, 0, pin=False):
                net(batch)
                labels.append(truth.numpy())
    STORE.mkdir(parents=True, exist_ok=True)
    arrays = {cut: np.concatenate(parts).astype(np.float32) for cut, parts in records.items()}
    np.savez(file, labels=np.concatenate(labels), **arrays)
    return np.load(file)


def learners(name):
    made, labels = [], None
    for backbone in WEIGHTS:
        table = pooled(name, backbone)
        labels = table["labels"].astype(np.int64)
        for cut in CUTS[backbone]:
            x, classes = table[cut], int(labels.max()) + 1
            learner = SolvedLearner(
                f"{backbone} {cut}", [x], x, labels, classes, strengths=STRENGTHS[2::3]
            )
            made.append(learner)
    return made, labels


class Ridge:
    """Ridge regression on the classes, in its dual form, of which hundreds of thousands of fits
    take minutes: for the coverage of the interval, which knows nothing of the learner."""

    def __init__(self, name, gram, labels, l2):
        self.name, self.gram, self.labels, self.l2 = name, gram, labels, l2
        self.truth = np.eye(int(labels.max()) + 1)[labels]

    def learn(self, rows, folds, test):
        """A fit a fold, and one to all rows."""
        held_out = np.full((len(rows), self.truth.shape[1]), np.nan, np.float32)
        for k in range(folds.max() + 1):
            held_out[folds == k] = self.fitted(rows[folds != k], rows[folds == k])
        return Learned(held_out, self.fitted(rows, test))

    def fitted(self, rows, test):
        """The answers for ``test`` of a fit to ``rows``."""
        mean = self.truth[rows].mean(axis=0)
        inner = self.gram[np.ix_(rows, rows)]
        centre = inner.mean(axis=0)
        centred = inner - centre - centre[:, None] + centre.mean()
        penalty = self.l2 * len(rows) * np.eye(len(rows))
        weights = np.linalg.solve(centred + penalty, self.truth[rows] - mean)
        asked = self.gram[np.ix_(test, rows)]
        asked = asked - asked.mean(axis=1, keepdims=True) - centre + centre.mean()
        return (6 * (asked @ weights + mean)).astype(np.float32)


def ridges(name):
    made, labels = [], None
    for backbone in WEIGHTS:
        table = pooled(name, backbone)
        labels = table["labels"].astype(np.int64)
        for cut in CUTS[backbone]:
            x = StandardScaler().fit_transform(table[cut].astype(float))
            gram = x @ x.T / x.shape[1]
            made += [Ridge(f"{backbone} {cut} {l2:g}", gram, labels, l2) for l2 in (0.01, 0.1)]
    return made, labels


class Taken:
    """A learner on a part of the images, which are numbered within it."""

    def __init__(self, learner, rows):
        self.name, self.learner, self.rows = learner.name, learner, rows

    def learn(self, rows, folds, test):
        """As the learner does, on images of the part."""
        return self.learner.learn(self.rows[rows], folds, self.rows[test])


def drawn(labels, images, number):
    """So many images, as many of each class, and all others."""
    draw = np.random.default_rng(derive("draw", number))
    each = images // len(np.unique(labels))
    members = [draw.permutation(np.flatnonzero(labels == k))[:each] for k in np.unique(labels)]
    rows = np.sort(np.concatenate(members))
    return rows, np.setdiff1d(np.arange(len(labels)), rows)


def accuracy(options):
    for name in options.sets:
        single, labels = learners(name)
        chosen, each, picks = [], [], []
        for number in range(options.draws):
            rows, rest = drawn(labels, options.images, number)
            rules = Halving(options.by, seed=number)
            halved = halve(single, labels, rows, rest, rules)
            scores = []
            for learner in single:
                alone = halve([learner], labels, rows, rest, rules)
                scores.append((alone.answers.argmax(1) == labels[rest]).mean())
            chosen.append((halved.answers.argmax(1) == labels[rest]).mean())
            picks.append(halved.winner.name)
            each.append(scores)
        means = np.mean(each, axis=0)
        best = int(means.argmax())
        gap = 100 * (np.mean(chosen) - means[best])
        says = "met" if gap >= -0.5 else "NOT MET"
        print(
            f"{says:<8} {name}: chosen {np.mean(chosen):.4f}, best single {means[best]:.4f} "
            f"({single[best].name}), {gap:+.2f} points over {options.draws} draws of "
            f"{options.images}; it was picked {picks.count(single[best].name)} times",
            flush=True,
        )
        for learner, mean in zip(single, means, strict=True):
            print(f"         {learner.name:<32} {mean:.4f}", flush=True)


def coverage(options):
    kind = ridges if options.learner == "ridge" else learners
    tables = {name: kind(name) for name in options.sets}
    inside = {name: [] for name in tables}
    records = {name: [] for name in tables}
    for number in range(options.draws):
        for name, (single, labels) in tables.items():
            rows, rest = drawn(labels, options.images, number)
            part = [Taken(learner, rows) for learner in single]
            rules = Halving(options.by, rungs=options.rungs, seed=number)
            final = halve(single, labels, rows, rest, rules)
            truth = (final.answers.argmax(1) == labels[rest]).mean()
            said = worth([judge(part, labels[rows], rules, i) for i in range(options.repeats)])
            low, high = said.ci95
            inside[name].append(low <= truth <= high)
            records[name].append((said.acc, truth, said.optimism, high - low, final.winner.acc))
        if (number + 1) % 20 == 0 or number + 1 == options.draws:
            for name in tables:
                acc, truth, optimism, width, promised = np.mean(records[name], axis=0)
                covered = np.mean(inside[name])
                says = "met" if 0.92 <= covered <= 0.98 else "NOT MET"
                print(
                    f"{says:<8} {name}: {covered:.3f} of {number + 1} intervals cover; judged "
                    f"{acc:.4f}, truth {truth:.4f}, its cross-validation {promised:.4f}, optimism "
                    f"{100 * optimism:+.2f} points, width {width:.3f}",
                    flush=True,
                )
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / "coverage.json").write_text(json.dumps(records))


def minutes(options):
    sources = ", ".join(f"{name}: {path}" for name, path in WEIGHTS.items())
    for name in options.sets:
        for allowed in options.minutes:
            words = [*SETS[name], f"minutes={allowed}", f"choose.sources={{{sources}}}"]
            words += ["choose.repeats=1000", *options.overrides]
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "xfer", "choose", *words], capture_output=True, text=True
            )
            share = (time.perf_counter() - began) / (60 * allowed)
            says = "met" if done.returncode == 0 and 0.95 <= share <= 1.05 else "NOT MET"
            print(f"{says:<8} {name}, {allowed:g} minutes: {100 * share:.1f} %", flush=True)
            wanted = ("chosen", "worth", "optimism", "the runner-up", "xfer: error")
            said = (done.stdout + done.stderr).splitlines()
            print("\n".join(f"         {line}" for line in said if line.startswith(wanted)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("accuracy", "coverage", "minutes"))
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--draws", type=int)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rungs", type=int, default=3)
    parser.add_argument("--learner", choices=("solved", "ridge"), default="solved")
    parser.add_argument("--by", choices=("loss", "acc"), default="loss")
    parser.add_argument("--minutes", type=float, nargs="*", default=[2.0, 5.0])
    parser.add_argument("overrides", nargs="*", help="further key=value for the command")
    options = parser.parse_args()
    if options.draws is None:
        options.draws = 10 if options.what == "accuracy" else 200
    {"accuracy": accuracy, "coverage": coverage, "minutes": minutes}[options.what](options)


if __name__ == "__main__":
    main()
