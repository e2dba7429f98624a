"""xfer: declarative transfer learning for image classification."""

from xfer.api import Model, load, run

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load", "run"]
