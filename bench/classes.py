"""What an evaluation costs with thousands of classes: seconds, bytes and memory of one split.

    python bench/classes.py [--classes 1000 10000 21841] [--images 2000]

Random logits of ``--images`` images are scored, written as predictions and as JSON, and drawn, each
number of classes in a process of its own, so that the peak is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(count: int, images: int) -> None:
    """Print one row of the table."""
    import numpy as np

    from xfer.core.types import Predictions
    from xfer.evaluation.metrics import score
    from xfer.evaluation.predict import write_predictions
    from xfer.report.confusion import condensed, matrix
    from xfer.report.plot import draw

    rng = np.random.default_rng(0)
    names, labels = tuple(f"class {i}" for i in range(count)), rng.integers(count, size=images)
    logits = rng.normal(size=(images, count)).astype(np.float32)
    logits[np.arange(images), labels] += 4
    paths = tuple(f"val/{i}.jpg" for i in range(images))
    with tempfile.TemporaryDirectory() as folder:
        csv, facts = Path(folder, "predictions_val.csv"), Path(folder, "result.json")
        begun = time.perf_counter()
        found = score(logits, labels, names, used_for_selection=False)
        scored = time.perf_counter()
        write_predictions(Predictions(paths, logits, labels, names), csv)
        facts.write_text(json.dumps(found.to_plain(), indent=2))
        written = time.perf_counter()
        counts, shown = condensed(labels, logits.argmax(axis=1), names)
        draw(Path(folder, "confusion_matrix.png"), matrix, counts, shown)
        drawn = time.perf_counter()
        sizes = [path.stat().st_size / 1e6 for path in (csv, facts)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = (scored - begun, written - scored, drawn - written)
    row = [f"{count:,}", *(f"{s:.2f} s" for s in seconds), *(f"{mb:.1f} MB" for mb in sizes)]
    print(f"| {' | '.join([*row, f'{peak:.2f} GB'])} |")


def main() -> None:
    """Measure every number of classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000, 10_000, 21_841])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--one", type=int)
    asked = parser.parse_args()
    if asked.one:
        measure(asked.one, asked.images)
        return
    heads = ("classes", "score", "write", "draw", "predictions", "result", "peak")
    print(f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", sep="\n", flush=True)
    for count in asked.classes:
        again = [sys.executable, __file__, "--one", str(count), "--images", str(asked.images)]
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
