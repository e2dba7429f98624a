"""ONNX in 8-bit integers: a quarter of the size, at a cost in accuracy that is measured."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.evaluation.onnx_session import open_session, runner, runtime
from xfer.export.metadata import metadata
from xfer.export.onnx import tensors, with_suffix
from xfer.export.onnx_graph import model_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int8:
    """Static quantisation by onnxruntime: weights a channel, activations a tensor, both int8.

    The ranges come from ``images`` training images; the accuracy on the validation split may drop
    by ``export.max_drop``. Input and output are those of the float file.
    """

    trial: ClassVar[str] = "score"
    format: ClassVar[str] = "int8"

    images: Annotated[int, Ge(1)] = 128
    """training images that the ranges are measured on, spread evenly"""
    file: str = "model_int8.onnx"
    """its name below ``export/``"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", with_suffix(self.file, ".onnx"))

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net``, measure the ranges on ``images``, quantise."""
        runtime()
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process
        from onnxruntime.quantization import quantize_static as quantize

        model = model_of(tensors(net, images), 20)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
            plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
            plain.write_bytes(model.SerializeToString())
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize(
                ready,
                done,
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8,
            )
            model = onnx.load(done)
        onnx.helper.set_model_props(model, metadata(card) | {"input": "tensor"})
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        return {"calibrated_on": len(images)}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, on the CPU."""
        return runner(open_session(path))


class _Calibration:
    """What onnxruntime asks for images, one at a time, until there is none."""

    def __init__(self, images: Array) -> None:
        self._left: Iterator[Array] = (images[i : i + 1] for i in range(len(images)))

    def get_next(self) -> dict[str, Any] | None:
        """The next input by its name."""
        image = next(self._left, None)
        return None if image is None else {"images": image}


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises on the root logger to do what has just been done."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
