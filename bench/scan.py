"""How long a data folder takes to plan with, and how much memory: first time and cached.

    python bench/scan.py [FILES] [PIXELS]

Makes FILES (100,000) JPEG files of PIXELS x PIXELS (32) in ten classes in a temporary folder.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image


def make_folder(root: Path, files: int, pixels: int) -> int:
    """Write the files, each with a picture of its own; return their bytes."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (root / f"class{label}").mkdir(parents=True)
    for i in range(files):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        path = root / f"class{i % 10}" / f"{i:06d}.jpg"
        coarse.resize((pixels, pixels), Image.Resampling.BICUBIC).save(path, quality=90)
    return sum(path.stat().st_size for path in root.rglob("*.jpg"))


def measure(root: Path) -> tuple[float, float]:
    """Seconds and MiB of peak memory that ``Folder(root).dataset`` adds to a fresh process."""
    from xfer.data import Folder

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    Folder(str(root)).dataset(training=True)
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    files, pixels = (int(text) for text in (sys.argv[1:] + ["100000", "32"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="xfer-scan-") as folder:
        os.environ["XFER_CACHE"] = f"{folder}/cache"
        size = make_folder(Path(folder) / "images", files, pixels)
        print(f"{files} files, {size / files / 1024:.1f} KiB each")
        for name in ("first", "cached"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                seconds, growth = pool.submit(measure, Path(folder) / "images").result()
            print(f"{name:>6}: {seconds:.2f} s, peak memory + {growth:.0f} MiB")


if __name__ == "__main__":
    main()
