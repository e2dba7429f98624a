"""Smaller batches and fewer processes where little memory is left: the kernel kills without a word.

Only what changes no training is chosen here: how many images a frozen network answers at once, how
many an exported file is compared on at once, and who decodes. What was typed stays as it is, with
a remark where it takes more than there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xfer.plan.auto import Decision, default_of

if TYPE_CHECKING:
    from xfer.config.specs import Specs

_PIXEL = 240
"""Bytes a pixel of the images that are answered together, at the widest layer: SqueezeNet's."""
_WORKER, _REST = 220_000_000, 400_000_000
"""Bytes of a process that decodes, and of what a run takes after its plan beside all of this: the
trace of an export and the figures of a report."""
_SMALLEST = 4


def within_memory(specs: Specs, size: tuple[int, int], free: float) -> list[Decision]:
    """What fits into ``free`` bytes of memory, where the usual values of ``specs`` do not, for
    images of ``size``. Several processes on one machine are left as they are."""
    why = f"{_megabytes(free)} of memory are left, and the run would take about "
    why += _megabytes(_needed(specs, size, _values(specs)))
    lesser = _lesser(specs, size, free) if specs.trainer.ranks == 1 else {}
    return [Decision(key, value, why) for key, value in lesser.items() if _open(specs, key)]


def memory_remarks(specs: Specs, size: tuple[int, int], free: float) -> list[str]:
    """That what was typed, or what trains, may take more than the ``free`` bytes of memory that
    were left when the plan was made."""
    needed = _needed(specs, size, _values(specs))
    if needed <= free:
        return []
    typed = " ".join(f"{key}={value}" for key, value in _lesser(specs, size, free).items())
    what = f"the run takes about {_megabytes(needed)} of memory, {_megabytes(free)} are left, and "
    what += "the system may kill it without a word"
    return [f"{what}: type {typed}" if typed else f"{what}: give it more, or a smaller image size"]


def _lesser(specs: Specs, size: tuple[int, int], free: float) -> dict[str, int]:
    """The values that fit into ``free`` bytes, of the keys whose usual values do not; the smallest
    where none fits."""
    asked = _values(specs)
    if _needed(specs, size, asked) <= free:
        return {}
    values = {**asked, "data.workers": 0}
    most = 1 << (max(values.values()) - 1).bit_length()
    while _needed(specs, size, values) > free and most > _SMALLEST:
        most //= 2
        values = {key: min(value, most) for key, value in values.items()}
    if compared := asked.get("export.images"):  # batches of 1 and 2 are compared on so many
        values["export.images"] = max(values["export.images"], min(16, compared))
    return {key: value for key, value in values.items() if value != asked[key]}


def _values(specs: Specs) -> dict[str, int]:
    """What each key that decides is now."""
    from xfer.core.device import device_of

    data, every = specs.data, not specs.stages
    if data is None:
        return {}
    values = {"data.workers": data.workers}
    if device_of(specs.trainer.accelerator).type != "cpu":
        return values
    values["data.eval_batch_size"] = data.eval_batch_size
    if specs.optim.solves and specs.features.use != "never":
        together: int | None = getattr(specs.features, "batch_size", None)
        values["features.batch_size"] = together or data.batch_size
    if every or "export" in specs.stages:
        values["export.images"] = specs.export.gate.images
    return values


def _needed(specs: Specs, size: tuple[int, int], values: Mapping[str, int]) -> int:
    """Bytes that the run takes at most beside what its plan has taken."""
    if not values:
        return 0
    together = max((v for key, v in values.items() if key != "data.workers"), default=0)
    images = together * _PIXEL * math.prod(size)
    return specs.trainer.devices * (_REST + images + values["data.workers"] * _WORKER)


def _open(specs: Specs, key: str) -> bool:
    """Whether a key has its usual value, and was not typed. What is answered together moves the
    last digits, by which the best epoch is chosen: where steps train, a run that is resumed must
    have what it began with."""
    by_steps = not specs.optim.solves and (specs.trains or not specs.stages)
    if by_steps and key == "data.eval_batch_size":
        return False
    group, _, name = key.partition(".")
    spec = specs.export.gate if group == "export" else getattr(specs, group)
    return key not in specs.explicit and getattr(spec, name) == default_of(spec, name)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
