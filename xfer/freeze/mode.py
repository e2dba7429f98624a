"""A network in the state that its rows ask for: gradients on or off, frozen modules at rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xfer.freeze.policy import BatchNorm
from xfer.freeze.table import Row

if TYPE_CHECKING:
    from torch import nn


def apply(net: nn.Module, rows: Sequence[Row]) -> None:
    """Set ``requires_grad`` of every parameter from the rows of a phase."""
    trains = {row.name: not row.frozen for row in rows}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trains[name])


def hold(net: nn.Module, batch_norm: BatchNorm = "eval") -> None:
    """Put every wholly frozen module into inference mode; call after each ``net.train()``.

    A module without parameters (dropout) goes with the next one beside it that has some. With
    ``adapt`` and ``train`` every BatchNorm is left in training mode, and whether its own
    parameters train makes no difference to what is around it with ``train``.
    """
    norms = [module for _, module in batch_norms(net)] if batch_norm != "eval" else []
    aside = {id(p) for module in norms for p in module.parameters()}
    _hold(net, aside if batch_norm == "train" else set())
    for module in norms:
        # Not module.train(): some of timm carry dropout within.
        module.training = True


def _hold(net: nn.Module, aside: set[int]) -> None:
    parameters = _counted(net, aside)
    if not parameters:
        return
    if not any(p.requires_grad for p in parameters):
        net.eval()
        return
    before_frozen = False
    for child in reversed(list(net.children())):
        own = _counted(child, aside)
        if own:
            before_frozen = not any(p.requires_grad for p in own)
            _hold(child, aside)
        elif before_frozen:
            child.eval()


def _counted(module: nn.Module, aside: set[int]) -> list[nn.Parameter]:
    return [p for p in module.parameters() if id(p) not in aside]


def batch_norms(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of every BatchNorm, over one to three dimensions or synchronised."""
    from torch import nn

    for path, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield path, module
