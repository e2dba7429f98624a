"""How training runs: epochs, device, precision. Becomes a Lightning Trainer in ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Trainer:
    """``devices``: how many of ``accelerator``'s. ``accumulate``: batches an optimizer step.
    ``clip_norm``: largest gradient norm, 0 is off. ``ema_decay``: of the moving average of the
    weights that is validated and kept, 0 is off. ``patience``: epochs without a better value of
    the monitored metric before the run stops, 0 is off. ``compile``: the network through
    torch.compile. ``channels_last``: the memory layout that convolutions like. ``deterministic``:
    only reproducible kernels (needed for bit-identical runs on a GPU). ``on_oom``: what to do when
    memory runs out, ``halve`` the batch and double ``accumulate`` and begin the fit again."""

    max_epochs: Annotated[int, Gt(0)] = 10
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Annotated[int, Gt(0)] = 1
    precision: Precision = "32-true"
    accumulate: Annotated[int, Gt(0)] = 1
    clip_norm: Annotated[float, Ge(0)] = 0.0
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    patience: Annotated[int, Ge(0)] = 0
    compile: bool = False
    channels_last: bool = True
    deterministic: bool = False
    on_oom: Literal["error", "halve"] = "error"
