"""What stages=[audit] notices of mistakes that are put in, and whether its rates are the true ones.

    XFER_ASSETS=ASSETS python bench/audit.py [--seeds 20] [--rate 0.05 ...] [--data NAME ...]
    XFER_ASSETS=ASSETS python bench/audit.py --seeds 8 --resampled 60
    XFER_ASSETS=ASSETS python bench/audit.py --labels

Labels: a share of them is flipped at random, or, with --alike, those of images drawn at random to
the other class that such a regression finds them most like; and the most suspect are compared with
those that were flipped. Recall at k is the share of flipped labels among the k most suspect, as
many as were flipped; the false-discovery rate is that of the list that audit.csv has, as it is
stated and as it is, over the draws that list any. What is wrong in the data as it came counts as
right, and so as a false discovery. The oracle is the same regression, each image left out, fitted
on the labels before they were flipped, at that of its strengths which finds most: what these
features tell, were all other labels known. The last rows are means over all sets and networks.

Draws of flipped labels share the images, and so the few hard ones that every list has. How much the
stated rate less the true one depends on which images a set happens to have is told by `--resampled`
sets of as many of its images, drawn with replacement from answers and labels, each with all draws.

Several labels: those of bench/multilabel.py, of which 5 % are turned round, or 10 % of those that
an image has are forgotten; a tenth is unknown. The stated rate stands beside the one that permuted
labels would state: what share of the list answers to labels permuted among the images whose label
is known would be in it.

Near-duplicates: every sixth or eighth photograph again as a crop, mirrored, saved with quality 30,
at half the size, brighter, and turned, cropped and blurred as the next frame of a film would be.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import multilabel
import numpy as np
import sets
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from xfer.config.hydra import compose_specs
from xfer.evaluation.leave_one_out import PENALTIES, coordinates, leave_one_out
from xfer.evaluation.multilabel_leave_one_out import labels_left_out
from xfer.evaluation.multilabel_wrong_labels import judge_labels
from xfer.evaluation.neighbours import alike_from, directions, nearest, pairs
from xfer.evaluation.wrong_labels import judge, margins
from xfer.plan.make import make_plan
from xfer.training import image_audit, logistic
from xfer.training.backbone_features import source_answers


def features(words):
    """The features and labels of all images of a command, the number of classes, the names, and
    the source's answers."""
    plan = make_plan(compose_specs([*words, "stages=[audit]"]))
    _, matrix, _ = image_audit.features(image_audit.as_evaluated(plan))
    labels = np.concatenate([samples.labels for samples in plan.dataset.splits.values()])
    names = [name for samples in plan.dataset.splits.values() for name in samples.names]
    return matrix, labels, len(plan.card.classes), names, source_answers(plan, matrix)


def flipped(labels, classes, rate, seed, alike=None):
    """The labels with a share of them flipped, to ``alike`` (n,) where it is given, and which."""
    draw = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[draw.choice(len(labels), round(rate * len(labels)), replace=False)] = True
    moved = (labels + draw.integers(1, classes, len(labels))) % classes
    return np.where(wrong, moved if alike is None else alike, labels), wrong


def judging(matrix, theirs):
    """What labels are judged by: features and the source's answers."""
    return coordinates(np.hstack([matrix, theirs]), theirs.shape[1])


def second(at, labels, classes):
    """The class, not its own, that each image is most like by the other images."""
    answers = leave_one_out(at, labels, classes).held_out(labels)
    answers[np.arange(len(labels)), labels] = -np.inf
    return answers.argmax(axis=1)


def of_seed(matrix, theirs, labels, classes, rate, seed, alike=None):
    """Recall at k, stated and true false-discovery rate, accused, estimated share, seconds."""
    given, wrong = flipped(labels, classes, rate, seed, alike)
    began = time.perf_counter()
    names = [str(k) for k in range(classes)]
    judged = image_audit.look(matrix, given, names, answers=theirs).of_labels.judged
    seconds = time.perf_counter() - began
    accused = judged.accused
    recall = wrong[judged.order[: wrong.sum()]].mean() if rate else np.nan
    stated = judged.fdr[accused[-1]] if len(accused) else np.nan
    true = 1 - wrong[accused].mean() if len(accused) else np.nan
    return recall, stated, true, len(accused), judged.rate, seconds


def resampled(at, labels, classes, rate, options, alike=None):
    """The stated rate less the true one, of the images as they are, and its mean and deviation over
    sets of as many of them drawn with replacement."""
    draws = []
    for seed in range(options.seeds):
        given, wrong = flipped(labels, classes, rate, seed, alike)
        draws.append((leave_one_out(at, given, classes).held_out(given), given, wrong))
    errors, every = [], np.arange(len(labels))
    for seed in range(options.resampled + 1):
        some = np.random.default_rng(seed).choice(every, len(every)) if seed else every
        errors.append(np.nanmean([rate_error(*(part[some] for part in parts)) for parts in draws]))
    return errors[0], np.mean(errors[1:]), np.std(errors[1:])


