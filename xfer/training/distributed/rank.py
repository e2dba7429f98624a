"""One more process of a run that trains on several devices.

``python -m xfer.training.distributed.rank`` is how rank 0 starts it, with the environment of a
launcher; where there is a launcher, ``python -m xfer`` itself comes here.

It looks whether it has rank 0's ``plan.json``, does its part of whatever rank 0 asks for, and ends.
What cannot be read there (the images' names, what trains when) rank 0 sends; the weights as well.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.config.provenance import Places
from xfer.config.specs import Builder
from xfer.core.errors import OutputError, XferError
from xfer.core.files import file_sha256
from xfer.core.log import flush, log
from xfer.core.run_status import as_xfer
from xfer.core.signals import Stopped, heeded, stop
from xfer.core.world import launched
from xfer.training.distributed.launch import lost, rank_store, report_error, word_of
from xfer.training.features import AutoFeatures

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.types import Plain
    from xfer.core.world import World
    from xfer.training.distributed.rank_store import RankStore

_SEEN = 60.0
"""Seconds until a file that rank 0 wrote must be seen here: network file systems have delays."""


def main() -> None:
    """End with rank 0, whatever ends it."""
    gc.set_threshold(100_000, 10, 10)  # as the command line imports: see ``import_at_ease``
    threading.Thread(target=_end_with_rank_zero, daemon=True).start()
    world = launched()
    if world is None:
        sys.exit("xfer starts this itself, see docs/howto/devices.md")
    with heeded():
        _, code = take_part(world, rank_store(world))
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()
    flush()
    os._exit(code)  # rank 0 waits, and taking torch down takes longer than what is left to do


def _end_with_rank_zero() -> None:
    os.read(0, 1)
    os._exit(1)


def follow(world: World) -> Path:
    """Take part, as a rank other than 0, in the run that rank 0 leads; its folder, or an empty path
    where it has none. Ends the process with the exit code of a run that failed.

    Raises XferError where rank 0 is not met, or is gone.
    """
    folder, code = take_part(world, rank_store(world))
    if code:
        raise SystemExit(code)
    return folder or Path()


def take_part(world: World, place: RankStore) -> tuple[Path | None, int]:
    """Do the parts of one of the other ranks, where rank 0 asks for some: the folder of the run,
    and the exit code. Errors go to rank 0. Raises XferError where rank 0 is gone."""
    from xfer.training.distributed.rank_store import introduction, rank_wait
    from xfer.training.distributed.rendezvous import assist, is_lost

    place.put(f"hello{world.rank}", introduction())
    if (word := word_of(place, world)) is None:
        return None, 0
    folder = Path(word["folder"]) if "folder" in word else None
    log.addHandler(logging.NullHandler())  # rank 0 says it
    log.propagate = False
    stop.waits = True  # for the step after which all ranks stop
    try:
        with suppress(Stopped):
            assist(_specs(world, word, min(_SEEN, rank_wait())), place, world)
    except Exception as error:
        if is_lost(error):
            return folder, _ends(place, world)  # who is gone has said why, or rank 0 sees it
        failure = as_xfer(error)
        if not isinstance(failure, XferError):
            traceback.print_exc()
            what = f"{type(error).__name__}: {error}"
            failure = XferError(f"rank {world.rank}", what, "this is a bug in xfer: report it", 14)
        report_error(place, world.rank, failure)
        return folder, failure.exit
    with suppress(RuntimeError):
        place.put(f"heard{world.rank}", {})
    return folder, 0


def _ends(place: RankStore, world: World) -> int:
    """The exit code of a rank that has lost another one. Raises XferError where that is rank 0."""
    try:
        place.put(f"lost{world.rank}", {})
        place.read("call")  # what is only sent may be lost without an error
    except RuntimeError as error:
        raise lost(world) from error
    return 1


def _specs(world: World, word: Plain, seconds: float) -> Specs:
    """What rank 0 was asked for. Raises OutputError where its plan, or its folder of features, is
    not seen here within ``seconds``."""
    if "folder" in word:
        path = Path(word["folder"]) / "plan.json"
        if problem := _unseen(path, word["plan"], seconds):
            what = f"{problem} on {word['host']}, as rank {world.rank} sees it"
            fix = "type run.dir=DIR, a folder that every node has at the same place"
            raise OutputError(path, what, fix, 6)
    typed = Builder(word["config"], Places({}, [], [])).specs(word["experiment"], [])
    specs = replace(typed, begun=word["begun"])
    options = specs.features
    if word["witness"] and isinstance(options, AutoFeatures):
        folder = options.store().folder
        witness = folder / word["witness"]
        if problem := _unseen(witness, word["witness"].removeprefix("."), seconds):
            what = f"{problem} on {word['host']}, as rank {world.rank} sees it"
            fix = "type features.dir=DIR, a folder that every node has at the same place"
            raise OutputError(folder, what, fix, 7)
    return specs


def _unseen(path: Path, sha256: str, seconds: float) -> str:
    """Why ``path`` is not the file that rank 0 wrote; nothing once it is."""
    deadline = time.monotonic() + seconds
    while True:
        problem = "is not the file that rank 0 wrote"
        try:
            if file_sha256(path) == sha256:
                return ""
        except OSError:
            problem = "is not there, and rank 0 wrote it"
        if time.monotonic() > deadline:
            return problem
        time.sleep(0.5)


if __name__ == "__main__":
    main()
