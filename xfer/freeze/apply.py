"""A network in the state that its rows ask for: gradients on or off, frozen modules at rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xfer.freeze.rows import BatchNorm, ParameterRow

if TYPE_CHECKING:
    from torch import nn


def apply(net: nn.Module, rows: Sequence[ParameterRow]) -> None:
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
    ignored = {id(p) for module in norms for p in module.parameters()}
    _hold(net, ignored if batch_norm == "train" else set())
    for _, module in resting(net, {id(p) for p in net.parameters() if not p.requires_grad}):
        module.eval()
    for module in norms:
        # Not module.train(): some of timm carry dropout within.
        module.training = True


def _hold(net: nn.Module, ignored: set[int]) -> bool | None:
    """Whether ``net`` is wholly frozen; ``None`` without a parameter that counts."""
    gradients = [p.requires_grad for p in net.parameters() if id(p) not in ignored]
    if not gradients:
        return None
    if not any(gradients):
        net.eval()
        return True
    next_is_frozen = False
    for child in reversed(list(net.children())):
        frozen = _hold(child, ignored)
        if frozen is not None:
            next_is_frozen = frozen
        elif next_is_frozen:
            child.eval()
    return False


def resting(net: nn.Module, frozen: Collection[int]) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of all that has buffers and no parameters, such as a BatchNorm with
    ``affine=False``, unless what is beside it on both sides trains whole. ``frozen`` are the
    ``id`` of the parameters that do not train.

    No row speaks of such a module, so that its statistics would move unseen.
    """
    return _resting(net, "", frozen, (bool(frozen), bool(frozen)))


def _resting(
    module: nn.Module, prefix: str, frozen: Collection[int], beside: tuple[bool, bool]
) -> Iterator[tuple[str, nn.Module]]:
    """``beside``: whether something before and after ``module`` is frozen."""
    children = [(name, child, list(child.parameters())) for name, child in module.named_children()]
    # None for a child without parameters.
    states = [any(id(p) in frozen for p in ps) if ps else None for _, _, ps in children]
    for i, (name, child, parameters) in enumerate(children):
        before = next((s for s in reversed(states[:i]) if s is not None), beside[0])
        after = next((s for s in states[i + 1 :] if s is not None), beside[1])
        if parameters:
            yield from _resting(child, f"{prefix}{name}.", frozen, (before, after))
        elif (before or after) and any(True for _ in child.buffers()):
            yield prefix + name, child


def batch_norms(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of every BatchNorm, over one to three dimensions or synchronised."""
    from torch import nn

    for path, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield path, module


def lone_norm(
    net: nn.Module,
    phases: Sequence[Sequence[ParameterRow]],
    batch_norm: BatchNorm,
    size: tuple[int, int],
) -> str | None:
    """The first BatchNorm that trains in one of ``phases`` (their rows) and gets one value a
    channel from one image of ``size`` (height, width), of which torch takes no deviation; ``None``
    where there is none. ``net`` is used up."""
    import torch

    lone: list[str] = []

    def look(name: str, module: nn.Module, given: Any) -> None:
        if module.training and given[0].numel() == given[0].shape[1]:
            lone.append(name)
            module.eval()  # so that it does not raise

    for name, module in batch_norms(net):
        module.register_forward_pre_hook(lambda m, given, name=name: look(name, m, given))
    for rows in phases:
        apply(net, rows)
        hold(net.train(), batch_norm)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net(torch.zeros(1, 3, *size))
    return lone[0] if lone else None
