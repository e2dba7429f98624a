"""Any architecture of timm (pytorch-image-models)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from xfer.core.deferred_compiler import compiler_deferred
from xfer.core.errors import ConfigError
from xfer.core.types import Network
from xfer.data.preprocess import of_timm
from xfer.models.backbone import index


@dataclass(frozen=True)
class Timm:
    """``name`` as timm has it (``resnet18``, or with a weight tag ``resnet18.a1_in1k``);
    ``args`` go to the architecture; ``image_size`` overrides the recipe's own pixels."""

    library: ClassVar[str] = "timm"

    name: str
    """the architecture, as the library spells it"""
    args: dict[str, Any] = field(default_factory=dict)
    """further arguments of the library's builder"""
    image_size: Annotated[int, Ge(8)] | None = None
    """pixels of the square input; ``null`` is the recipe's own size"""

    def __post_init__(self) -> None:
        index.check("timm", self.name)

    def build(self, classes: int | None = None) -> Network:
        """Random weights, timm's own names; models without a classifier get one."""
        with compiler_deferred():
            import timm

        try:
            config = timm.get_pretrained_cfg(self.name, allow_unregistered=False).to_dict()
        except RuntimeError as error:
            raise index.missing("timm", self.name) from error
        args = dict(self.args)
        if self.image_size is not None and config.get("fixed_input_size"):
            args["img_size"] = self.image_size
        outputs = classes or config["num_classes"] or 1000
        with index.building("timm", self.name, args):
            module = timm.create_model(self.name, pretrained=False, num_classes=outputs, **args)
        names = module.pretrained_cfg["classifier"]
        heads = (names,) if isinstance(names, str) else tuple(names or ())
        if not heads or not {path for path, _ in module.named_modules()}.issuperset(heads):
            what = "timm builds it without a classifier that a head could replace"
            raise ConfigError("backbone.name", what, "choose another backbone", 13)
        return Network(module, heads, of_timm(config), args=args)
