"""Architectures by name, from timm and torchvision; each knows its head and its input recipe."""

from xfer.models.backbone.timm import Timm
from xfer.models.backbone.torchvision import Torchvision

__all__ = ["Timm", "Torchvision"]
