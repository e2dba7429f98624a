"""Where the ranks of a run say what is not for gradients: a store of torch's, which rank 0 holds,
or torchrun in its place."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from xfer.core.errors import LaunchError, XferError
from xfer.core.types import Plain

if TYPE_CHECKING:
    from xfer.core.world import World

HERE = "127.0.0.1"
_TRY = timedelta(seconds=5)
_ANSWER = timedelta(seconds=300)
_WAIT = "XFER_RANK_WAIT"


class RankStore:
    """Words of the ranks of one run, each JSON-like under a key; ``store`` has them, and is what
    torch's group meets at."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def put(self, key: str, facts: Plain) -> None:
        """Have every rank read ``facts`` under ``key``."""
        self.store.set(key, json.dumps(facts))

    def read(self, key: str) -> Plain | None:
        """What stands under ``key``; ``None`` while nothing does. Raises torch's DistError where
        rank 0 is gone."""
        if not self.store.check([key]):
            return None
        facts: Plain = json.loads(self.store.get(key))
        return facts


def rank_wait() -> float:
    """Seconds in which ranks must have come together: ``$XFER_RANK_WAIT``, by default 900.

    Raises LaunchError for what is no number above 0.
    """
    text = os.environ.get(_WAIT, "900")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise LaunchError(_WAIT, f"is '{text}'", f"type export {_WAIT}=900, in seconds", 0)
    return seconds


def introduction() -> Plain:
    """What a rank says of itself: its host, and the versions that must be the same on all."""
    names = ("xfer-vision", "torch", "pytorch-lightning", "torchvision", "timm", "numpy")
    return {"host": socket.gethostname(), "versions": {name: version(name) for name in names}}


def here() -> tuple[RankStore, int]:
    """A store on this machine, which this process holds, and its port: of the ranks that it
    starts, which have done no run before."""
    store = TCPStore(HERE, 0, None, True, wait_for_workers=False)
    return _prefixed(store, "0.0", 0), store.port


def store_of(world: World, run: int) -> RankStore:
    """Where the ranks of ``world`` meet for the run number ``run`` of this process.

    Raises XferError where rank 0 cannot listen there, or does not answer in time.
    """
    return _prefixed(_store(world), world.name, run)


def _prefixed(store: Store, name: str, run: int) -> RankStore:
    return RankStore(PrefixStore(f"xfer/{name}/{run}", store))


@cache
def _store(world: World) -> Store:
    """One for all runs of this process: a port that was closed is not free at once."""
    place = f"{world.address}:{world.port}"
    if world.rank == 0 and not world.agent:
        try:
            return TCPStore(world.address, world.port, None, True, wait_for_workers=False)
        except (RuntimeError, OSError) as error:
            what = f"rank 0 cannot listen there ({str(error).splitlines()[0][:120]})"
            fix = f"type export MASTER_PORT={world.port + 1}, or another port that is free"
            raise XferError(place, what, fix, 26) from error
    wait = rank_wait()
    deadline = time.monotonic() + wait
    while True:
        try:
            store = TCPStore(world.address, world.port, None, False, _TRY)
            store.set_timeout(_ANSWER)
            return store
        except (distributed.DistError, OSError) as error:
            if time.monotonic() < deadline:
                time.sleep(0.2)  # a signal is heard between two attempts
                continue
            what = f"rank 0 has not answered rank {world.rank} within {wait:g} s"
            fix = (
                "see whether rank 0 runs, and whether MASTER_ADDR and MASTER_PORT lead there; "
                f"{_WAIT}=SECONDS waits longer"
            )
            raise XferError(place, what, fix, 25) from error


def arrivals(place: RankStore, ranks: int) -> dict[int, Any]:
    """What every rank other than 0 that has come says of itself."""
    said = {number: place.read(f"hello{number}") for number in range(1, ranks)}
    return {number: facts for number, facts in said.items() if facts is not None}
