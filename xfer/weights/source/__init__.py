"""Where the initial weights come from. Loading is strict; only the head may be excused."""

from xfer.weights.source.hub import Hub
from xfer.weights.source.local import File, Run, Scratch, Shipped
from xfer.weights.source.mindspore import MindSpore
from xfer.weights.source.url import Url

__all__ = ["File", "Hub", "MindSpore", "Run", "Scratch", "Shipped", "Url"]
