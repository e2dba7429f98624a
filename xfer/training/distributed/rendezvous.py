"""Work that several processes share: rank 0 calls the others, and says what each is to do."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed

from xfer.core.device import device_of
from xfer.core.errors import LaunchError, XferError
from xfer.core.files import file_sha256, write_text
from xfer.core.log import log
from xfer.core.world import World, launched
from xfer.models.network import blueprint
from xfer.models.restore import pieces
from xfer.plan import auto
from xfer.plan.plan import Plan
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.distributed.launch import Others, rank_store
from xfer.training.distributed.rank_store import (
    HERE,
    RankStore,
    arrivals,
    here,
    introduction,
    rank_wait,
)
from xfer.training.features import AutoFeatures

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.config.trainer import TrainerOptions
    from xfer.core.types import Plain

_WORTH_A_WORD = 5.0
"""Seconds of waiting after which it is said for whom."""


class SentPlan(NamedTuple):
    """A plan on its way to another rank: without weights, which follow tensor by tensor, and
    without what is built from ``config``, that which was asked for."""

    light: Plan
    config: Plain

    @classmethod
    def of(cls, plan: Plan) -> SentPlan:
        """``plan``, to be sent."""
        built = dict.fromkeys(("asked", "specs", "parts", "network", "source_head"))
        light = replace(plan, state={}, **built)  # type: ignore[arg-type]
        return cls(light, plan.asked.config)

    def received(self, specs: Specs) -> Plan:
        """The plan as rank 0 has made it, by a rank that was asked for ``specs``."""
        parts, _ = pieces(self.light.card, specs.make)
        network, decided = blueprint(parts)[1], auto.apply(specs, self.light.decisions)
        asked = replace(specs, config=self.config)  # by which the files of the run are known
        return replace(self.light, asked=asked, specs=decided, parts=parts, network=network)


class Lead:
    """How rank 0 has the other ranks of a run do their parts of its work: they are called when the
    first part is due, and wait from then on for the next. Without a plan it is that of a process
    which does everything itself."""

    def __init__(self, plan: Plan | None = None, folder: Path | None = None) -> None:
        self._plan, self._folder = plan, folder
        self._group: ProcessGroup | None = None
        self.others: Others | None = None
        self.stack = ExitStack()

    def ask(self, part: Callable[..., object], *given: Any) -> ProcessGroup:
        """Have every other rank call ``part(specs, group, *given)``; the group of all, in which
        this process does its own part at once. ``part`` is a function of a module.

        Raises the XferError that another rank fails of before it has come.
        """
        if self._plan is None:
            return ALONE
        if self._group is None:
            self._group = self.stack.enter_context(self._met(self._plan))
        self._group.broadcast((part, given))
        return self._group

    @contextmanager
    def _met(self, plan: Plan) -> Iterator[ProcessGroup]:
        trainer, world = plan.specs.trainer, launched()
        if world:
            self.others = Others(rank_store(world), trainer.ranks)
        else:
            place, port = here()
            self.others = Others(place, trainer.ranks)
            world = World("xfer", 0, trainer.ranks, 0, 1, HERE, port, "")
            self.others.start(port)
        _call(self.others, plan, self._folder)
        with _joined(self.others.place, world, trainer) as group:
            yield group
            group.broadcast(None)


NOBODY = Lead()


@contextmanager
def led(plan: Plan, folder: Path | None) -> Iterator[Lead]:
    """Within, the lead of the run of ``plan`` in ``folder``, ``None`` where it has none of its own.

    Whatever happens inside, no other rank outlives it. Raises the XferError that another rank
    failed of, or that says which one is gone.
    """
    lead = NOBODY if plan.specs.trainer.ranks == 1 else Lead(plan, folder)
    try:
        with lead.stack:
            yield lead
        if lead.others:
            lead.others.wait()
    except RuntimeError as error:
        if lead.others and is_lost(error):
            raise lead.others.failure() from error
        raise
    finally:
        if lead.others:
            lead.others.end()


def is_lost(error: Exception) -> bool:
    """Whether ``error`` says that another rank is gone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def assist(specs: Specs, place: RankStore, world: World) -> None:
    """As one of the other ranks of ``world``, do what rank 0 asks for until it has all of it."""
    place.put(f"here{world.rank}", {})
    with _joined(place, world, specs.trainer) as group:
        while (asked := group.broadcast(None)) is not None:
            part, given = asked
            part(specs, group, *given)


