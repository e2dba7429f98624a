"""Checkpoints written to another file system than the temporary folder's, killed on the way.

``python tests/proofs/save_kills.py --kills 1000`` is the whole proof. A forked process saves the
same checkpoint path again and again and is killed at a random moment; what is there must be whole,
and must go on from one kill to the next. ``--stock`` writes with Lightning's own writer instead,
which moves the file from the temporary folder and leaves torn ones: the harness must see the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from xfer.core.run_folder import LAST
from xfer.core.torch_file import load_tensors
from xfer.plan.resume import resume_file
from xfer.training.lightning import AtomicIO

PLACES = ("/dev/shm", "/run", "/tmp", ".")
MEGABYTES = 4


def other_file_systems() -> tuple[Path, Path] | None:
    """A folder for temporary files and one on another file system; ``None`` where there is one."""
    found = {Path(p).stat().st_dev: Path(p) for p in reversed(PLACES) if os.access(p, os.W_OK)}
    folders = list(found.values())
    return (folders[0], folders[-1]) if len(folders) > 1 else None


def save_forever(folder: Path, temporary: Path, stock: bool) -> None:
    """Save states that tell by all of their numbers which save they are of."""
    tempfile.tempdir = str(temporary)
    writer, number = TorchCheckpointIO() if stock else AtomicIO(), 0
    while True:
        number += 1
        state = torch.full((MEGABYTES << 18,), float(number))
        writer.save_checkpoint({"number": number, "state": state}, folder / LAST)


def killed(folder: Path, temporary: Path, stock: bool, dice: random.Random) -> bool:
    """Kill a saving process at a random moment behind its first save; whether a save was cut."""
    child = os.fork()
    if child == 0:
        try:
            save_forever(folder, temporary, stock)
        finally:
            os._exit(1)
    before, started = seen(folder), time.monotonic()
    while seen(folder) == before and time.monotonic() - started < 60:
        time.sleep(0.002)
    time.sleep(dice.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [*folder.glob(".*.part"), *temporary.iterdir()]
    for part in left:
        part.unlink()
    return bool(left)


def seen(folder: Path) -> int:
    """Tells one file under the name from the next."""
    try:
        return (folder / LAST).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def problem(root: Path, stock: bool) -> str:
    """What is wrong with the file that a run would go on from; nothing where it is whole."""
    try:
        path = root / "checkpoints" / LAST if stock else resume_file(root)
        assert path is not None, "is gone"
        found = load_tensors(path)
        assert bool((found["state"] == found["number"]).all()), "is of two saves"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stock", action="store_true", help="the negative control")
    asked = parser.parse_args()
    places = other_file_systems()
    if places is None:
        print(json.dumps(None))
        return
    dice, cut, corrupt = random.Random(asked.seed), 0, list[str]()
    with (
        tempfile.TemporaryDirectory(dir=places[0]) as here,
        tempfile.TemporaryDirectory(dir=places[1]) as there,
    ):
        (folder := Path(there) / "checkpoints").mkdir()
        kills = 0
        while kills < asked.kills and not (asked.stock and corrupt):
            kills += 1
            cut += killed(folder, Path(here), asked.stock, dice)
            corrupt += [what] if (what := problem(Path(there), asked.stock)) else []
            if kills % 50 == 0:
                print(kills, cut, len(corrupt), file=sys.stderr, flush=True)
    print(json.dumps({"kills": kills, "cut": cut, "corrupt": corrupt}))


if __name__ == "__main__":
    main()
