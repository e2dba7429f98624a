"""Whether prediction sets cover what they promise, and how often pictures of other things are
called unlike: on images that nothing was fitted on.

    python bench/certificates.py [--draws 200] [--network squeezenet1_0] [--sets hymenoptera digits]

Features at stages and head are computed once for each set and network. Each draw takes half of
all images to train on, solves the head as `optim=exact` does, certifies it on the answers of its
folds, and asks for the other half. The scores beside LAC, which xfer uses, are APS (Romano et al.,
2020) and RAPS (Angelopoulos et al., 2021, k = 1, lambda 0.1) without randomisation. Strangers are
photographs of the other set; of the digits 5 to 9 those from 0 to 4, also for a plain
`xfer experiment=digits_freeze`, by its exported file. `head unlike` is by what enters the head
alone.
"""

import argparse
import csv
import os
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import sets as data_sets
from PIL import Image
from sklearn.datasets import load_digits

COVERAGE, ALARMS = 0.9, 0.05


@cache
def features(root, network):
    """Features (n, d) by the path of the layer that they enter, the head's last, and labels (n,),
    of all images below ``root``."""
    import torch

    from xfer.config.hydra import compose_specs
    from xfer.data.preprocess import prepare
    from xfer.evaluation.certificate_answers import features_at, layer_paths
    from xfer.models.network import assemble
    from xfer.plan.make import make_plan

    typed = [f"data.root={root}", *data_sets.overrides(network)]
    plan = make_plan(compose_specs(typed))
    net = assemble(plan.parts, plan.state).eval().to(memory_format=torch.channels_last)
    paths = layer_paths(net, plan.layout, plan.card.input.size)
    x, y = {path: [] for path in paths}, []
    for samples in plan.dataset.splits.values():
        with torch.inference_mode(), features_at(net, paths) as seen:
            for start in range(0, len(samples), 32):
                part = range(start, min(start + 32, len(samples)))
                net(
                    torch.from_numpy(
                        np.stack([prepare(samples.images[i], plan.card.input) for i in part])
                    )
                )
        for path in paths:
            x[path] += seen[path]
        y.append(samples.labels)
    return {path: np.concatenate(blocks) for path, blocks in x.items()}, np.concatenate(y)


def solved(x, y, fresh, seed):
    """Logits that the folds held out, and those of ``fresh``, of a head solved as in a run."""
    from xfer.training import logistic

    folds = logistic.folds(y, 5, seed)
    classes = int(y.max()) + 1
    rows = logistic.TrainingRows([x], x, y, np.ones(len(y)), np.ones(classes), 0.0, folds)
    solution = logistic.solve(rows)
    best = solution.path[solution.best]
    return solution.held_out, (fresh @ best.weight.T + best.bias).astype(np.float32)


