"""Any classification architecture of torchvision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from xfer.core.deferred_compiler import compiler_deferred
from xfer.core.types import Network
from xfer.data.preprocess import of_torchvision
from xfer.models.backbone import index

# Auxiliary classifiers serve training from scratch only. The published weights of these two
# expect inputs that the network itself rescales from ImageNet's mean and std.
_INCEPTION = {"aux_logits": False, "init_weights": False, "transform_input": True}
_ARGS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


@dataclass(frozen=True)
class Torchvision:
    """``name`` as torchvision's builder has it (``squeezenet1_0``); ``args`` go to the builder;
    ``image_size`` overrides the recipe's own pixels."""

    library: ClassVar[str] = "torchvision"

    name: str
    """the architecture, as the library spells it"""
    args: dict[str, Any] = field(default_factory=dict)
    """further arguments of the library's builder"""
    image_size: Annotated[int, Ge(8)] | None = None
    """pixels of the square input; ``null`` is the recipe's own size"""

    def __post_init__(self) -> None:
        index.check("torchvision", self.name)

    def build(self, classes: int | None = None) -> Network:
        """Random weights, torchvision's own names; no auxiliary classifiers."""
        with compiler_deferred():
            from torchvision import models

        if self.name not in models.list_models(module=models):
            raise index.missing("torchvision", self.name)
        classes = classes or 1000
        args = {**_ARGS.get(self.name, {}), **self.args}
        if self.image_size is not None and self.name.startswith("vit_"):
            args["image_size"] = self.image_size
        with index.building("torchvision", self.name, args):
            module = models.get_model(self.name, weights=None, num_classes=classes, **args)
        # The head is the last layer with so many outputs, in the order of the architecture.
        *_, head = (
            path
            for path, layer in module.named_modules()
            for width in ("out_features", "out_channels")
            if getattr(layer, width, None) == classes
        )
        recipe = models.get_model_weights(self.name).DEFAULT.transforms()
        dropped = _AUXILIARY if self.name in _ARGS else ()
        return Network(module, (head,), of_torchvision(recipe), dropped, args)
