"""Where images and their classes come from. Classes are sorted as plain strings, as torchvision
sorts folders: ``10`` comes before ``2``."""

from xfer.data.arrays import ArrayFiles
from xfer.data.digits import Digits
from xfer.data.folder import Canidae, Folder
from xfer.data.hf import HuggingFace
from xfer.data.manifest import Manifest
from xfer.data.mnist import Mnist
from xfer.data.parquet import Parquet
from xfer.data.shards import Shards

__all__ = [
    "ArrayFiles",
    "Canidae",
    "Digits",
    "Folder",
    "HuggingFace",
    "Manifest",
    "Mnist",
    "Parquet",
    "Shards",
]
