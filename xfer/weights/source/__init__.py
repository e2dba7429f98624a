"""Where the initial weights come from. Loading is strict; only the head may be excused."""

from xfer.source.file import File
from xfer.source.hub import Hub
from xfer.source.mindspore import MindSpore
from xfer.source.none import Scratch
from xfer.source.run import Run, Shipped
from xfer.source.url import Url

__all__ = ["File", "Hub", "MindSpore", "Run", "Scratch", "Shipped", "Url"]
