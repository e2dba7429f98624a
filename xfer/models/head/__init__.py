"""What replaces the old classifier, swapped in at the architecture's own path.

Tensor names stay those of timm or torchvision, so freeze rules, checkpoints and exports speak
one language. The last layer of every new head starts from zero, as in BiT (Kolesnikov et al.,
2020): all classes are equally likely at first, and no gradient of a random head disturbs the
backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from xfer.core.errors import ConfigError
from xfer.core.protocols import Head
from xfer.core.types import Network

if TYPE_CHECKING:
    from torch import nn

Probability = Annotated[float, Ge(0), Lt(1)]
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Linear:
    """One layer of the old one's kind: Linear, or a 1x1 convolution where the old one was one."""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Names ``weight``, ``bias``."""
        from xfer.models.head import layers

        return layers.zeroed(layers.like(old, layers.width(old), classes))


@dataclass(frozen=True)
class Dropout:
    """Dropout with probability ``p``, then one layer; tensor names are those of a linear head."""

    p: Probability = 0.5
    """probability that an input of the layer is dropped in training"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Names ``weight``, ``bias``."""
        from xfer.models.head import layers

        return layers.zeroed(layers.with_dropout(old, classes, self.p))


@dataclass(frozen=True)
class Mlp:
    """One hidden layer of ``hidden`` units, ReLU and dropout, then the classifier."""

    hidden: Annotated[int, Gt(0)] = 256
    """units of the hidden layer"""
    dropout: Probability = 0.2
    """probability that a hidden unit is dropped in training"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Names ``0.*`` (hidden) and ``3.*`` (classifier)."""
        from torch import nn

        from xfer.models.head import layers

        hidden = layers.like(old, layers.width(old), self.hidden)
        output = layers.zeroed(layers.like(hidden, self.hidden, classes))
        return nn.Sequential(hidden, nn.ReLU(), nn.Dropout(self.dropout), output)


@dataclass(frozen=True)
class Pooled:
    """Mean over all positions, flatten, one dense layer.

    Where the architecture pools before its classifier (GoogLeNet, ResNet, Swin, ViT) its own
    pooling is the mean; where the classifier is a convolution (SqueezeNet) the head pools.
    """

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Names ``dense.weight``, ``dense.bias``."""
        from xfer.models.head import layers

        return layers.PooledLinear(layers.width(old), classes, spatial=layers.is_conv(old))


Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Knn:
    """The ``k`` nearest training images vote, one vote each; nothing is trained.

    The head holds the features of all training images, so that it grows with them. Its
    probabilities are shares of the votes, with one vote more that all classes share. With several
    labels an image those vote on each that know it, and the one vote more says yes to the share of
    the training images that have the label.
    """

    k: Annotated[int, Gt(0)] = 5
    """training images that vote"""
    distance: Distance = "euclidean"
    """between features; ``cosine`` is that of features of length 1"""
    images: Annotated[int, Gt(0), Le(10_000_000)] | None = None
    """training images that the head holds; the plan sets it"""
    multilabel: bool = False
    """whether each class is a yes or no of its own; the plan sets it"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Buffers ``features``, ``labels``; empty until they are filled."""
        from xfer.models.head import filled_layers, layers

        size = filled_layers.Sizes(layers.width(old), classes, layers.is_conv(old))
        kind = filled_layers.NearestLabels if self.multilabel else filled_layers.NearestImages
        return kind(size, self.images or 1, self.k, self.distance)


@dataclass(frozen=True)
class Prototype:
    """The class whose mean feature is nearest; nothing is trained.

    Its logits are squared distances times one scale, by which the probabilities of training images
    are best, each left out of its own mean. With several labels an image each has a mean of the
    images with it, one of those without it, and a scale.
    """

    distance: Distance = "euclidean"
    """between features; ``cosine`` is that of features of length 1"""
    multilabel: bool = False
    """whether each class is a yes or no of its own; the plan sets it"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Buffers ``means``, ``scale``; empty until they are filled."""
        from xfer.models.head import filled_layers, layers

        size = filled_layers.Sizes(layers.width(old), classes, layers.is_conv(old))
        if self.multilabel:
            return filled_layers.NearestLabelMeans(size, self.distance)
        return filled_layers.NearestMean(size, self.distance)


@dataclass(frozen=True)
class Keep:
    """The source's own head, loaded strictly: nothing is replaced.

    ``aliases``: the source's class name of a data folder that is called otherwise.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    """the source's class of a data folder that is called otherwise; a folder whose name is not
    ASCII goes into a file, ``head: {aliases: {"Löwe": lion}}``"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """``old`` itself."""
        return old


@dataclass(frozen=True)
class Remap:
    """One layer, whose rows are taken from the source's head by class name.

    ``aliases``: the source's class name of a class that is called otherwise, or several, whose
    rows are averaged. Classes that the source does not have start from zero. Where all are known
    the network answers before any training.
    """

    aliases: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    """the source's class that a class starts from; of several the rows are averaged"""

    def build(self, old: nn.Module, classes: int) -> nn.Module:
        """Names ``weight``, ``bias``; zero until :func:`carry` fills the rows."""
        from xfer.models.head import layers

        return layers.zeroed(layers.like(old, layers.width(old), classes))

    def several(self) -> dict[str, tuple[str, ...]]:
        """The aliases, each a tuple."""
        return {k: (v,) if isinstance(v, str) else v for k, v in self.aliases.items()}


def carry(old: nn.Module, new: nn.Module, rows: Rows) -> None:
    """Give each class of ``new`` the mean of its ``rows`` of ``old``; none leaves it at zero."""
    import torch

    with torch.no_grad():
        for target, source in zip(new.parameters(), old.parameters(), strict=True):
            for i, members in enumerate(rows):
                if members:
                    target[i] = source[list(members)].mean(dim=0)


def swap(network: Network, head: Head, classes: int, rows: Rows = ()) -> None:
    """Replace the classifier layers of ``network`` in place; ``rows`` are for :func:`carry`.

    An activation right after the layer (torchvision's SqueezeNet has a ReLU there) is taken
    out: it would cut negative logits to a dead zero. ``keep`` changes nothing.
    """
    if isinstance(head, Keep):
        return
    from torch import nn

    for path in network.heads:
        parent, _, name = path.rpartition(".")
        owner = network.module.get_submodule(parent)
        old = owner.get_submodule(name)
        if not isinstance(old, nn.Linear | nn.Conv2d):
            what = f"its classifier '{path}' is a {type(old).__name__}, which no head can replace"
            raise ConfigError("backbone.name", what, "choose another backbone, or head=keep", 20)
        new = head.build(old, classes)
        if rows:
            carry(old, new, rows)
        setattr(owner, name, new)
        names = [*owner._modules, ""]
        following = names[names.index(name) + 1]
        if isinstance(owner, nn.Sequential) and isinstance(owner._modules.get(following), nn.ReLU):
            setattr(owner, following, nn.Identity())