def rate_error(answers, given, wrong):
    """The stated false-discovery rate less the true one of the list, if there is one."""
    judged = judge(answers, given)
    accused = judged.accused
    return judged.rates[-1] - 1 + wrong[accused].mean() if len(accused) else np.nan


def columns(rows):
    """The mean of each column, of those that are numbers."""
    return [np.nanmean(c) if np.isfinite(c).any() else np.nan for c in rows.T]


def oracle(at, labels, classes, rate, seeds):
    """The best recall at k of the regression on the labels as they came."""
    means, draws = [], [flipped(labels, classes, rate, seed) for seed in range(seeds)]
    for penalty in PENALTIES:
        answers = leave_one_out(at, labels, classes, [penalty]).held_out(labels)
        means.append(np.mean([recall_of(answers, given, wrong) for given, wrong in draws]))
    return max(means)


def recall_of(answers, given, wrong):
    """Recall at k where the margin of the label orders the images."""
    margin = margins(answers)[np.arange(len(given)), given]
    return wrong[np.argsort(margin, kind="stable")[: max(1, wrong.sum())]].mean()


def solved(matrix, labels, classes, rate, seed):
    """Recall at k of the solved head's answers to held-out folds, by margin, and the seconds."""
    given, wrong = flipped(labels, classes, rate, seed)
    began, ones = time.perf_counter(), np.ones(len(given))
    folds = logistic.folds(given, 5, seed)
    rows = logistic.TrainingRows([matrix], matrix, given, ones, np.ones(classes), 0.0, folds)
    answers = logistic.solve(rows).held_out.astype(np.float64)
    seconds = time.perf_counter() - began
    return recall_of(answers, given, wrong), seconds


def permuted(at, given, draw):
    """The held-out answer's distance from what is said, (n, classes), of labels that say nothing;
    infinite where one is unknown."""
    labels = given.copy()
    for label in labels.T:
        known = label >= 0
        label[known] = draw.permutation(label[known])
    return suspicion(labels_left_out(at, labels).held_out, labels)


def suspicion(answers, labels):
    return np.where(labels < 0, np.inf, np.where(labels == 1, answers, 1 - answers))


