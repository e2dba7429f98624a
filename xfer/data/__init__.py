"""Where images and their classes come from. Classes are sorted as plain strings, as torchvision
sorts folders: ``10`` comes before ``2``."""

from xfer.data.digits import Digits
from xfer.data.folder import Canidae, Folder
from xfer.data.manifest import Manifest
from xfer.data.mnist import Mnist
from xfer.data.shards import Shards

__all__ = ["Canidae", "Digits", "Folder", "Manifest", "Mnist", "Shards"]
