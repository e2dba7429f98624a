"""What the real MindSpore says of a ``.mindir``. Run by MindSpore's own python, without torch:

ONEDNN_MAX_CPU_ISA=AVX2 $XFER_MINDSPORE tests/proofs/mindir_proof.py MODEL.mindir IMAGES.npy OUT.npz

writes its logits, under the batch sizes 1, 2 and all: ``b1``, ``b2`` and ``bN``. More such threes
may follow.
"""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn


def main(model: str, images: str, out: str) -> None:
    """Load, run at three batch sizes, save."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    net = nn.GraphCell(ms.load(model))
    x = np.load(images)
    sizes = {"b1": 1, "b2": 2, "bN": len(x)}
    np.savez(out, **{name: net(Tensor(x[:n])).asnumpy() for name, n in sizes.items()})


if __name__ == "__main__":
    for i in range(1, len(sys.argv), 3):  # the Python of MindSpore 2.0 has no strict zip
        main(*sys.argv[i : i + 3])
