"""Out of memory: the batch size that would fit, and training again in smaller batches.

With ``trainer.on_oom=halve`` the fit begins again from its first step with half the batch and
twice ``trainer.accumulate``, and so ends bit for bit as a run that was configured with these. What
it came to is in the run folder, where a resumed run finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import TypedDict

from xfer.core.errors import OutOfMemory, ResumeError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.read_back import read_checked
from xfer.core.run_folder import checkpoints
from xfer.core.signals import stop
from xfer.core.types import Plain
from xfer.plan.resume import START_ANEW

if TYPE_CHECKING:
    from xfer.core.protocols import Data
    from xfer.plan.plan import Plan
    from xfer.training.module import Classifier


def out_of_memory(work: Callable[[], object]) -> bool:
    """Whether ``work`` ran out of memory. Raises Stopped where a signal caused its failure."""
    from xfer.core.memory import ran_out

    try:
        work()
    except (MemoryError, RuntimeError) as error:
        # A signal to the whole group also ends the data workers, which the run cannot do without.
        stop.obey()
        if not ran_out(error):
            raise
        # Nothing may hold the error: its frames hold the tensors that filled the memory.
        return True
    return False


def too_large_error(module: Classifier, plan: Plan, data: Data) -> OutOfMemory:
    """The error that names the batch size which fits, tried with blank images."""
    import torch

    from xfer.core.device import device_of
    from xfer.core.memory import too_large

    training, device = module.training, device_of(plan.specs.trainer.accelerator)
    module.to(device).zero_grad(set_to_none=True)
    # As much as an optimizer of two moments takes.
    moments = [torch.empty_like(p) for _ in range(2) for p in module.parameters()]

    def step(size: int) -> None:
        images = torch.zeros(size, 3, *plan.card.input.size, device=device)
        answers = (size, len(plan.card.classes))
        shape = answers if plan.specs.task.several else (size,)
        labels = torch.zeros(shape, dtype=torch.int64, device=device)
        taught = [torch.zeros(answers, device=device)] if plan.teacher else []
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, torch.bfloat16, plan.specs.trainer.precision != "32-true"),
        ):
            loss = module.loss_of((images, labels, *taught))
        if training:
            loss.backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)

    key = "data.batch_size" if training else "data.eval_batch_size"
    error = too_large(key, data.batch_size if training else data.eval_batch_size, step)
    moments.clear()
    return error


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
    sizes = batch_sizes(folder)
    if sizes is None or plan.specs.data is None:
        return plan
    before = _sizes(plan, plan.specs.data)
    images = before["batch_size"] * before["accumulate"]
    same = sizes["batch_size"] * sizes["accumulate"] == images
    if not same or sizes["eval_batch_size"] > before["eval_batch_size"]:
        what = f"is of batches of another run than this one, of {images} images a step"
        raise ResumeError(folder / MEMORY, what, START_ANEW, 27)
    return _with(plan, sizes, plan.specs.data)


def batch_sizes(folder: Path) -> Plain | None:
    """``batch_size``, ``accumulate``, ``eval_batch_size`` and what was ``asked`` for; ``None``
    where memory sufficed."""
    facts: Plain | None = read_checked(folder / MEMORY, _Halved, START_ANEW, 27)
    return facts


def smaller(plan: Plan, folder: Path, error: OutOfMemory) -> Plan:
    """``plan`` with half the batch that ``error`` is about, and an empty folder of checkpoints.

    A batch that is odd is divided by its smallest factor, so that a step has as many images as
    before. Raises ``error`` where that is not asked for or nothing smaller would train.
    """
    data = plan.specs.data
    if plan.specs.trainer.on_oom != "halve" or data is None or error.number != _FITS:
        raise error
    before = _sizes(plan, data)
    sizes = {**before, "asked": (batch_sizes(folder) or {}).get("asked", before)}
    if error.where == "data.eval_batch_size":
        sizes["eval_batch_size"] = data.eval_batch_size // 2
    else:
        factor = next(n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0)
        if data.batch_size == factor:
            raise error  # batch normalisation cannot train on one image
        sizes["batch_size"] = data.batch_size // factor
        sizes["accumulate"] *= factor
    # In this order: a kill between the two leaves a run that has not begun.
    for file in checkpoints(folder).glob("*.ckpt"):
        file.unlink()
    write_json(folder / MEMORY, sizes)
    log.warning(
        f"{error.where}: {error.what}; the fit begins again with batches of "
        f"{sizes['batch_size']}, {sizes['accumulate']} a step "
        f"(validation: {sizes['eval_batch_size']})"
    )
    return _with(plan, sizes, data)


def _sizes(plan: Plan, data: Data) -> Plain:
    return {
        "batch_size": data.batch_size,
        "accumulate": plan.specs.trainer.accumulate,
        "eval_batch_size": data.eval_batch_size,
    }


def _with(plan: Plan, sizes: Plain, data: Data) -> Plan:
    batches = {key: sizes[key] for key in ("batch_size", "eval_batch_size")}
    trainer = replace(plan.specs.trainer, accumulate=sizes["accumulate"])
    specs = replace(plan.specs, data=replace(data, **batches), trainer=trainer)
    return replace(plan, specs=specs)
