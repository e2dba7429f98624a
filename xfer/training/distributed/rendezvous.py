"""A fit by several processes: rank 0 starts the others and sends them the plan; they join."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch._C._distributed_c10d import Store, TCPStore

from xfer.core.device import device_of
from xfer.core.errors import XferError
from xfer.models.network import blueprint
from xfer.models.restore import pieces
from xfer.plan import auto
from xfer.plan.plan import Plan
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.distributed.launch import Others, meeting

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.settings import Trainer

_HERE = "127.0.0.1"
_ARRIVAL = 900.0
"""Seconds until every rank must have joined: it imports torch and opens no data before."""


@contextmanager
def led(plan: Plan, folder: Path, resume: Path | None) -> Iterator[ProcessGroup]:
    """Within, the group of a run in ``folder``, which this process leads.

    Whatever happens inside, no other rank outlives it. Raises the XferError that another rank
    failed of.
    """
    trainer = plan.specs.trainer
    if trainer.devices == 1:
        yield ALONE
        return
    others = Others(folder, trainer.devices)
    try:
        store = TCPStore(_HERE, 0, trainer.devices, True, wait_for_workers=False)
        others.start(store.port)
        _await(store, others)
        with _joined(store, 0, trainer) as group:
            # The weights follow tensor by tensor.
            light = replace(plan, asked=None, specs=None, parts=None, state={}, network=None)  # type: ignore[arg-type]
            group.broadcast((light, plan.asked.config, resume))
            yield group
        others.wait()
    except RuntimeError as error:
        if is_lost(error) and (failure := others.failure()):
            raise failure from error
        raise
    finally:
        others.end()


def is_lost(error: Exception) -> bool:
    """Whether ``error`` says that another rank is gone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


@contextmanager
def followed(
    specs: Specs, folder: Path, number: int
) -> Iterator[tuple[ProcessGroup, Plan, Path | None]]:
    """Within, the group, as rank ``number``; the plan as rank 0 has made it, without weights, and
    the resume file to resume from."""
    port, ranks = meeting(folder)
    store = TCPStore(_HERE, port, ranks, False)
    store.set(f"rank{number}", "here")
    with _joined(store, number, specs.trainer) as group:
        received: Any = group.broadcast(None)
        sent, config, resume = received
        parts, _ = pieces(sent.card, specs.make)
        network, decided = blueprint(parts)[1], auto.apply(specs, sent.decisions)
        asked = replace(specs, config=config)  # by which the files of the run are known
        plan = replace(sent, asked=asked, specs=decided, parts=parts, network=network)
        yield group, plan, resume


@contextmanager
def _joined(store: Store, rank: int, trainer: Trainer) -> Iterator[ProcessGroup]:
    """Be one of the processes that meet at ``store``."""
    gpu = device_of(trainer.accelerator).type == "cuda"
    if gpu:
        torch.cuda.set_device(rank)
    backend = "nccl" if gpu else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=trainer.devices)
    try:
        yield ProcessGroup(rank, trainer.devices)
    finally:
        distributed.destroy_process_group()


def _await(store: Store, others: Others) -> None:
    """Until every rank has joined. Raises XferError when one ends before, or is too late."""
    deadline = time.monotonic() + _ARRIVAL
    while not store.check([f"rank{number}" for number in range(1, others.ranks)]):
        if failed := others.failed():
            raise failed
        if time.monotonic() > deadline:
            late = f"not every rank has joined within {_ARRIVAL:.0f} s"
            raise XferError("trainer.devices", late, "see what the other tasks printed", 13)
        time.sleep(0.05)
