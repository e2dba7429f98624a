"""Whether the interval of a cross-validation covers the truth, and what a cross-validation costs.

    python bench/cross_validation.py coverage [--draws 200] [--images 100] [--folds 5] [--repeats 1]
                                            [--l2 0.03] [--sets canidae digits]
    python bench/cross_validation.py time [--folds 5] [--repeats 3]

Coverage: 100 images are drawn from all of a set, cross-validated as a run does it, and the final
model of the draw is scored on the rest, which is the truth. The sets are Canidae and Hymenoptera
(of XFER_ASSETS, train and val together, SqueezeNet's features) and the digits 5 to 9 of
scikit-learn on the network that was trained on 0 to 4. Time: whole commands on the 300 photographs
of Canidae, each in a new process: a plain run and a cross-validation, both with an empty
cache, and the cross-validation again in the same folder.
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
import sets

from xfer.config.hydra import compose_specs
from xfer.data.folds import divided
from xfer.evaluation.out_of_fold import OutOfFold
from xfer.evaluation.statistics import wilson
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.training import exact, logistic
from xfer.training.cross_validation import HeadProblem
from xfer.training.head_input import first_layer
from xfer.training.head_problem import out_of_fold, solution_of


def together(name, work):
    """A folder of links with all images of a set, by class."""
    for path in sorted(sets.folder(name, work).glob("*/*/*")):
        link = work / name / path.parent.name / f"{path.parts[-3]}_{path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)
    return work / name


def table(name, work):
    """Features float32 (n, d) of all images of a set as a run computes them, and their labels."""
    words = ["experiment=digits_freeze", "augment=none"]
    if name != "digits":
        words = [f"data.root={together(name, work)}", *sets.overrides("squeezenet1_0")]
    plan = make_plan(compose_specs([*words, "data.folds=2", "data.workers=0"]))
    frozen = exact.at_rest(plan, assemble(plan.parts, plan.state))
    cached = exact.features_of(plan, frozen)
    (head,) = plan.layout.heads
    features = exact.inputs(frozen, cached, first_layer(frozen.net, head), "train")
    return np.array(features), plan.split("train").labels


def draw(features, labels, options, seed):
    """The cross-validation of one draw, and the accuracy of its final model on the rest."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen, rest = np.sort(order[: options.images]), order[options.images :]
    x, y, count = features[chosen], labels[chosen], int(labels.max()) + 1
    strengths = (options.l2,) if options.l2 else logistic.STRENGTHS
    problem = HeadProblem([x], x, y, (), count, lambda counts: None, False, 0.0, strengths, 5, seed)
    folds = np.array(
        [divided(y, None, options.folds, 1000 * seed + i) for i in range(options.repeats)]
    )
    names = tuple(map(str, chosen))
    classes = tuple(map(str, range(count)))
    cv = OutOfFold(names, out_of_fold(problem, folds), y, folds, classes)
    solution = solution_of(problem)[1]
    best = solution.path[solution.best]
    answers = (features[rest] @ best.weight.T + best.bias).argmax(axis=1)
    return cv, float((answers == labels[rest]).mean()), len(rest)


def coverage(options, work):
    for name in options.sets:
        features, labels = table(name, work)
        inside, plain, widths, gaps = [], [], [], []
        for seed in range(options.draws):
            cv, truth, _ = draw(features, labels, options, seed)
            facts = cv.facts()
            low, high = facts["acc_ci95"]
            naive = wilson(round(facts["acc"] * facts["n"]), facts["n"])
            inside.append(low <= truth <= high)
            plain.append(naive[0] <= truth <= naive[1])
            widths.append(high - low)
            gaps.append(facts["acc"] - truth)
        print(
            f"{name}: {len(labels)} images, {options.draws} draws of {options.images}, "
            f"{options.folds} folds x {options.repeats}: covers {100 * np.mean(inside):.1f} % "
            f"(Wilson's interval {100 * np.mean(plain):.1f} %), width {np.mean(widths):.3f}, "
            f"cv less truth {np.mean(gaps):+.4f} (spread {np.std(gaps):.4f})",
            flush=True,
        )


def command(words, cache):
    began, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    place = cache.with_name(f"runs_{cache.name}")  # where its exported files still are, again
    place.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "xfer", *words],
        cwd=place,
        env={**os.environ, "XFER_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return np.array([time.perf_counter() - began, processor])


def timed(options, work):
    root = together("canidae", work)
    words = [f"data.root={root}", *sets.overrides("squeezenet1_0")]
    folds = [f"data.folds={options.folds}", f"data.repeats={options.repeats}"]
    command(["stages=[]", *words], work / "warm")  # files and libraries are in memory from here on
    plain = command(words, work / "plain")
    first = command([*words, *folds], work / "folds")
    second = command([*words, *folds], work / "folds")
    print(
        f"300 images, seconds by the clock (of processor time): a plain run {plain[0]:.1f} "
        f"({plain[1]:.1f}), {options.folds} folds x {options.repeats} {first[0]:.1f} "
        f"({first[1]:.1f}), {first[0] / plain[0]:.2f} ({first[1] / plain[1]:.2f}) times; "
        f"again {second[0]:.1f} ({second[1]:.1f})"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("coverage", "time"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--l2", type=float, help="a fixed penalty, in a tenth of the time")
    parser.add_argument("--sets", nargs="+", default=list(sets.DATA))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"coverage": coverage, "time": timed}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
