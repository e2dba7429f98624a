"""The mean of several networks' weights, and the BatchNorm statistics that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xfer.core.types import StateDict

_STATISTICS = ("running_mean", "running_var")


class Averages:
    """Means of the tensors that ``load`` gives by the number of a job: floating point ones in
    float64, then as they were; others are those of the first job."""

    def __init__(self, load: Callable[[int], StateDict]) -> None:
        self._load = load
        self._known: tuple[int, ...] = ()
        self._sums: StateDict = {}
        self._first: StateDict = {}
        self._moved: set[str] = set()

    def of(self, jobs: Sequence[int]) -> tuple[StateDict, frozenset[str]]:
        """The mean over ``jobs``, and the names of BatchNorm layers whose statistics were not the
        same in all of them. Each call that adds a job to those of the one before reads that alone.
        """
        before = tuple(jobs[:-1])
        if not self._known or self._known != before[: len(self._known)]:
            self._known, self._sums, self._moved = (), {}, set()
        # All but the last: another one may be tried in its place.
        for job in jobs[len(self._known) : -1]:
            self._sums = self._with(job, self._moved)
            self._known = (*self._known, job)
        moved = set(self._moved)
        sums = self._with(jobs[-1], moved)
        mean = {
            name: (total / len(jobs)).to(self._first[name].dtype)
            if total.is_floating_point()
            else total
            for name, total in sums.items()
        }
        return mean, frozenset(moved)

    def _with(self, job: int, moved: set[str]) -> StateDict:
        """The sums with those of one job more; BatchNorms that it moves are added to ``moved``."""
        state = self._load(job)
        if not self._sums:
            self._first = state
            return {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
        for name, tensor in state.items():
            layer, _, kind = name.rpartition(".")
            if kind in _STATISTICS and not torch.equal(tensor, self._first[name]):
                moved.add(layer)
        return {n: t + state[n] if t.is_floating_point() else t for n, t in self._sums.items()}


def set_statistics(net: nn.Module, layers: Iterable[str], batches: Iterable[Tensor]) -> None:
    """Set the running statistics of the BatchNorm ``layers`` of ``net`` to those of ``batches``.

    Each is the mean over the batches, as :func:`torch.optim.swa_utils.update_bn` has it (P.
    Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018);
    but every other layer stays in evaluation mode: dropout is off, and statistics that no member
    has moved are those that all were trained with. A batch of one image is passed over.
    """
    named = [net.get_submodule(name) for name in layers]
    norms = [norm for norm in named if isinstance(norm, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                if len(batch) > 1:  # of one value a channel there is no variance
                    net(batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        net.eval()