def softmax(z):
    e = np.exp(z.astype(np.float64) - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cumulative(p, penalty):
    """The score of each class: the probability of all classes that are at least as probable."""
    order = np.argsort(-p, axis=1, kind="stable")
    place = np.argsort(order, axis=1)
    sums = np.take_along_axis(np.cumsum(np.take_along_axis(p, order, 1), 1), place, 1)
    return sums + penalty * place


def sized(scores, labels, fresh_scores):
    """Sets of all classes whose score is at most the conformal quantile."""
    from xfer.evaluation.conformal import rank

    true = np.sort(scores[np.arange(len(labels)), labels])
    return fresh_scores <= true[rank(len(true), COVERAGE) - 1]


def one_draw(x, y, strangers, seed):
    from xfer.evaluation.out_of_distribution import fit_unlike

    drawn = np.random.default_rng(seed)
    train = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = drawn.permutation(np.flatnonzero(y == label))
        train[members[: len(members) // 2]] = True
    some, fresh = ({path: part[rows] for path, part in x.items()} for rows in (train, ~train))
    head = [*x][-1]
    held, logits = solved(some[head], y[train], fresh[head], seed)
    p, q, ours, theirs = softmax(held), softmax(logits), y[train], y[~train]
    row = {"accuracy": float((logits.argmax(1) == theirs).mean())}
    ways = {"LAC": (1 - p, 1 - q)}
    ways |= {n: (cumulative(p, k), cumulative(q, k)) for n, k in (("APS", 0), ("RAPS", 0.1))}
    top = q >= q.max(1, keepdims=True)
    for name, (a, b) in ways.items():
        bare = sized(a, ours, b)
        for kind, chosen in (("bare", bare), ("", bare | top)):
            row[f"{name} {kind} covered".replace("  ", " ")] = float(
                chosen[np.arange(len(theirs)), theirs].mean()
            )
            row[f"{name} {kind} size".replace("  ", " ")] = float(chosen.sum(1).mean())
    for name, layers in (("", [*x]), ("head ", [head])):
        mine, others, far = ({k: part[k] for k in layers} for part in (some, fresh, strangers))
        unlike = fit_unlike(mine, ours)
        for key, shown in (("false alarms", others), ("unlike", far)):
            distances = unlike.distance(np.concatenate([*shown.values()], axis=1))
            row[name + key] = float((unlike.p_value(distances) <= ALARMS).mean())
    return row


def digits_low(target):
    """The digits 0 to 4 as data_sets.digits writes those from 5 to 9."""
    images, labels = load_digits(return_X_y=True)
    for split, some in (("train", slice(0, 50)), ("val", slice(50, 110))):
        for label in range(5):
            for i, row in enumerate(images[labels == label][some]):
                place = target / split / str(label)
                place.mkdir(parents=True, exist_ok=True)
                pixels = np.round(row.reshape(8, 8) * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").save(place / f"{i:03}.png")
    return target


def p_values(folder):
    with (folder / "predictions.csv").open() as stream:
        return np.array([float(row["p_unlike"]) for row in csv.DictReader(stream)])


def shipped(work, typed):
    """A run of the digits that ships: alarms on its val, strangers by its file, bytes and ms."""
    import xfer
    from xfer.evaluation.onnx_session import open_session

    base = ["stages=[fit,evaluate,export]", "export=onnx", *typed]
    bare = xfer.run(None, [*base, f"run.dir={work / 'bare'}"]).folder
    run = xfer.run(None, [*base, "certificate.coverage=0.9", f"run.dir={work / 'whole'}"])
    with (run.folder / "predictions_val.csv").open() as stream:
        val = np.array([float(row["p_unlike"]) for row in csv.DictReader(stream)])
    asked = [f"predict.model={run.folder}/export/model.onnx", f"predict.input={work / 'low'}"]
    low = xfer.run(None, ["stages=[predict]", *asked, f"run.dir={work / 'p'}"]).folder
    files = [folder / "export" / "model.onnx" for folder in (bare, run.folder)]
    sessions = [open_session(file, 1) for file in files]
    shape = [1, *sessions[0].get_inputs()[0].shape[1:]]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    times = [[], []]
    for _ in range(400):  # taking turns
        for session, row in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(None, {"images": image})
            row.append(1000 * (time.perf_counter() - began))
    more = files[1].stat().st_size - files[0].stat().st_size
    print(
        f"{' '.join(typed)}: false alarms {(val <= ALARMS).mean():.3f} of {len(val)}, digits "
        f"0 to 4 unlike {(p_values(low) <= ALARMS).mean():.3f} by the file; {more:,} bytes and "
        f"{np.median(times[1]) - np.median(times[0]):.3f} ms more; {run.facts['certificate']}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--network", default="squeezenet1_0", choices=data_sets.NETWORKS)
    parser.add_argument("--sets", nargs="*", default=[*data_sets.DATA])
    parser.add_argument("--runs", action="store_true", help="the runs of the digits as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ.setdefault("XFER_CACHE", str(work / "cache"))
        low = digits_low(work / "low")
        roots = {name: data_sets.folder(name, work) for name in options.sets}
        others = {"hymenoptera": "canidae", "canidae": "hymenoptera"}
        for name, root in roots.items():
            x, y = features(root, options.network)
            other = data_sets.folder(others[name], work) if name in others else low
            strangers, _ = features(other, options.network)
            rows = [one_draw(x, y, strangers, seed) for seed in range(options.draws)]
            print(f"{name}, {options.network}, {len(y)} images, {options.draws} draws")
            for key in rows[0]:
                values = np.array([row[key] for row in rows])
                print(f"  {key:<20} {values.mean():.3f} (sd {values.std():.3f})", flush=True)
        if options.runs:
            shipped(work, ["experiment=digits_freeze"])


if __name__ == "__main__":
    main()
