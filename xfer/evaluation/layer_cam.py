"""Where in an image a network finds what speaks for a class: LayerCAM, and for transformers the
gradient times the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

LEAST = 4
"""Cells of a map along its shorter side, at least: a coarser one says nothing about a place."""
_PREFIXES = (0, 1, 2)
"""Tokens before those of the image: none, the class token, and that of a distilled network too."""

Grid = tuple[int, int]
Layout = Literal["channels first", "channels last", "tokens"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Site:
    """Where a network's maps are read: the output of the module at the dotted path ``module``.

    Its ``layout`` is (n, channels, rows, columns), (n, rows, columns, channels), or (n, ``before``
    + rows * columns, channels); ``grid`` is (rows, columns).
    """

    module: str
    layout: Layout
    grid: Grid
    before: int = 0

    @property
    def method(self) -> str:
        """What is computed there, in words."""
        rows, columns = self.grid
        name = "LayerCAM" if self.layout == "channels first" else "gradient times activation"
        return f"{name} at {self.module}, {rows} x {columns} cells"


def find_site(net: nn.Module, images: Tensor) -> Site | None:
    """The deepest output of ``net`` that is laid out over the image; ``None`` where none is.

    ``images`` are float32 (n, 3, height, width) on the network's device, and the first one is
    tried. Of a convolutional network it is the last feature map with at least :data:`LEAST` cells
    along each side, outside of any branch: the outermost module that ends at that resolution. Of a
    transformer it is the last output of an outermost module, or of a normalisation, from which the
    tokens of the image still reach the logits: in a network that reads its class token alone that
    is what the last block's attention reads.
    """
    image = images[:1]
    laid_out = _laid_out(net, image)
    if not laid_out:
        return None
    last = laid_out[-1]
    if last.layout == "channels first":
        same = [s for s in laid_out if s.layout == last.layout and s.grid == last.grid]
        depth = min(site.module.count(".") for site in same)
        return [site for site in same if site.module.count(".") == depth][-1]
    of_tokens = [site for site in laid_out if site.layout != "channels first"]
    least = min(site.module.count(".") for site in of_tokens)
    for site in reversed(of_tokens):
        norm = "norm" in type(net.get_submodule(site.module)).__name__.lower()
        whole = norm or site.module.count(".") == least
        if whole and _parts(net, site, image, [0])[1].any():
            return site
    return None


def heat_maps(net: nn.Module, site: Site, images: Tensor, classes: Sequence[int]) -> Floats:
    """How much each cell of each image speaks for a class, float32 (n, rows, columns), 0 or more.

    ``images`` are float32 (n, 3, height, width) on the network's device, ``classes`` one of its
    classes an image; the network is in evaluation mode. On a feature map it is LayerCAM (Jiang,
    Zhang, Hou, Cheng and Wei, *LayerCAM: exploring hierarchical class activation maps for
    localization*, IEEE Transactions on Image Processing, 2021): the activations, each times the
    positive part of the logit's gradient there, summed over the channels, and of that the positive
    part. Tokens of a transformer have either sign, so there the gradient is taken as it is: the
    sum is the first-order share of a token in the logit. Raises RuntimeError where a network has
    no gradient.
    """
    activations, gradients = _parts(net, site, images, classes)
    if site.layout == "channels first":
        gradients = gradients.clamp(min=0)
    cells = (activations * gradients).sum(dim=-1).clamp(min=0)
    maps: Floats = cells.view(len(images), *site.grid).cpu().numpy()
    return maps


def _laid_out(net: nn.Module, image: Tensor) -> list[Site]:
    """Every output of a module that is laid out over ``image``, in the order of the computation."""
    found: list[Site] = []
    size = (image.shape[-2], image.shape[-1])
    known = getattr(net, "num_prefix_tokens", None)
    prefixes = _PREFIXES if known is None else (int(known),)

    def look(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and len(output) == 1:
                found.extend(_sites(name, tuple(output.shape), size, prefixes))

        return note

    hooks = [module.register_forward_hook(look(name)) for name, module in _inside(net)]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _inside(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose outputs may be laid out over the image: not those inside of an attention,
    of whose matrices the sides are tokens, nor one that turns tokens into the form of a map."""
    for name, module in net.named_modules():
        inner = any("att" in part for part in name.split(".")[:-1])
        if name and not inner and type(module).__name__ != "Permute":
            yield name, module


def _sites(name: str, shape: Sequence[int], size: Grid, prefixes: Sequence[int]) -> Iterator[Site]:
    """How an output of this shape may be laid out over an image of this size; at most one way."""
    if len(shape) == 4 and _covers((shape[2], shape[3]), size):
        yield Site(name, "channels first", (shape[2], shape[3]))
    elif len(shape) == 4 and _covers((shape[1], shape[2]), size):
        yield Site(name, "channels last", (shape[1], shape[2]))
    elif len(shape) == 3:
        for before in prefixes:
            rows = round(math.sqrt(max(0, shape[1] - before) * size[0] / size[1]))
            columns = (shape[1] - before) // rows if rows else 0
            if rows * columns == shape[1] - before and _covers((rows, columns), size):
                yield Site(name, "tokens", (rows, columns), before)
                return


def _covers(grid: Grid, size: Grid) -> bool:
    """Whether the cells of ``grid`` are about as wide as high on an image of ``size``."""
    (rows, columns), (height, width) = grid, size
    fits = min(grid) >= LEAST and rows <= height and columns <= width
    return fits and abs(rows * width - columns * height) <= max(size)


def _parts(
    net: nn.Module, site: Site, images: Tensor, classes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Activations at the site and the gradients of the logits of ``classes`` there, each float32
    (n, cells, channels)."""
    with torch.no_grad(), _leaf_at(net.get_submodule(site.module)) as leaves:
        logits = net(images)
        if not logits.requires_grad:
            raise RuntimeError("the answers have no gradient, as votes that a knn head counts")
        rows = torch.arange(len(images), device=logits.device)
        chosen = logits[rows, torch.as_tensor(list(classes), device=logits.device)].sum()
        (gradient,) = torch.autograd.grad(chosen, leaves[-1])
    return _by_cell(leaves[-1].detach(), site), _by_cell(gradient, site)


@contextmanager
def _leaf_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of ``module``, each a leaf from which gradients are computed: what comes before
    needs neither their memory nor their time."""
    leaves: list[Tensor] = []

    def begin(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        torch.set_grad_enabled(True)  # to the end of the caller's no_grad
        return leaf.clone()  # whatever follows may work in place

    hook = module.register_forward_hook(begin)
    try:
        yield leaves
    finally:
        hook.remove()


def _by_cell(values: Tensor, site: Site) -> Tensor:
    if site.layout == "channels first":
        return values.flatten(2).transpose(1, 2).float()
    if site.layout == "channels last":
        return values.flatten(1, 2).float()
    return values[:, site.before :].float()
