"""The graphs that torch has traced, in one folder for the processes of all tests.

What torch traces holds no weight, as ``test_onnx_graph.py`` proves: one graph serves every test
that exports the same layers, where a first trace takes four times as long as a short run. Code of a
test's own is traced each time. The variable ``TRACED_GRAPHS`` names the folder; without it
everything is traced anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from xfer.export import onnx_graph

FOLDER = "TRACED_GRAPHS"
_fresh = onnx_graph.trace


def trace(traced: onnx_graph.Traced, opset: int) -> bytes:
    """In place of ``onnx_graph.trace``."""
    try:
        layers = onnx_graph.layers_of(traced.net)
        folder = Path(os.environ[FOLDER])
    except (onnx_graph.UnknownLayer, KeyError):
        return _fresh(traced, opset)
    key = repr(onnx_graph._key(traced, layers, opset))
    file = folder / hashlib.sha256(key.encode()).hexdigest()
    if not file.exists():
        # Another process may be at it: both write the same, and neither reads a part of it.
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(_fresh(traced, opset))
        part.replace(file)
    return file.read_bytes()
