"""Memory and time of the plain command by the number of images, and what one image more costs.

    python bench/scale.py 1000 10000                     all stages
    python bench/scale.py 1000000 --only plan exact      some of them

For each number of images N, up to 100,000 different cuts of the photographs of XFER_ASSETS (default
../shared/assets), JPEGs of 64 x 64, stand under N keys in tar shards and N names in folders. Each
stage is a process of its own. The memory that is its alone at most ("own": RssAnon, asked for 50
times a second) is beside what it has mapped from files as well, such as features, which the system
takes back when it needs it ("resident": VmHWM). A process begins with some hundred megabytes, which
is why the last column has the growth: the bytes of its own that each image more has added since the
N before.

listing     the data of shards as a plan has them, but no image is read: names, splits, hashes
            of names in place of the images', and the search for equal ones
plan        the plan of shards that no run has read yet: each image is read and hashed
plan again  the same, from what the first one has cached
fit         features once, the head solved on them, and its tables
evaluate    the checkpoint on what was held out, with the report
predict     the checkpoint on the folder, with predictions.csv
exact       a head alone: N x 256 synthetic features in a file, 10 classes, one strength, 2 folds
audit       what stages=[audit] computes from the same features
worth       what stages=[worth] does, and checks with 1,000 more
read        images a second, from shards and from files, in this process, cold and warm

TMPDIR says which disk it is about. A million images take about 5 GB there, and are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ASSETS = Path(os.environ.get("XFER_ASSETS", "../shared/assets")).resolve()
SETS = ("Canidae", "Hymenoptera")
ALONE = ("exact", "audit", "worth")
STAGES = ("listing", "plan", "plan again", "fit", "evaluate", "predict", *ALONE, "read")
COMMAND = [sys.executable, "-m", "xfer", "experiment=digits_freeze"]
PER_SHARD = 10_000
LINKED = 100_000  # above, files are hard links: as many files would take the disk's blocks
READ = 20_000  # images that are read in one turn, at most
WIDTH, CLASSES, FOLDS, CHECKED = 256, 10, 2, 1_000


class Cost(NamedTuple):
    """What a process took: seconds, and bytes at most."""

    seconds: float
    own: int
    resident: int


def photographs(count: int, side: int) -> list[tuple[str, bytes]]:
    """(class, JPEG) of ``count`` cuts of the photographs, no two of them alike, in mixed order."""
    paths = sorted(p for name in SETS for p in (ASSETS / name).rglob("*.jp*g"))
    made: list[tuple[str, bytes]] = [("", b"")] * count
    for first, path in enumerate(paths[:count]):
        photograph = Image.open(path).convert("RGB")
        for i in range(first, count, len(paths)):
            drawn = random.Random(i)
            across, down = (round(length * drawn.uniform(0.3, 1)) for length in photograph.size)
            left = drawn.randint(0, photograph.width - across)
            top = drawn.randint(0, photograph.height - down)
            cut = photograph.crop((left, top, left + across, top + down)).resize((side, side))
            cut.save(file := io.BytesIO(), "JPEG", quality=drawn.randint(70, 95))
            made[i] = path.parent.name, file.getvalue()
    random.Random(0).shuffle(made)
    return made


def in_shards(pictures: Sequence[tuple[str, bytes]], count: int, out: Path) -> Path:
    """``count`` keys in tar files of 10,000 each."""
    out.mkdir()
    for start in range(0, count, PER_SHARD):
        with tarfile.open(out / f"images-{start // PER_SHARD:06d}.tar", "w") as tar:
            for i in range(start, min(start + PER_SHARD, count)):
                label, data = pictures[i % len(pictures)]
                for suffix, content in (("jpg", data), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return out


def in_folders(pictures: Sequence[tuple[str, bytes]], count: int, out: Path) -> Path:
    """``count`` files in a folder a class."""
    first: dict[int, Path] = {}
    for i in range(count):
        label, data = pictures[i % len(pictures)]
        path = out / label / f"{i:09d}.jpg"
        origin = first.get(i % len(pictures))
        if origin is not None and count > LINKED:
            # No file has more than 65,000 names on ext4.
            os.link(origin, path)
            if i // len(pictures) % 50_000 == 0:
                del first[i % len(pictures)]
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            first[i % len(pictures)] = path
    return out


def measured(command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end. Raises RuntimeError with its last lines where it fails."""
    began, own = time.perf_counter(), 0
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            own = max(own, anonymous(process.pid))
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log.read_text()[-2000:]}")
    return Cost(time.perf_counter() - began, own, ended[2].ru_maxrss * 1024)


