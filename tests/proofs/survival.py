"""Runs that are killed at random times and begun again, held against the run that nobody killed.

``python tests/proofs/survival.py --kills 500 --report`` is the whole proof, ``test_survival.py`` a
part of it. It ends at its kills or, with ``--minutes``, after the run in which the time is over. A
warm parent forks every run, because importing torch would take most of the time; with ``--ranks``
rank 0 alone, which starts the others. Each try has another number of worker processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from runs import OPTIONS, assert_same
from warm import warm

from xfer.core.files import file_sha256

MORE = ["stages=[fit,evaluate,export]", "export=safetensors"]
COMMAND = [*OPTIONS[1:], *MORE, "checkpoint.resume=auto"]


def begin(
    folder: Path, command: list[str] = COMMAND, prepare: Callable[[], object] = lambda: None
) -> int:
    """Fork a run in ``folder``, with a cache of its own, after ``prepare``; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["XFER_CACHE"] = str(folder / "cache")
        import xfer

        prepare()
        xfer.run("digits_sgd", command)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(child: int) -> int:
    """Wait for a run; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finished(folder: Path) -> Path:
    """The one finished run, every file of which is as its status says."""
    runs = [path.parent for path in folder.glob("outputs/*/*/result.json")]
    assert len(runs) == 1, f"{len(runs)} finished runs"
    status = json.loads((runs[0] / "status.json").read_text())
    assert status["state"] == "finished", status
    assert all(file_sha256(runs[0] / n) == digest for n, digest in status["files"].items())
    assert not list(runs[0].rglob(".*.part")), "temporary files are left"
    return runs[0]


def workers(dice: random.Random) -> list[str]:
    """The command with another number of processes that decode."""
    return [*COMMAND, f"data.workers={dice.randint(0, 2)}"]


def survive(folder: Path, whole: Path, took: float, dice: random.Random) -> tuple[int, str]:
    """One run with up to four kills: how many landed, and what differs, if anything does."""
    landed = 0
    for _ in range(dice.randint(1, 4)):
        child = begin(folder, workers(dice))
        time.sleep(dice.uniform(0, 0.7 * took))
        os.kill(child, signal.SIGKILL)
        if end(child) != -signal.SIGKILL:
            break  # it had finished, or will fail again below
        landed += 1
    return landed, difference(end(begin(folder, workers(dice))), folder, whole)


def difference(code: int, folder: Path, whole: Path) -> str:
    """What is otherwise than in ``whole``, the run that nobody killed; nothing where nothing is.

    ``code`` is the exit code of the last run in ``folder``.
    """
    try:
        assert code == 0, f"exit {code}: " + (folder / "output").read_text()[-2000:]
        run = finished(folder)
        assert_same(run, whole)
        files = [{str(p.relative_to(r)) for p in r.rglob("*")} for r in (run, whole)]
        assert files[0] == files[1], files[0] ^ files[1]
    except AssertionError as error:
        return str(error)[:2000] or "differs"
    return ""


def spoil() -> None:
    """The negative control: a loader that forgets how far it was."""
    from xfer.data.loader import TrainLoader

    TrainLoader.load_state_dict = lambda self, state: None  # type: ignore[method-assign]


def in_shards(place: Path) -> str:
    """Real digits as pictures in shards; the folder of these."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from xfer.data import Folder
    from xfer.data.pack import pack

    images, targets = load_digits(return_X_y=True)
    for i, (pixels, target) in enumerate(zip(images[:400], targets[:400], strict=True)):
        path = place / "digits" / ("val" if i % 5 == 0 else "train") / str(target) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8).reshape(8, 8)).resize((32, 32)).save(path)
    return str(pack(Folder(str(place / "digits")), str(place / "shards"), 1, False))


def words(asked: argparse.Namespace, place: Path) -> list[str]:
    """What is asked for, as a run's command has it."""
    found = [f"trainer.max_epochs={asked.epochs}"]
    if asked.report:
        found += ["stages=[fit,evaluate,export,report]"]
    if asked.ranks > 1:
        found += ["trainer=cpu", f"trainer.devices={asked.ranks}"]
    if asked.shards:
        found += ["data=shards", f"data.root={in_shards(place)}", "data.leakage=ignore"]
    return found


def main() -> None:
    """Print the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no run after them"
    )
    parser.add_argument("--runs", type=int, default=0, help="at least so many")
    parser.add_argument("--epochs", type=int, default=3, help="of every run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spoilt", action="store_true", help="the negative control")
    parser.add_argument("--report", action="store_true", help="with figures and report")
    parser.add_argument("--shards", action="store_true", help="of pictures in shards")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together")
    asked = parser.parse_args()
    warm()
    if asked.spoilt:
        spoil()
    dice, kills, runs = random.Random(asked.seed), 0, 0
    until = time.monotonic() + 60 * asked.minutes
    different: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        COMMAND.extend(words(asked, root))
        for name in ("first", "whole"):
            (root / name).mkdir()
            began = time.monotonic()
            assert end(begin(root / name)) == 0, (root / name / "output").read_text()
            took = time.monotonic() - began
        whole = finished(root / "whole")
        assert_same(finished(root / "first"), whole)
        while (kills < asked.kills or runs < asked.runs) and time.monotonic() < until:
            (folder := root / f"run{runs}").mkdir()
            landed, what = survive(folder, whole, took, dice)
            runs, kills = runs + 1, kills + landed
            if not what:
                shutil.rmtree(folder)
            different += [what] if what else []
            counts = f"{runs} runs, {kills} kills, {len(different)} differ"
            print(counts, file=sys.stderr, flush=True)
    print(json.dumps({"runs": runs, "kills": kills, "different": different}))


if __name__ == "__main__":
    main()
