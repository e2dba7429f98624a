"""A network in the state that its rows ask for: gradients on or off, frozen modules at rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xfer.freeze.policy import BatchNorm
from xfer.freeze.rows import Row

if TYPE_CHECKING:
    from torch import nn


def apply(net: nn.Module, rows: Sequence[Row]) -> None:
    """Set ``requires_grad`` of every parameter from the rows of a phase."""
    trains = {row.name: not row.frozen for row in rows}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trains[name])


def hold(net: nn.Module, batch_norm: BatchNorm = "eval") -> None:
    """Put every wholly frozen module into inference mode; call after each ``net.train()``.

    A module without parameters (dropout) goes with the next one beside it that has some; for one
    that has buffers see :func:`resting`. With ``adapt`` and ``train`` every BatchNorm is left in
    training mode, and whether its own parameters train makes no difference to what is around it
    with ``train``.
    """
    norms = [module for _, module in batch_norms(net)] if batch_norm != "eval" else []
    aside = {id(p) for module in norms for p in module.parameters()}
    _hold(net, aside if batch_norm == "train" else set())
    for _, module in resting(net, {id(p) for p in net.parameters() if not p.requires_grad}):
        module.eval()
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


def resting(net: nn.Module, frozen: Collection[int]) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of all that has buffers and no parameters, such as a BatchNorm with
    ``affine=False``, unless what is beside it on both sides trains whole. ``frozen`` are the
    ``id`` of the parameters that do not train.

    No row speaks of such a module, so that its statistics would move unseen.
    """
    anything = bool(frozen)
    return _resting(net, "", frozen, (anything, anything))


def _resting(
    module: nn.Module, path: str, frozen: Collection[int], beside: tuple[bool, bool]
) -> Iterator[tuple[str, nn.Module]]:
    """``beside``: whether something before and behind ``module`` is frozen."""
    children = list(module.named_children())
    found = [_holds_frozen(child, frozen) for _, child in children]
    for i, (name, child) in enumerate(children):
        before = next((f for f in reversed(found[:i]) if f is not None), beside[0])
        behind = next((f for f in found[i + 1 :] if f is not None), beside[1])
        own = f"{path}.{name}" if path else name
        if found[i] is not None:
            yield from _resting(child, own, frozen, (before, behind))
        elif (before or behind) and any(True for _ in child.buffers()):
            yield own, child


def _holds_frozen(module: nn.Module, frozen: Collection[int]) -> bool | None:
    """``None`` for a module without parameters."""
    parameters = list(module.parameters())
    return any(id(p) in frozen for p in parameters) if parameters else None


def batch_norms(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of every BatchNorm, over one to three dimensions or synchronised."""
    from torch import nn

    for path, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield path, module


def lone_norm(
    net: nn.Module, phases: Sequence[Sequence[Row]], keep: BatchNorm, size: tuple[int, int]
) -> str | None:
    """The first BatchNorm that trains in one of ``phases`` (their rows) and gets one value a
    channel from one image of ``size`` (height, width), of which torch takes no deviation; ``None``
    where there is none. ``net`` is used up."""
    import torch

    found: list[str] = []

    def look(name: str, module: nn.Module, given: Any) -> None:
        if module.training and given[0].numel() == given[0].shape[1]:
            found.append(name)
            module.eval()  # so that it does not raise

    for name, module in batch_norms(net):
        module.register_forward_pre_hook(lambda m, given, name=name: look(name, m, given))
    for rows in phases:
        apply(net, rows)
        hold(net.train(), keep)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net(torch.zeros(1, 3, *size))
    return found[0] if found else None
