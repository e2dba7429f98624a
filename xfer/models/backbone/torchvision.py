"""Any classification architecture of torchvision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from xfer.core.errors import ConfigError
from xfer.core.types import Network
from xfer.data.preprocess import of_torchvision
from xfer.models.backbone import index
from xfer.models.deferred_compiler import compiler_deferred

if TYPE_CHECKING:
    from torch import nn

# Auxiliary classifiers serve training from scratch only. The published weights of these two
# expect inputs that the network itself rescales from ImageNet's mean and std.
_INCEPTION: dict[str, Any] = {
    "aux_logits": False,
    "init_weights": False,
    "transform_input": True,
}
_ARGS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


@dataclass(frozen=True)
class Torchvision:
    """``name`` as torchvision's builder has it (``squeezenet1_0``); ``args`` go to the builder;
    ``image_size`` overrides the recipe's own pixels."""

    library: ClassVar[str] = "torchvision"

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    image_size: Annotated[int, Ge(8)] | None = None

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
        try:
            module = models.get_model(self.name, weights=None, num_classes=classes, **args)
        except Exception as error:  # an argument of the wrong type fails wherever it is used
            if not args:
                raise
            raise ConfigError(
                "backbone.args",
                f"torchvision cannot build '{self.name}' ({error})",
                "mend or drop args",
                11,
            ) from error
        recipe = models.get_model_weights(self.name).DEFAULT.transforms()
        dropped = _AUXILIARY if self.name in _ARGS else ()
        return Network(module, (_head(module, classes),), of_torchvision(recipe), dropped, args)


def _head(module: nn.Module, classes: int) -> str:
    """The last layer with ``classes`` outputs, in the order of the architecture."""
    found = [
        name
        for name, layer in module.named_modules()
        if classes in (getattr(layer, "out_features", None), getattr(layer, "out_channels", None))
    ]
    return str(found[-1])
