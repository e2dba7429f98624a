"""Training batches made smaller when memory runs out, with more of them in an optimizer step.

The fit begins again from its first step, and so ends bit for bit as a run that was configured
with the smaller batch and the larger ``trainer.accumulate``. What it came to is in the run folder,
where a run that goes on finds it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import TypedDict

from xfer.checked import checked
from xfer.errors import OutOfMemory, ResumeError
from xfer.files import read_json
from xfer.log import log
from xfer.resume import START_ANEW
from xfer.storage import write_json
from xfer.types import Plain

if TYPE_CHECKING:
    from xfer.plan import Plan

MEMORY = "memory.json"
_FITS = OutOfMemory.base + 1  # the error that names a size which was tried


_Size = Annotated[int, Field(gt=0)]


class _Sizes(TypedDict):
    batch_size: _Size
    accumulate: _Size
    eval_batch_size: _Size


class _Halved(_Sizes):
    asked: _Sizes


def recall(plan: Plan, folder: Path) -> Plan:
    """``plan`` with the batches that the run in ``folder`` came to."""
    found = told(folder)
    if not found or plan.specs.data is None:
        return plan
    before = _sizes(plan)
    images = before["batch_size"] * before["accumulate"]
    same = found["batch_size"] * found["accumulate"] == images
    if not same or found["eval_batch_size"] > before["eval_batch_size"]:
        what = f"is of batches of another run than this one, of {images} images a step"
        raise ResumeError(folder / MEMORY, what, START_ANEW, 27)
    return _with(plan, found)


def told(folder: Path) -> Plain | None:
    """``batch_size``, ``accumulate``, ``eval_batch_size`` and what was ``asked`` for; ``None``
    where memory sufficed."""
    path = folder / MEMORY
    if not os.path.lexists(path):
        return None
    try:
        found: Plain = read_json(path)
        checked(_Halved, found)
    except (OSError, ValueError) as error:
        what = f"is not what a run writes ({getattr(error, 'strerror', None) or error})"
        raise ResumeError(path, what, START_ANEW, 27) from error
    return found


def smaller(plan: Plan, folder: Path, error: OutOfMemory) -> Plan:
    """``plan`` with half the batch that ``error`` is about, and an empty folder of checkpoints.

    A batch that is odd is divided by its smallest factor, so that a step has as many images as
    before. Raises ``error`` where that is not asked for or nothing smaller would train.
    """
    data = plan.specs.data
    if plan.specs.trainer.on_oom != "halve" or data is None or error.number != _FITS:
        raise error
    before = _sizes(plan)
    found = {**before, "asked": (told(folder) or {}).get("asked", before)}
    if error.where == "data.eval_batch_size":
        found["eval_batch_size"] = data.eval_batch_size // 2
    else:
        factor = next(n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0)
        if data.batch_size == factor:
            raise error  # batch normalisation cannot train on one image
        found["batch_size"] = data.batch_size // factor
        found["accumulate"] *= factor
    # In this order: a kill between the two leaves a run that has not begun.
    for file in (folder / "checkpoints").glob("*.ckpt"):
        file.unlink()
    write_json(folder / MEMORY, found)
    log.warning(
        f"{error.where}: {error.what}; the fit begins again with batches of "
        f"{found['batch_size']}, {found['accumulate']} a step "
        f"(validation: {found['eval_batch_size']})"
    )
    return _with(plan, found)


def _sizes(plan: Plan) -> Plain:
    data = plan.specs.data
    assert data is not None
    return {
        "batch_size": data.batch_size,
        "accumulate": plan.specs.trainer.accumulate,
        "eval_batch_size": data.eval_batch_size,
    }


def _with(plan: Plan, sizes: Plain) -> Plan:
    specs = plan.specs
    assert specs.data is not None
    data = replace(
        specs.data, batch_size=sizes["batch_size"], eval_batch_size=sizes["eval_batch_size"]
    )
    trainer = replace(specs.trainer, accumulate=sizes["accumulate"])
    return replace(plan, specs=replace(specs, data=data, trainer=trainer))