def of_labels(matrix, theirs, true, spoil, seed):
    """Recall at k, accused, stated, permuted and true false-discovery rate, estimated and true
    share of wrong labels, seconds."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(true.shape) < (0.05 if spoil == "turned" else 0.1 * (true == 1))
    unknown = draw.random(true.shape) < 0.1
    wrong &= ~unknown
    given = np.where(unknown, -1, np.where(wrong, 1 - true, true))
    began = time.perf_counter()
    at = judging(matrix, theirs)
    left_out = labels_left_out(at, given)
    judged = judge_labels(left_out.held_out, given)
    seconds = time.perf_counter() - began
    order = np.argsort(-judged.wrong, axis=None, kind="stable")
    first, accused = wrong.ravel()[order[: wrong.sum()]], len(judged.pairs)
    theirs = suspicion(left_out.held_out, given)
    least = np.sort(theirs, axis=None)[accused - 1] if accused else -np.inf
    null = (permuted(at, given, draw) <= least).sum() / accused if accused else np.nan
    false = 1 - wrong.ravel()[order[:accused]].mean() if accused else np.nan
    stated = judged.rates[-1] if accused else np.nan
    share = wrong.sum() / (given >= 0).sum()
    return first.mean(), accused, stated, null, false, judged.rate, share, seconds


def several(work, seeds):
    for name, file, network in multilabel.files(work):
        matrix, labels, classes, _, theirs = features(multilabel.words(file, network))
        for spoil in ("turned", "forgotten"):
            rows = [of_labels(matrix, theirs, labels, spoil, seed) for seed in range(seeds)]
            recall, accused, stated, null, false, rate, share, seconds = np.nanmean(rows, axis=0)
            print(
                f"| {name} | {len(labels)} x {classes} | {spoil} | {recall:.3f} | {accused:.1f} | "
                f"{stated:.3f} | {null:.3f} | {false:.3f} | {rate:.3f} | {share:.3f} | "
                f"{seconds:.2f} |",
                flush=True,
            )


def _crop(image, share, right=0.5, down=0.5):
    wide, high = (round(side * share) for side in image.size)
    left, top = round((image.width - wide) * right), round((image.height - high) * down)
    return image.crop((left, top, left + wide, top + high))


CHANGES = {
    "mirrored": ImageOps.mirror,
    "quality 30": lambda image: image,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "crop of 90 %": lambda image: _crop(image, 0.9, 0.2, 0.8),
    "crop of 75 %": lambda image: _crop(image, 0.75),
    "next frame": lambda image: _crop(image.rotate(2), 0.92, 0.7, 0.4).filter(
        ImageFilter.GaussianBlur(0.7)
    ),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
}


def copies(work):
    """A folder in which every class is one kind of change, and the first the photographs."""
    paths = [*sorted((sets.ASSETS / "Canidae").glob("*/*/*"))[::6]]
    paths += sorted((sets.ASSETS / "Hymenoptera").glob("*/*/*"))[::8]
    for kind, change in {"as it is": lambda image: image, **CHANGES}.items():
        for i, path in enumerate(paths):
            place = work / "copies" / kind
            place.mkdir(parents=True, exist_ok=True)
            quality = 30 if kind == "quality 30" else 92
            with Image.open(path) as image:
                change(image.convert("RGB")).save(place / f"{i:03}.jpg", quality=quality)
    return work / "copies"


def duplicates(network, work):
    words = [f"data.root={copies(work)}", "data.leakage=ignore", *sets.overrides(network)]
    matrix, _, _, names, _ = features(words)
    kinds = np.array([Path(name).parent.name for name in names])
    numbers = np.array([int(Path(name).stem) for name in names])
    for kind in CHANGES:
        some = np.flatnonzero((kinds == "as it is") | ((kinds == kind) & (numbers % 5 == 0)))
        alike = nearest(*directions(coordinates(matrix[some])), 8)
        least = alike_from(alike)
        rows = pairs(alike, least)
        right = sum(numbers[some[i]] == numbers[some[j]] for i, j, _ in rows)
        count = int((kinds[some] == kind).sum())
        print(
            f"| {network} | {kind} | {least:.2f} | {right} of {count} | {len(rows) - right} |",
            flush=True,
        )


def one_label(options, work):
    means = {rate: [] for rate in options.rate}
    pairs_of = [(data, net) for net in options.networks for data in options.data]
    for data, network in [*pairs_of, ("digits_freeze", "digits_resnet")]:
        words = [f"experiment={data}"]
        if network in sets.NETWORKS:
            words = [f"data.root={sets.folder(data, work)}", *sets.overrides(network)]
        matrix, labels, classes, _, theirs = features(words)
        at, seeds = judging(matrix, theirs), range(options.seeds)
        alike = second(at, labels, classes) if options.alike else None
        for rate in options.rate:
            given = (labels, classes, rate)
            rows = np.array([of_seed(matrix, theirs, *given, seed, alike) for seed in seeds])
            best = np.nan if options.alike or not rate else oracle(at, *given, options.seeds)
            means[rate].append(columns(rows))
            recall, stated, true, accused, share, seconds = means[rate][-1]
            print(
                f"| {data} | {network} | {len(labels)} | {rate:.2f} | {recall:.3f} | "
                f"{best:.3f} | {accused:.1f} | {stated:.3f} | {true:.3f} | {share:.3f} | "
                f"{seconds:.2f} |",
                flush=True,
            )
            if options.resampled and rate:
                found = "stated less true {:+.3f}, resampled {:+.3f} +- {:.3f}"
                print(" ", found.format(*resampled(at, *given, options, alike)), flush=True)
        if options.solved:
            answers = [solved(matrix, *given, seed) for seed in range(options.solved)]
            ours = rows[: options.solved, 0].mean()
            head, spent = np.mean(answers, axis=0)
            print(f"  recall of these draws {ours:.3f}, solved head {head:.3f} in {spent:.2f} s")
    for rate, rows in means.items():
        recall, stated, true, accused, _, _ = columns(np.array(rows))
        off = np.array([row[1] - row[2] for row in rows])
        print(
            f"| {rate:.2f} | {recall:.3f} | {accused:.1f} | {stated:.3f} | {true:.3f} | "
            f"{np.nanmin(off):+.3f} | {np.nanmax(off):+.3f} |"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rate", type=float, nargs="+", default=[0.05])
    parser.add_argument("--alike", action="store_true", help="flipped to the class most alike")
    parser.add_argument("--data", nargs="+", default=["canidae", "hymenoptera", "digits"])
    parser.add_argument("--networks", nargs="+", default=list(sets.NETWORKS))
    parser.add_argument("--solved", type=int, default=0, help="seeds of the solved head as well")
    parser.add_argument("--resampled", type=int, default=0, help="sets drawn from each")
    parser.add_argument("--duplicates", action="store_true")
    parser.add_argument("--labels", action="store_true", help="several labels an image")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.labels:
            several(work, options.seeds)
            return
        if options.duplicates:
            for network in options.networks:
                duplicates(network, work)
            return
        one_label(options, work)


if __name__ == "__main__":
    main()
