"""What the real MindSpore reads in a ``.ckpt``. Run by MindSpore's own python, without torch:

$XFER_MINDSPORE tests/proofs/mindspore_ckpt_proof.py MODEL.ckpt OUT.npz [crc]

writes its parameters by name; with ``crc`` MindSpore must also find the checksum right.
"""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np


def main(model: str, out: str, *options: str) -> None:
    """Load and save."""
    # MindSpore 2.0 knows no crc_check.
    checked = {"crc_check": True} if "crc" in options else {}
    found = ms.load_checkpoint(model, **checked)
    np.savez(out, **{name: value.asnumpy() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
