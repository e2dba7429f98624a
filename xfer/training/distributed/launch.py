"""The other processes of a run on several devices: started or awaited, and none outlives it.

A run is led by rank 0, which plans, writes every file and does all stages. The others do their
parts of the fit, of features, and of what is evaluated and predicted. xfer starts them itself, as
``python -m xfer.training.distributed.rank``, unless a launcher has started one process a device:
then those other than rank 0 wait for its word.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core import errors
from xfer.core.errors import OutOfMemory, XferError
from xfer.core.log import log
from xfer.core.signals import stop
from xfer.core.world import launched

if TYPE_CHECKING:
    from xfer.core.types import Plain
    from xfer.core.world import World
    from xfer.training.distributed.rank_store import RankStore

_GRACE = 20.0
"""Seconds in which a rank that is asked to end, or has lost the others, must have ended."""
_LATE = 60.0
"""Seconds in which one that has only just been started must hear that the run is over."""
_SILENT = 1.0
_LAST_WORDS = 3.0
"""Seconds from the moment that a rank is gone until what it failed of must be here."""
_RANK = "xfer.training.distributed.rank"


class Others:
    """What rank 0 knows of the other ``ranks`` - 1 of a run, from ``place``, where they meet."""

    def __init__(self, place: RankStore, ranks: int) -> None:
        self.place, self.ranks = place, ranks
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, port: int) -> None:
        """Start them on this machine, as a launcher would, to meet at ``port``."""
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
        world["WORLD_SIZE"] = str(self.ranks)
        # Of a torchrun that started this process alone.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
        for number in map(str, range(1, self.ranks)):
            environment = {**inherited, **world, "RANK": number, "LOCAL_RANK": number}
            # The pipe closes when this process ends, however it ends; a rank ends with it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _RANK], stdin=subprocess.PIPE, env=environment
            )
            self.processes.append(process)

    def failure(self) -> XferError:
        """What another rank failed of: it may be about to say so; else who has ended without a
        word."""
        began = time.monotonic()
        while (failure := self.failed()) is None and (waited := time.monotonic() - began) < _GRACE:
            # The others have only lost that one.
            if waited > _LAST_WORDS and len(self._silent()) <= 1 and not self.processes:
                break
            time.sleep(0.1)
        return failure or self._gone()

    def failed(self) -> XferError | None:
        """What another rank has failed of by now."""
        codes = {number: p.poll() for number, p in enumerate(self.processes, 1)}
        # The words of one that had a reason go before the exit code of one that lost the others.
        for number in range(1, self.ranks):
            facts = self.place.read(f"error{number}")
            if facts is not None:
                error: XferError = getattr(errors, facts.pop("kind"))(**facts)
                return error
        # A killed one, below 0, before those that lost it.
        code, number = min(((code, n) for n, code in codes.items() if code), default=(0, 0))
        if code == -9:
            fix = "lower data.batch_size, data.workers or data.decoded_gb"
            return OutOfMemory("trainer.devices", f"the system killed rank {number}", fix, 6)
        what = f"rank {number} ended with exit code {code}"
        return XferError("trainer.devices", what, "see what it printed", 11) if code else None

    def _silent(self) -> list[int]:
        """Ranks that have not said that they lost another one."""
        return [n for n in range(1, self.ranks) if self.place.read(f"lost{n}") is None]

    def _gone(self) -> XferError:
        silent = self._silent()
        hosts = {n: (self.place.read(f"hello{n}") or {}).get("host", "?") for n in silent}
        named = ", ".join(f"rank {n} on {hosts[n]}" for n in silent) or "a rank"
        what = f"{named} ended without a word: it was killed, or its node is gone"
        fix = (
            "see what it printed; with run.dir=DIR checkpoint.resume=auto the same command "
            "continues from the last step that was saved"
        )
        return XferError("trainer.nodes", what, fix, 24)

    def wait(self) -> None:
        """Until every rank has ended. Raises XferError where one failed at the very end."""
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        if not self.processes:
            deadline, heard = time.monotonic() + _GRACE, [f"heard{n}" for n in range(1, self.ranks)]
            while not (self.place.store.check(heard) or self.failed()):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        if failed := self.failed():
            raise failed

    def end(self) -> None:
        """End every rank that this process has started, at once."""
        for process in self.processes:
            process.kill()
            process.communicate()


_runs = 0


def next_run() -> None:
    """What follows is about another run than before; every rank of a launcher's counts alike."""
    global _runs
    _runs += 1


def rank_store(world: World) -> RankStore:
    """Where the ranks of ``world`` meet for the run at hand. torch is imported here."""
    from xfer.training.distributed.rank_store import store_of

    return store_of(world, _runs)


@contextmanager
def leading() -> Iterator[None]:
    """Within, the ranks that a launcher started beside this one wait for its word; afterwards they
    have heard that there comes none."""
    world = launched()
    if world is None:
        yield
        return
    place = rank_store(world)
    try:
        yield
    finally:
        place.put("over", {})
        _until_heard(place, world.ranks)


def _until_heard(place: RankStore, ranks: int) -> None:
    """Wait for those who are still to hear that the run is over: what they ask goes with this
    process."""
    began = time.monotonic()
    while stop.asked is None and (waited := time.monotonic() - began) < _LATE:
        left = [n for n in range(1, ranks) if place.read(f"heard{n}") is None]
        there = [n for n in left if place.read(f"hello{n}") is not None]
        # Who has come asks several times a second.
        if not left or (len(there) == len(left) and waited > _SILENT):
            return
        time.sleep(0.05)


def word_of(place: RankStore, world: World) -> Plain | None:
    """What rank 0 says of the run that it leads, once it has work for others; ``None`` when it has
    ended without any. Raises XferError where rank 0 is gone."""
    pause = 0.02
    try:
        while (word := place.read("call")) is None:
            if place.read("over") is not None:
                place.put(f"heard{world.rank}", {})
                return None
            time.sleep(pause)
            pause = min(0.5, 1.2 * pause)
    except RuntimeError as error:
        raise lost(world) from error
    return word


def lost(world: World) -> XferError:
    """What a rank other than 0 says when rank 0 is gone."""
    what = f"rank 0 is gone, and with it this rank {world.rank}"
    fix = "see what rank 0 printed"
    return XferError(f"{world.address}:{world.port}", what, fix, 27)


def report_error(place: RankStore, number: int, error: XferError) -> None:
    """Leave for rank 0 what rank ``number`` failed of."""
    facts = {"where": error.where, "what": error.what, "fix": error.fix}
    kind, case = type(error).__name__, error.number - error.base
    with suppress(RuntimeError):  # rank 0 is gone
        place.put(f"error{number}", {"kind": kind, **facts, "number": case})
    log.debug(f"rank {number}: {error}")
