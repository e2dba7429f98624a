"""The small checkpoint that comes with xfer."""

from pathlib import Path

import xfer

SHIPPED = Path(xfer.__file__).parent / "weights" / "source" / "digits_0_4.ckpt"
