"""Seconds of each stage of the plain command, the first time and again, in one tree or two.

    python bench/stages.py --assets ASSETS [--runs 3] [--beside TREE] [--network efficientnet_lite0]

Each run is a process of its own; the first has an empty cache, the next one finds what that has
left. ``--beside TREE`` measures another checkout of xfer with the same interpreter, taking turns
with this one, and so does ``import torch``. Printed are medians of processor time (user and system)
and of wall time, and processor time over that of ``import torch``: on a machine that does other
work as well, wall times say little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NETWORKS = {
    "squeezenet1_0": ["backbone=squeezenet1_0"],
    "efficientnet_lite0": ["backbone=timm", "backbone.name=tf_efficientnet_lite0"],
}
WEIGHTS = {
    "squeezenet1_0": "squeezenet1_0_imagenet.safetensors",
    "efficientnet_lite0": "tf_efficientnet_lite0_imagenet.safetensors",
}
STAGES = ("plan", "fit", "evaluate", "export", "report")

# In the process that is measured: when each stage begins, and when the process ends.
WATCH = """
import json, os, resource, sys, time
began = time.perf_counter()
marks = []
def mark(name):
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = sum(u.ru_utime + u.ru_stime for u in used)
    marks.append((name, time.perf_counter() - began, busy))
marks.append(("plan", 0.0, 0.0))
from xfer.report.live import LivePage
begin, leave = LivePage.begin, os._exit
def watched(page, name):
    mark(name)
    return begin(page, name)
def left(code):
    mark("end")
    with open(os.environ["XFER_BENCH_MARKS"], "w") as file:
        json.dump(marks, file)
    leave(code)
LivePage.begin, os._exit = watched, left
from xfer.__main__ import main
main()
"""


def one(tree, words, cache, folder):
    """Wall and processor seconds of each stage of one run."""
    marks = folder / "marks.json"
    env = {**os.environ, "PYTHONPATH": str(tree), "XFER_CACHE": str(cache)}
    env["XFER_BENCH_MARKS"] = str(marks)
    command = [sys.executable, "-c", WATCH, *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    seen = json.loads(marks.read_text())
    seconds = {}
    for (name, wall, busy), (_, after, used) in pairwise(seen):
        seconds[name] = (after - wall, used - busy)
    seconds["all"] = (seen[-1][1], seen[-1][2])
    return seconds


def torch_alone():
    code = "import time; b = time.perf_counter(); import torch; w = time.perf_counter() - b; "
    code += "print(w, time.process_time())"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return tuple(map(float, text.stdout.split()))


def measured(options):
    """Every figure by (tree, first or again, stage), and of ``import torch``."""
    trees = {"this": HERE, **({"beside": options.beside.resolve()} if options.beside else {})}
    weights = options.assets / "weights" / WEIGHTS[options.network]
    words = [
        f"data.root={options.assets / 'Hymenoptera'}",
        *NETWORKS[options.network],
        "source=file",
        f"source.path={weights}",
    ]
    figures, torch = {}, []
    for _ in range(options.runs):
        torch.append(torch_alone())
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                for turn in ("first", "again"):
                    for stage, seconds in one(tree, words, folder / "cache", folder).items():
                        figures.setdefault((name, turn, stage), []).append(seconds)
    return figures, torch


def middle(pairs):
    return [statistics.median(values) for values in zip(*pairs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--assets", type=Path, default=os.environ.get("XFER_ASSETS"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--network", choices=NETWORKS, default="efficientnet_lite0")
    options = parser.parse_args()
    if options.assets is None:
        raise SystemExit("type --assets ASSETS, the folder with Hymenoptera and weights")
    options.assets = options.assets.resolve()
    figures, torch = measured(options)
    wall, busy = middle(torch)
    print(
        f"{options.network}, {options.runs} turns; `import torch` {busy:.2f} s ({wall:.2f} s wall)"
    )
    print("\n| tree | run | stage | processor s | x `import torch` | wall s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (tree, turn, stage), pairs in figures.items():
        seconds, used = middle(pairs)
        row = f"| {tree} | {turn} | {stage} | {used:.2f} | {used / busy:.1f} | {seconds:.1f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
