"""onnxruntime, opened so that it reports nothing home and fails in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xfer.core.errors import WeightsError
from xfer.core.types import Array

PREDICTION_SET, P_UNLIKE = "prediction_set", "p_unlike"
"""The outputs of a file with a certificate, after its answers."""
PROBABILITIES, LABELS = "probabilities", "labels"
"""Those of a file of several labels an image: probabilities, and which labels it has."""


def runtime() -> Any:
    """onnxruntime, imported so that it reports nothing home."""
    # Read when onnxruntime is imported: its wheels report usage since 1.29.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def open_session(path: Path, threads: int = 0) -> Any:
    """An ``InferenceSession`` of an ONNX file on the CPU, from the file alone; 0 ``threads`` are
    as many as it likes.

    Raises WeightsError for a file that is missing or that onnxruntime cannot run.
    """
    onnxruntime = runtime()
    if not path.is_file():
        raise WeightsError(path, "there is no such file", "give an ONNX file", 42)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        what = f"onnxruntime cannot run it ({lines[0][:160]})"
        raise WeightsError(path, what, "give a complete ONNX file", 43) from error


def runner(session: Any) -> Callable[[Array], Array]:
    """A function from the one input of ``session`` to its first output, for any number of images.

    A file of one batch size gets them in groups of that size, the last one filled up.
    """
    run = several(session, session.get_outputs()[0].name)
    return lambda images: run(images)[0]


def promises(session: Any) -> tuple[str, ...]:
    """The outputs of a certificate that ``session`` has: none, sets, or sets and p-values."""
    names = [output.name for output in session.get_outputs()]
    known = (PREDICTION_SET, P_UNLIKE) if PREDICTION_SET in names else ()
    return tuple(name for name in known if name in names)


def several(session: Any, *outputs: str) -> Callable[[Array], list[Array]]:
    """As :func:`runner`, to the outputs of these names."""
    name, size = session.get_inputs()[0].name, session.get_inputs()[0].shape[0]

    def run(images: Array) -> list[Array]:
        answers: list[Array] = session.run([*outputs], {name: images})
        return answers

    def grouped(images: Array) -> list[Array]:
        import numpy as np

        spare = np.repeat(images[-1:], -len(images) % size, axis=0)
        whole = np.concatenate([images, spare])
        groups = [run(whole[i : i + size]) for i in range(0, len(whole), size)]
        return [np.concatenate(parts)[: len(images)] for parts in zip(*groups, strict=True)]

    return grouped if isinstance(size, int) else run