@contextmanager
def _joined(place: RankStore, world: World, trainer: TrainerOptions) -> Iterator[ProcessGroup]:
    """Be one of the processes that meet at ``place``."""
    gpu = device_of(trainer.accelerator).type == "cuda"
    if gpu:
        torch.cuda.set_device(world.local)
    backend, rank, ranks = "nccl" if gpu else "gloo", world.rank, trainer.ranks
    distributed.init_process_group(backend, store=place.store, rank=rank, world_size=ranks)
    try:
        yield ProcessGroup(rank, ranks, world.local)
    finally:
        distributed.destroy_process_group()


def _call(others: Others, plan: Plan, folder: Path | None) -> None:
    """Until every rank has come, is of the same versions, sees what this one wrote, and has joined.
    Raises XferError where one does not, or ends before."""
    _await(others, "hello", "has come")
    refuse_other_versions(others)
    witness = _witness(plan)
    try:
        asked = plan.asked
        word: Plain = {"config": asked.config, "experiment": asked.experiment, "begun": asked.begun}
        if folder is not None:
            word |= {"folder": str(folder.resolve()), "plan": file_sha256(folder / "plan.json")}
        name = witness.name if witness else None
        others.place.put("call", {**word, "witness": name, "host": introduction()["host"]})
        _await(others, "here", "has joined")
    finally:
        if witness:
            witness.unlink(missing_ok=True)


def _witness(plan: Plan) -> Path | None:
    """A file by which ranks on other nodes see whether they have this one's folder of features."""
    options, shared = plan.specs.features, "fit" in plan.specs.stages
    if plan.specs.trainer.nodes == 1 or not (shared and isinstance(options, AutoFeatures)):
        return None
    token = secrets.token_hex()
    path = options.store().folder / f".{hashlib.sha256(token.encode()).hexdigest()}"
    write_text(path, token)
    return path


def _await(others: Others, key: str, what: str) -> None:
    """Until every other rank has said ``key``. Raises XferError when one ends before, or is too
    late."""
    began, wait, said = time.monotonic(), rank_wait(), False
    keys = [f"{key}{number}" for number in range(1, others.ranks)]
    while not others.place.store.check(keys):
        if failed := others.failed():
            raise failed
        waited = time.monotonic() - began
        missing = [n for n, name in enumerate(keys, 1) if others.place.read(name) is None]
        named = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {others.ranks}"
        if waited > wait:
            late = f"not every rank {what} within {wait:g} s: {named} did not"
            fix = "see what they printed; XFER_RANK_WAIT=SECONDS waits longer"
            raise XferError("trainer.devices", late, fix, 13)
        if missing and waited > _WORTH_A_WORD and not said:
            said = True
            log.info(f"waiting for {named}, at most {wait:g} s")
        time.sleep(0.05)


def refuse_other_versions(others: Others) -> None:
    """Raise LaunchError for the first rank that runs other versions than this process does."""
    mine = introduction()["versions"]
    for number, facts in arrivals(others.place, others.ranks).items():
        theirs = facts["versions"]
        if apart := [name for name in mine if theirs.get(name) != mine[name]]:
            what = ", ".join(f"{name} {theirs.get(name)}, rank 0 {mine[name]}" for name in apart)
            wanted = " ".join(f"{name}=={mine[name]}" for name in apart)
            fix = f"type python -m pip install {wanted} there, or use one environment"
            raise LaunchError(f"rank {number} on {facts['host']}", f"has {what}", fix, 2)
