"""Wall times of whole commands: help, a mistake, a plan, the quick start.

    python bench/startup.py [--runs 3]

Each is a process of its own, timed from start to exit; minimum, median and maximum are printed.
The plan is of 1,000 photographs made for the purpose, the first time and with the scan cached.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

XFER = [sys.executable, "-m", "xfer"]


def photographs(root, count=1000):
    noise = np.random.default_rng(0)
    for i in range(count):
        file = root / ("cats", "dogs")[i % 2] / f"{i:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = noise.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480)).save(file, quality=88)


def timed(name, command, runs, env):
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([*XFER, *command], env=env, capture_output=True, check=False)
        seconds.append(time.perf_counter() - began)
    low, mid, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"{name:<34} {low:6.2f} {mid:6.2f} {high:6.2f} s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        env = {**os.environ, "XFER_CACHE": str(Path(scratch) / "cache")}
        photographs(Path("photos"))
        plan = ["stages=[]", "data.root=photos", "source=none", "run.dir=null"]
        timed("--help", ["--help"], runs, env)
        timed("a misspelt key", ["optim.lrr=1"], runs, env)
        timed("a misspelt model", ["backbone.name=resnet5O", "data.root=photos"], runs, env)
        timed("plan of 1,000 images, first", plan, 1, env)
        timed("plan of 1,000 images, cached", plan, runs, env)
        timed("quick start, all stages", [], runs, env)


if __name__ == "__main__":
    main()
