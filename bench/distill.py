"""Whether a student learns more with a teacher than from labels alone, and what a second one costs.

    XFER_ASSETS=ASSETS python bench/distill.py [heads steps seconds] [--draws 20] [--seeds 5]

`heads`: all images of a set are drawn into training and test images as often as `--draws` says. The
teacher is a head solved on EfficientNet-Lite0, the student one on SqueezeNet, alone and with
several temperatures and weights of the loss; every penalty is chosen by folds of the training
images. The test images of all draws are scored. `better` is the mean over the draws of the
accuracy and of the loss less those of the student alone, with the 95 % interval of the corrected
resampled t-test (Nadeau and Bengio, 2003).

`steps`: on the digits 5 to 9, a small network without pretrained weights, trained step by step on
augmented images, as often as `--seeds` says, alone and with a fine-tuned teacher that sees the
same crops. No image of val chooses anything. The interval is Student's t over the seeds, of the
same validation images.

`seconds`: what a teacher adds to a student's run on Canidae, whose own features are cached before.
A run is measured in seconds of the processor, which other processes change less than the clock, and
compared with the student alone that runs right before it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import sets
from calibration import features
from scipy.stats import t as student_t
from sklearn.model_selection import StratifiedShuffleSplit

import xfer
from xfer.core.log import close_log, open_log
from xfer.evaluation.calibration import log_losses
from xfer.training import logistic
from xfer.training.soft_targets import SoftTargets

TEACHER, STUDENT = "efficientnet_lite0", "squeezenet1_0"
SETS = ("canidae", "hymenoptera")
TRIED = ((1.0, 0.5), (2.0, 0.5), (4.0, 0.5), (2.0, 0.9))
HEAD = "| set | network | n | accuracy | better, 95 % interval | loss | better, 95 % interval |"
STEPS = [
    "experiment=digits_sgd",
    "features=auto",
    "freeze=none",
    "augment=standard",
    "augment.flip=0",
    "augment.scale=[0.6,1.0]",
    "stages=[fit,evaluate]",
]


def solved(x, labels, seed, soft=None):
    """The head of these rows as a function."""
    classes = int(labels.max()) + 1
    parts = logistic.folds(labels, 5, seed)
    ones = (np.ones(len(labels)), np.ones(classes))
    solution = logistic.solve(
        logistic.TrainingRows([x], x, labels, *ones, 0.0, parts, soft), nearly=True
    )
    best = solution.path[solution.best]
    return lambda other: (other @ best.weight.T + best.bias).astype(np.float32)


def scored(logits, truth):
    right = (logits.argmax(axis=1) == truth).mean()
    return float(right), float(log_losses(np.asarray(logits, np.float64), truth).mean())


def interval(differences, extra):
    """The mean and its 95 % interval; `extra` is what images shared by the draws add."""
    d = np.asarray(differences)
    half = student_t.ppf(0.975, len(d) - 1) * np.sqrt((1 / len(d) + extra) * d.var(ddof=1))
    return f"{d.mean():+.4f} ({d.mean() - half:+.4f} to {d.mean() + half:+.4f})"


def table(name, each, count, extra):
    """Rows of every network in ``each``, lists of (accuracy, loss), beside ``student alone``."""
    alone = np.array(each["student alone"])
    for words, pairs in each.items():
        values = np.array(pairs)
        gaps = (
            [""] * 2
            if words == "student alone"
            else [interval(values[:, i] - alone[:, i], extra) for i in range(2)]
        )
        acc, loss = values.mean(axis=0)
        yield f"| {name} | {words} | {count:,} | {acc:.4f} | {gaps[0]} | {loss:.4f} | {gaps[1]} |"


def heads(names, work, draws):
    for name in names:
        taught, labels, train = features(name, TEACHER, work)
        x, same, _ = features(name, STUDENT, work)
        assert (labels == same).all()
        share = (len(labels) - train) / len(labels)
        splitter = StratifiedShuffleSplit(draws, test_size=share, random_state=0)
        each = {}
        for seed, (inside, outside) in enumerate(splitter.split(x, labels)):
            truth, given = labels[outside], labels[inside]
            teacher = solved(taught[inside], given, seed)
            alone = solved(x[inside], given, seed)
            each.setdefault("student alone", []).append(scored(alone(x[outside]), truth))
            for heat, weight in TRIED:
                soft = SoftTargets([teacher(taught[inside])], heat, weight)
                head = solved(x[inside], given, seed, soft)
                words = f"distilled, temperature {heat:g}, weight {weight:g}"
                each.setdefault(words, []).append(scored(head(x[outside]), truth))
            each.setdefault("teacher", []).append(scored(teacher(taught[outside]), truth))
        yield from table(name, each, draws * len(truth), len(outside) / len(inside))


def ran(*overrides):
    """``result.json`` of a run."""
    return xfer.run(overrides=[*overrides, "data.workers=0"]).facts


def steps(work, seeds, epochs):
    typed = [*STEPS, f"trainer.max_epochs={epochs}", f"checkpoint.start_epoch={epochs}"]
    teacher = ran(*typed, f"run.dir={work / 'teacher'}", "optim.lr=0.02")["scores"]["val"]
    each = {"student alone": []}
    for seed in range(seeds):
        common = [*typed, "source=none", "optim.lr=0.05", f"seed={seed}", f"augment.seed={seed}"]
        score = ran(*common, f"run.dir={work / f'alone{seed}'}")["scores"]["val"]
        each["student alone"].append((score["acc"], score["loss"]))
        for heat, weight in ((2.0, 0.9),):
            words = f"distilled, temperature {heat:g}, weight {weight:g}"
            loss = [f"loss.temperature={heat}", f"loss.weight={weight}"]
            loss += ["loss=distill", f"loss.teacher={work / 'teacher'}"]
            place = work / f"distilled{seed}_{weight}"
            score = ran(*common, *loss, f"run.dir={place}")["scores"]["val"]
            each.setdefault(words, []).append((score["acc"], score["loss"]))
    each["teacher"] = [(teacher["acc"], teacher["loss"])] * seeds
    yield from table(f"digits, {epochs} epochs, {seeds} seeds", each, teacher["n"], 0.0)


def seconds(work):
    data = [f"data.root={sets.ASSETS / 'Canidae'}", "stages=[fit,evaluate]"]
    ran(*data, *sets.overrides(TEACHER), f"run.dir={work / 'lite0'}")
    student = [*data, *sets.overrides(STUDENT)]
    ran(*student, f"run.dir={work / 'features'}")
    yield "| run on Canidae | images that the teacher answered | times the student alone |"
    yield "| --- | ---: | ---: |"
    loss = ["loss=distill", f"loss.teacher={work / 'lite0'}"]
    for number, weight in (("first", 0.5), ("second", 0.9), ("third", 0.7)):
        began = time.process_time()
        ran(*student, f"run.dir={work / f'before the {number}'}")
        between = time.process_time()
        facts = ran(*student, *loss, f"loss.weight={weight}", f"run.dir={work / number}")
        times = (time.process_time() - between) / (between - began)
        yield f"| {number} student | {facts['teacher']['images']} | {times:.2f} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["heads", "steps", "seconds"])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15, help="of the part steps")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="of the part heads")
    parser.add_argument("--cache", type=Path, help="features of an earlier call; not for seconds")
    options = parser.parse_args()
    open_log(None)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XFER_CACHE"] = str(options.cache or work / "cache")
        if {"heads", "steps"} & set(options.parts):
            print(HEAD + "\n|" + " --- |" * 7)
        if "heads" in options.parts:
            for line in heads(options.sets, work, options.draws):
                print(line, flush=True)
        if "steps" in options.parts:
            for line in steps(work, options.seeds, options.epochs):
                print(line, flush=True)
        if "seconds" in options.parts:
            print("\n".join(["", *seconds(work)]), flush=True)
    close_log()


if __name__ == "__main__":
    main()
