"""Whether a run's outputs will fit and may be written, asked before anything is paid for."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.errors import OutputError
from xfer.freeze import ever
from xfer.storage import output_errors

if TYPE_CHECKING:
    from xfer.plan import Plan

_BESIDE = 2_000_000
"""Bytes for tables, figures and the report."""


def check_folder(folder: Path) -> None:
    """Raise OutputError where ``folder`` cannot be made or written."""
    with output_errors(folder):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "no permission" if there.is_dir() else "a file, not a folder"
        fix = "choose run.dir=DIR where you may write"
        raise OutputError(there, f"cannot be written ({why})", fix, 15)


def check_space(plan: Plan, folder: Path) -> None:
    """Raise OutputError where the disk of ``folder`` has no room for the run's checkpoints."""
    needed = needed_bytes(plan) if "fit" in plan.specs.stages else 0
    with output_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            folder,
            f"{free:,} bytes are free, the run needs about {needed:,}",
            "free space or choose run.dir=DIR on another disk",
            14,
        )


def needed_bytes(plan: Plan) -> int:
    """The last checkpoint, the one before it and the next, with two moments each; the whole best
    one twice, while it is written; as many copies as are kept."""
    policy, trainer = plan.specs.checkpoint, plan.specs.trainer
    sizes = {name: 4 * math.prod(shape) for name, shape in plan.shapes.items()}
    moving = sum(sizes[name] for name, rates in ever(plan.phases).items() if any(rates))
    last = moving * (4 if trainer.averages else 3)
    copies = policy.keep if policy.every_n_epochs or policy.every_n_steps else 0
    return (3 + copies) * last + 2 * sum(sizes.values()) + _BESIDE
