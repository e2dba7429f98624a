"""Answers of the real MindSpore, where there is a python that has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Images = np.ndarray[Any, np.dtype[np.float32]]

needs_mindspore = pytest.mark.skipif(
    "XFER_MINDSPORE" not in os.environ, reason="XFER_MINDSPORE names no python with MindSpore"
)


def by_mindspore(images: Images, *paths: Path) -> list[dict[str, Images]]:
    """MindSpore's own answers of each ``.mindir``, at batch 1, 2 and all, from one process."""
    np.save(paths[0].with_name("images.npy"), images)
    files = [
        str(file)
        for path in paths
        for file in (path, paths[0].with_name("images.npy"), path.with_suffix(".npz"))
    ]
    proof = Path(__file__).parents[1] / "proofs" / "mindir_proof.py"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": ""}
    done = subprocess.run(
        [os.environ["XFER_MINDSPORE"], str(proof), *files],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [dict(np.load(path.with_suffix(".npz"))) for path in paths]
