"""Wall times of whole commands: help, a mistake, a plan, a prediction, the quick start.

    python bench/startup.py [--runs 3] [--only prediction|ratios|lines]

Each is a process of its own, timed from start to exit; minimum, median and maximum are printed, and
the median of its processor time, which a busy machine burdens less. The plan is of 1,000
photographs made for the purpose, the first time and with the scan cached; the prediction is of one
of them, through the ONNX file of the checkpoint that comes with xfer.

The lines are the first one on the terminal and the first of the plan of a run on 1,000
photographs, as a terminal shows them, which a pseudo-terminal stands for here: seconds after the
command began, and over those of ``import torch``, which takes turns with it.

The ratios are of plans and of an evaluation, which trains nothing, to ``import torch`` in a process
that does nothing else. The commands take turns, so that what else the machine does burdens all.
"""

import argparse
import os
import pty
import re
import resource
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


def processor():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(name, command, runs, env, check=False):
    seconds, busy = [], []
    for _ in range(runs):
        began, before = time.perf_counter(), processor()
        subprocess.run([*XFER, *command], env=env, capture_output=True, check=check)
        seconds.append(time.perf_counter() - began)
        busy.append(processor() - before)
    low, mid, high = min(seconds), statistics.median(seconds), max(seconds)
    used = statistics.median(busy)
    print(f"{name:<34} {low:6.2f} {mid:6.2f} {high:6.2f} s, processor {used:.2f} s", flush=True)


def shipped():
    """The checkpoint that comes with xfer."""
    import xfer

    return Path(xfer.__file__).parent / "weights" / "source" / "digits_0_4.ckpt"


def one_time(command, env):
    began, before = time.perf_counter(), processor()
    subprocess.run(command, env=env, capture_output=True, check=True)
    return time.perf_counter() - began, processor() - before


def ratios(runs, env):
    """Prints wall and processor time of commands over those of ``import torch``, medians each."""
    plan = [*XFER, "stages=[]", "data.root=photos", "source=none", "run.dir=null"]
    timm = ["backbone=timm", "backbone.name=tf_efficientnet_lite0"]
    evaluation = [f"checkpoint.path={shipped()}", "stages=[evaluate]", "data=digits_0_4"]
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "plan, squeezenet1_0": [*plan, "backbone=squeezenet1_0"],
        "plan, timm's tf_efficientnet_lite0": [*plan, *timm],
        "plan, the defaults": plan,
        "evaluation, no fit": [*XFER, *evaluation, "run.dir=null"],
    }
    for command in commands.values():
        one_time(command, env)  # the scan is kept, files are in memory
    found = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(one_time(command, env))
    middle = {
        name: [statistics.median(values) for values in zip(*times, strict=True)]
        for name, times in found.items()
    }
    wall, busy = middle["import torch"]
    for name, (seconds, used) in middle.items():
        told = f"{seconds:6.2f} s {seconds / wall:5.2f} x, processor {used:6.2f} s"
        print(f"{name:<34} {told} {used / busy:5.2f} x import torch", flush=True)


def shown(command, env, marks):
    """Seconds until each of ``marks`` stands on a terminal; the command is ended after the last."""
    ours, theirs = pty.openpty()
    began, text, found = time.perf_counter(), b"", {}
    process = subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    try:
        while len(found) < len(marks):
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other end is closed
                read = b""
            if not read:
                raise SystemExit(f"it ended without {set(marks) - set(found)}: {text.decode()}")
            text += read
            for name, mark in marks.items():
                if name not in found and re.search(mark, text):
                    found[name] = time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return found


def lines(runs, env):
    """Prints when the first line and the plan stand on the terminal: low, median, high, ratio."""
    run = ["backbone=squeezenet1_0", "source=none", "run.dir=null"]
    command = [*XFER, "data.root=photos", *run]
    verb = [*XFER, "train", "photos", *run]
    marks = {"first line": rb"[A-Za-z$][^\r\n]*?(\.\.\.|\n)", "the plan": rb"images {2,}\d"}
    torch, found = [], {}
    for turn in range(runs + 1):
        seconds = one_time([sys.executable, "-c", "import torch"], env)[0]
        each = {
            f"{name}, {kind}": value
            for kind, words in (("long form", command), ("xfer train", verb))
            for name, value in shown(words, env, marks).items()
        }
        if turn:  # the first one reads files from the disk, and scans the images
            torch.append(seconds)
            for name, value in each.items():
                found.setdefault(name, []).append(value)
    base = statistics.median(torch)
    print(f"{'import torch':<34} {min(torch):6.2f} {base:6.2f} {max(torch):6.2f} s", flush=True)
    for name, values in found.items():
        middle = statistics.median(values)
        ends = f"{min(values):6.2f} {middle:6.2f} {max(values):6.2f} s"
        print(f"{name:<34} {ends}, {middle / base:5.2f} x import torch", flush=True)


def exported(env):
    """``model.onnx`` of the checkpoint that comes with xfer."""
    command = ["stages=[export]", "data=digits_0_4", "export=onnx", "run.dir=exported"]
    subprocess.run(
        [*XFER, *command, f"checkpoint.path={shipped()}"], env=env, capture_output=True, check=True
    )
    return "exported/export/model.onnx"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["prediction", "ratios", "lines"])
    options = parser.parse_args()
    runs = options.runs
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        env = {**os.environ, "XFER_CACHE": str(Path(scratch) / "cache")}
        photographs(Path("photos"))
        if options.only in (None, "lines"):
            lines(runs, env)
        if options.only in (None, "ratios"):
            ratios(runs, env)
        if options.only in ("lines", "ratios"):
            return
        one = f"predict.model={exported(env)}"
        predict = ["stages=[predict]", one, "predict.input=photos/cats/0000.jpg"]
        timed("prediction with model.onnx", predict, runs, env, check=True)
        if options.only:
            return
        plan = ["stages=[]", "data.root=photos", "source=none", "run.dir=null"]
        timed("--help", ["--help"], runs, env)
        timed("a misspelt key", ["optim.lrr=1"], runs, env)
        timed("a misspelt model", ["backbone.name=resnet5O", "data.root=photos"], runs, env)
        timed("plan of 1,000 images, first", plan, 1, env)
        timed("plan of 1,000 images, cached", plan, runs, env)
        timed("quick start, all stages", [], runs, env)


if __name__ == "__main__":
    main()
