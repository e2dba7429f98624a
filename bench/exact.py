"""How long a head takes to be solved, and in how much memory; scikit-learn on the small problem.

    python bench/exact.py [--large] [--rows 50000 --width 768 --classes 100]

The small problem is 300 images of 1,280 features in 10 classes, 13 strengths by five folds; the
large one is read from a memory map, as kept features are, and asks for a few minutes.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from xfer.training import logistic


def features(rows, width, classes, path):
    """Features with a few directions that carry the classes and many that do not, in ``path``."""
    drawn = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    centres = drawn.normal(size=(classes, width)).astype(np.float32) * 0.2
    mixing = drawn.normal(size=(64, width)).astype(np.float32) * 0.2
    found = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    for start in range(0, rows, 10_000):
        part = slice(start, min(start + 10_000, rows))
        count = part.stop - part.start
        found[part] = drawn.normal(size=(count, 64)).astype(np.float32) @ mixing
        found[part] += centres[labels[part]] + drawn.normal(size=(count, width))
    found.flush()
    return np.load(path, mmap_mode="r"), labels


def solved(table, labels, classes):
    """The solution and the seconds that it took."""
    folds = logistic.folds(labels, 5, 0)
    ones = np.ones(len(labels))
    rows = logistic.TrainingRows([table], table, labels, ones, np.ones(classes), 0.0, folds)
    began = time.perf_counter()
    return logistic.solve(rows), time.perf_counter() - began


def theirs(table, labels):
    """Seconds of scikit-learn for 13 strengths by five folds."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegressionCV(
        Cs=np.logspace(-4, 4, 13), cv=5, scoring="neg_log_loss", max_iter=5000
    )
    began = time.perf_counter()
    make_pipeline(StandardScaler(), model).fit(np.asarray(table), labels)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, labels = features(300, 1280, 10, Path(folder) / "small.npy")
        solved(table, labels, 10)
        found, seconds = solved(table, labels, 10)
        print(
            f"300 x 1,280 x 10: {seconds:.2f} s for {len(found.path)} strengths, "
            f"scikit-learn {theirs(table, labels):.2f} s"
        )
        if not options.large:
            return
        shape = (options.rows, options.width, options.classes)
        table, labels = features(*shape, Path(folder) / "large.npy")
        found, seconds = solved(table, labels, options.classes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        name = " x ".join(f"{n:,}" for n in shape)
        print(
            f"{name}: {seconds:.0f} s for {len(found.path)} strengths, "
            f"{sum(row.steps for row in found.path):,} evaluations, peak memory {peak:.1f} GB"
        )


if __name__ == "__main__":
    main()