def anonymous(pid: int) -> int:
    """Bytes of a process that are mapped from no file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def synthetic(count: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """``count`` features in parts, and their labels."""
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, CLASSES, count)
    centres = drawn.normal(size=(CLASSES, WIDTH)).astype(np.float32) / 8

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, count, PER_SHARD):
            some = labels[start : start + PER_SHARD]
            yield drawn.standard_normal((len(some), WIDTH), np.float32) + centres[some]

    return parts(), labels


def mapped(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The features as one array, which the system can take the memory of, and their labels."""
    from xfer.core.long_array import zeros

    parts, labels = synthetic(count)
    features = zeros((count, WIDTH), np.float32)
    for i, part in enumerate(parts):
        features[i * PER_SHARD : i * PER_SHARD + len(part)] = part
    return features, labels


def solve(count: int) -> None:
    """Solve a head on ``count`` synthetic features in a file, as the exact fit does."""
    from xfer.training import logistic
    from xfer.training.cross_validation import HeadProblem

    parts, labels = synthetic(count)
    with tempfile.NamedTemporaryFile() as file:
        for part in parts:
            file.write(part.tobytes())
        file.flush()
        features = np.memmap(file.name, np.float32, "c", 0, (count, WIDTH))
        given = (labels, (), CLASSES, lambda counts: None, False, 0.0, (0.1,), FOLDS, 0)
        problem = HeadProblem([features], features, *given)
        solution = logistic.solve(problem.rows(), (0.1,))
    print(f"held out: accuracy {solution.path[solution.best].cv_acc:.4f}")


def doubt(count: int) -> None:
    """What ``stages=[audit]`` computes from ``count`` features."""
    from xfer.training.image_audit import look

    found = look(*mapped(count), tuple(map(str, range(CLASSES)))).of_labels
    print(f"influential: {len(found.influential)}")


def extrapolate(count: int) -> None:
    """What ``stages=[worth]`` computes from ``count`` features."""
    from xfer.training.worth import of_features

    features, labels = mapped(count + CHECKED)
    names = tuple(map(str, range(CLASSES)))
    check = (features[count:], labels[count:])
    facts = of_features(features[:count], labels[:count], names, 0, check)
    print(f"largest subsample: {facts['largest_subsample']}")


def look_through(shards: Path) -> None:
    """The data set of ``shards``, with what a scan finds made up."""
    from xfer.data import Shards, scan

    def read(place: object) -> scan.Facts:
        digest = hashlib.sha256(str(place).encode()).hexdigest()
        return scan.Facts(place, digest, look=digest, size=(16, 16))  # type: ignore[arg-type]

    scan.inspect = read  # type: ignore[assignment]
    data = Shards(str(shards)).dataset(True)
    print({name: len(samples) for name, samples in data.splits.items()})


def rates(shards: Path, folder: Path) -> str:
    """Images a second from shards and from files, at random, cold and warm."""
    from xfer.data import Folder, Shards
    from xfer.data.image_bytes import read_file

    quick = {"leakage": "ignore"}
    sets = [Folder(str(folder), **quick).dataset(True), Shards(str(shards), **quick).dataset(True)]
    places = [one.splits["train"].images.paths for one in sets]
    order = list(range(len(places[0])))
    random.Random(0).shuffle(order)
    words = []
    for turn in ("cold", "warm"):
        figures = []
        for paths in places:
            some = [paths[i] for i in order[:READ]]
            if turn == "cold":
                for path in {p if isinstance(p, Path) else p.file for p in some}:
                    handle = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(handle)
            began = time.perf_counter()
            for place in some:
                read_file(place)
            figures.append(len(some) / (time.perf_counter() - began))
        words.append(f"| {turn} | {figures[0]:,.0f} | {figures[1]:,.0f} |")
    return "\n".join(words)


