"""NaN and Inf, noticed in the step that makes them, before a file could hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from xfer.core.checksum import whole
from xfer.core.errors import DivergedError

if TYPE_CHECKING:
    from xfer.data.sampler import EpochSampler

MakeError = Callable[[str], DivergedError]
"""Makes the error about what is NaN or Inf."""


class NanGuard:
    """Looks at losses and gradients.

    On a GPU a value is looked at a step later, when it has long been computed: waiting for each
    would hold the GPU back. :meth:`check` looks at what is left, and comes before every file.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[torch.Tensor, str, MakeError]] = []

    def note(self, value: torch.Tensor, what: str, error: MakeError) -> None:
        """Have a scalar looked at. On the CPU raises DivergedError at once."""
        self._pending.append((value.detach(), what, error))
        if value.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise DivergedError for the first value that is NaN or Inf."""
        pending, self._pending = self._pending, []
        for value, what, error in pending:
            if not torch.isfinite(value):
                raise error(what)


def norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all of them together: NaN or Inf where one of their numbers is."""
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    # Those that are divided among ranks have one norm, for which every rank must ask.
    divided = [t for t in floats if hasattr(t, "full_tensor")]
    if divided:
        plain = [t for t in floats if not hasattr(t, "full_tensor")]
        floats = [whole(torch.nn.utils.get_total_norm(divided)), *plain]
    return torch.nn.utils.get_total_norm(floats) if floats else torch.zeros(())


def place(order: EpochSampler, batch: int, names: Sequence[str]) -> str:
    """Batch ``batch`` (from 0) of an epoch, and its first images, for a message."""
    groups = order.groups()
    shown = [names[index] for _, index, *_ in groups[batch][:3]]
    more = f" and {len(groups[batch]) - 3} more" if len(groups[batch]) > 3 else ""
    return (
        f"batch {batch + 1} of {len(groups)} of epoch {order.epoch + 1} ({', '.join(shown)}{more})"
    )
