"""Several labels an image: mean average precision and solutions against scikit-learn's.

    python bench/multilabel.py

The shipped digits are even, prime, round and straight; the photographs of XFER_ASSETS (default
../shared/assets; left out where there are none) are dogs, wolves, ants and bees, and animals with
fur, insects, pets and what has wings. Each row is one fit of xfer on files that this program writes
into a temporary folder. The same features go to scikit-learn's LogisticRegression, a class at a
time, at the strength that xfer chose; and the answers of both to average_precision_score.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ["XFER_ASSETS"] = str(ASSETS)
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

Rows = list[tuple[str, list[str]]]


def photographs() -> Rows:
    """Dogs, wolves, ants and bees, each with its own name and with that of its kind."""
    kinds = {
        "dogs": ["dog", "animal with fur", "pet"],
        "wolves": ["wolf", "animal with fur"],
        "ants": ["ant", "insect"],
        "bees": ["bee", "insect", "has wings"],
    }
    rows: Rows = []
    folders = (ASSETS / name for name in ("Canidae", "Hymenoptera"))
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        labels = kinds.get(path.parent.name)
        if labels and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            rows.append((str(path), labels))
    return rows


def write(path: Path, rows: Rows, classes: Sequence[str], unknown: float) -> None:
    """A column a class, the share ``unknown`` of all cells empty."""
    drawn = np.random.default_rng(0)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *classes])
        for name, labels in rows:
            cells = ["1" if c in labels else "0" for c in classes]
            writer.writerow([name, *("" if drawn.random() < unknown else c for c in cells)])


def words(file: Path, network: Sequence[str]) -> list[str]:
    """What is typed for a table of labels."""
    typed = [*network, "data=csv", f"data.file={file}", "task=multilabel", "data.workers=0"]
    return [*typed, "data.leakage=ignore"]


def files(place: Path, shares: Sequence[float] = (0.0,)) -> Iterator[tuple[str, Path, list[str]]]:
    """The name of each set, its table written into ``place`` with each of these ``shares`` of
    unknown labels, and its network."""
    import labelled

    rows = labelled.digits(place / "images", 1797)
    named: Rows = [(f"images/{name}", labels) for name, labels in rows]
    jobs = [("digits", named, list(labelled.LABELS), ["experiment=digits_freeze"])]
    if given := photographs():
        names = sorted({label for _, labels in given for label in labels})
        network = ["backbone=squeezenet1_0", "source=squeezenet_file"]
        jobs.append(("photographs", given, names, network))
    for name, some, classes, network in jobs:
        for unknown in shares:
            file = place / f"{name}{unknown:g}.csv"
            write(file, some, classes, unknown)
            yield name, file, network


def measure(name: str, file: Path, network: Sequence[str]) -> list[str]:
    """One row of the table."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    from xfer.config.hydra import compose_specs
    from xfer.evaluation.multilabel_metrics import average_precisions, label_values
    from xfer.models.network import assemble
    from xfer.plan.make import make_plan
    from xfer.training import exact

    plan = make_plan(compose_specs([*words(file, network), "stages=[fit]"]))
    net = assemble(plan.parts, plan.state)
    frozen = exact.at_rest(plan, net)
    cached = exact.features_of(plan, frozen)
    began = time.perf_counter()
    solved = exact.solve(plan, frozen, cached)
    seconds = time.perf_counter() - began
    x = np.asarray(exact.inputs(frozen, cached, solved.layer, "train"), np.float64)
    held = np.asarray(exact.inputs(frozen, cached, solved.layer, "val"), np.float64)
    train, val = plan.split("train").labels, plan.split("val").labels
    mean, std = x.mean(0), x.std(0)
    std[std <= 1e-6 * np.abs(mean)] = 1.0
    best = solved.solution.path[solved.solution.best]
    logits, l2 = solved.val @ best.weight.T + best.bias, best.l2
    theirs = np.empty(logits.shape)
    began = time.perf_counter()
    for c in range(train.shape[1]):
        known = train[:, c] >= 0
        fit = LogisticRegression(C=1 / (l2 * known.sum()), tol=1e-9, max_iter=20_000)
        fit.fit((x[known] - mean) / std, train[known, c])
        theirs[:, c] = fit.decision_function((held - mean) / std)
    other = time.perf_counter() - began
    aps = [average_precision_score(val[k, c], logits[k, c]) for c, k in enumerate((val >= 0).T)]
    apart = float(np.abs(average_precisions(logits, val) - aps).max())
    found, map_ = label_values(logits, val)["map"], float(np.mean(aps))
    of_theirs = label_values(theirs, val)["map"]
    return [
        name,
        f"{len(train)} / {len(val)}",
        str(train.shape[1]),
        f"{100 * (train < 0).mean():.0f} %",
        f"{found:.4f}",
        f"{abs(found - map_):.1e}",
        f"{apart:.1e}",
        f"{of_theirs:.4f}",
        f"{float(np.abs(logits - theirs).max()):.1e}",
        f"{seconds:.1f} s, {len(solved.solution.path)} strengths",
        f"{other:.1f} s",
    ]


HEAD = (
    *("images", "train / val", "labels", "unknown", "mAP", "from scikit-learn's"),
    *("largest of a class", "mAP of scikit-learn's heads", "logits apart", "solved in"),
    "scikit-learn, one strength",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        print(f"| {' | '.join(HEAD)} |\n| {' | '.join(['---'] * len(HEAD))} |")
        for name, file, network in files(Path(made), (0.0, 0.3)):
            print(f"| {' | '.join(measure(name, file, network))} |", flush=True)


if __name__ == "__main__":
    main()