class Bench:
    """One number of images, and the costs of its stages."""

    def __init__(self, count: int, at: Path, pictures: Sequence[tuple[str, bytes]]) -> None:
        self.count, self.at, self.pictures = count, at, pictures
        self.shards, self.folder, self.run = at / "shards", at / "folder", at / "run"

    def cost(self, stage: str) -> Cost:
        """What a stage takes."""
        data = ["data=shards", f"data.root={self.shards}", "data.workers=0", "data.decoded_gb=0"]
        commands = {
            "plan": [*data, "stages=[]"],
            "plan again": [*data, "stages=[]"],
            "fit": [*data, "stages=[fit]", "optim=exact", f"run.dir={self.run}"],
            "evaluate": [*data, "stages=[evaluate,report]", f"checkpoint.path={self.run}"],
            "predict": ["stages=[predict]", f"predict.input=[{self.folder}]"],
        }
        commands["evaluate"].append(f"run.dir={self.at}/evaluated")
        commands["predict"] += [f"checkpoint.path={self.run}", f"run.dir={self.at}/predicted"]
        if stage in ALONE:
            command = [sys.executable, __file__, "--alone", stage, str(self.count)]
        elif stage == "listing":
            command = [sys.executable, __file__, "--list", str(self.shards)]
        else:
            command = [*COMMAND, *commands[stage]]
        # What a listing has made up is no cache for a plan.
        os.environ["XFER_CACHE"] = f"{self.at}/{'made up' if stage == 'listing' else 'cache'}"
        return measured(command, self.at / "log.txt")

    def prepare(self, stages: Sequence[str]) -> None:
        """Write what the stages read, a checkpoint too where none of them makes one."""
        os.environ["XFER_CACHE"] = f"{self.at}/cache"
        fits = {"evaluate", "predict"} & {*stages} and "fit" not in stages
        if {*stages} - {*ALONE}:
            # Any network predicts as many images, also one that knows a single shard.
            few = {*stages} <= {*ALONE, "predict"}
            in_shards(self.pictures, min(self.count, PER_SHARD) if few else self.count, self.shards)
        if {"predict", "read"} & {*stages}:
            in_folders(self.pictures, self.count, self.folder)
        if fits:
            self.cost("fit")


def main() -> None:
    about = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**about)  # type: ignore[arg-type]
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 10_000], metavar="N")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--pictures", type=int, default=100_000, help="at most (100,000)")
    parser.add_argument("--side", type=int, default=64, help="their pixels a side (64)")
    parser.add_argument("--alone", choices=ALONE, help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        look_through(asked.list)
        return
    if asked.alone:
        {"exact": solve, "audit": doubt, "worth": extrapolate}[asked.alone](*asked.counts)
        return
    many = min(asked.pictures, max(asked.counts)) if {*asked.only} - {*ALONE} else 0
    pictures = photographs(many, asked.side)
    before: dict[str, tuple[int, int]] = {}
    print(f"{len(pictures)} pictures of {asked.side} x {asked.side}\n")
    print("| stage | images | s | own MB | resident MB | own bytes an image more |")
    print("| --- " + "| ---: " * 5 + "|")
    read = ""
    for count in sorted(asked.counts):
        at = Path(tempfile.mkdtemp(prefix="xfer-scale-"))
        try:
            bench = Bench(count, at, pictures)
            bench.prepare(asked.only)
            for stage in (s for s in STAGES if s in asked.only and s != "read"):
                seconds, own, resident = bench.cost(stage)
                more = ""
                if stage in before:
                    fewer, lower = before[stage]
                    more = f"{(own - lower) / (count - fewer):,.0f}"
                before[stage] = count, own
                mega = f"{own / 1e6:,.0f} | {resident / 1e6:,.0f}"
                print(f"| {stage} | {count:,} | {seconds:.1f} | {mega} | {more} |", flush=True)
            if "read" in asked.only:
                read += f"\n{count:,} images\n\n| images a second | files | shards |\n"
                read += f"| --- | ---: | ---: |\n{rates(bench.shards, bench.folder)}\n"
        finally:
            shutil.rmtree(at)
    print(read)


if __name__ == "__main__":
    main()
