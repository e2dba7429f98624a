"""Backbones of every family: those of conf/backbone, and further ones of timm and torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xfer.core.protocols import Backbone
from xfer.models.backbone import Timm, Torchvision

TIMM = [
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_100",
    "vit_small_patch14_dinov2.lvd142m",
]
TORCHVISION = [
    *("inception_v3", "densenet121", "vgg11", "mnasnet0_5", "regnet_y_400mf", "vit_b_16"),
    *("swin_t", "maxvit_t", "convnext_tiny", "mobilenet_v2", "efficientnet_b0"),
]


def shipped() -> dict[str, Backbone]:
    """Every option of conf/backbone that names its model."""
    found: dict[str, Backbone] = {}
    for file in sorted((Path(__file__).parents[2] / "conf" / "backbone").glob("*.yaml")):
        facts: dict[str, Any] = yaml.safe_load(file.read_text())
        kind = {"Timm": Timm, "Torchvision": Torchvision}[facts.pop("_target_").split(".")[-1]]
        if facts["name"] != "???":
            found[file.stem] = kind(**facts)
    return found


BACKBONES: dict[str, Backbone] = {
    **shipped(),
    **{name: Timm(name) for name in TIMM},
    **{f"torchvision {name}": Torchvision(name) for name in TORCHVISION},
}
