"""ONNX, by torch's exporter; run again by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval

from xfer.core.errors import ConfigError, ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.evaluation.onnx_session import (
    LABELS,
    PROBABILITIES,
    open_session,
    promises,
    runner,
    several,
)
from xfer.export.metadata import metadata
from xfer.export.onnx_graph import Traced, model_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xfer.export.onnx_graph import GraphCache


@dataclass(frozen=True)
class Onnx:
    """One self-contained ONNX file, any batch size unless ``batch`` fixes one.

    ``input`` is ``tensor``: ``images`` float32 (batch, 3, h, w), preprocessed, to ``logits``; or
    ``image``: ``images`` uint8 (batch, 3, any height, any width) RGB to ``probabilities``, with
    resize, crop, normalisation and softmax in the graph. ``file`` gets the suffix it lacks.

    Of several labels an image it has, beside its logits, ``probabilities`` float32
    (batch, classes), each a sigmoid, and ``labels`` bool (batch, classes), from each class's
    threshold on. With a certificate it has two further outputs, ``prediction_set`` bool
    (batch, classes) and ``p_unlike`` float32 (batch,).
    """

    opset: Annotated[int, Interval(ge=18, le=24)] = 20
    """ONNX opset"""
    input: Literal["tensor", "image"] = "tensor"
    """what goes in: preprocessed float32, or pictures as uint8"""
    file: str = "model.onnx"
    """its name below ``export/``; a missing suffix is added"""
    batch: Annotated[int, Ge(1)] | None = None
    """the only batch size that the file takes; ``null`` leaves it free"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", with_suffix(self.file, ".onnx"))

    @property
    def trial(self) -> str:
        """The trial of :class:`xfer.export.parity.Trials` that the file must pass."""
        return "pictures" if self.input == "image" else "logits"

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net`` with a free batch size; facts in ``metadata_props``, as strings."""
        return self.write_cached(net, images, card, path, None)

    def write_cached(
        self,
        net: torch.nn.Module,
        images: Array,
        card: Card,
        path: Path,
        graphs: GraphCache | None,
    ) -> Plain:
        """As :meth:`write`, and the same file, on a graph out of ``graphs``."""
        import onnx

        traced = self._traced(net, images, card)
        model = model_of(traced, self.opset, self.file, graphs)
        written = {entry.domain: entry.version for entry in model.opset_import}[""]
        if written != self.opset:  # the exporter keeps its opset when it cannot convert
            what = f"the network cannot be written in opset {self.opset}, only in {written}"
            raise ExportError(self.file, what, f"set export.onnx.opset={written}", 10)
        first = model.graph.input[0].type.tensor_type.shape.dim[0]
        if self.batch is None and first.HasField("dim_value"):
            what = f"the network's code fixes the batch size at {first.dim_value}"
            fix = f"change it, or set export.onnx.batch={first.dim_value}"
            raise ExportError(self.file, what, fix, 48)
        onnx.helper.set_model_props(model, metadata(card) | {"input": self.input})
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        return {"opset": written, "ir": model.ir_version, "input": self.input}

    def _traced(self, net: torch.nn.Module, images: Array, card: Card) -> Traced:
        pictures = self.input == "image"
        traced = _pictures(net, card, self.file) if pictures else tensors(net, images)
        if self.batch is not None:
            example = traced.example[:1].repeat(self.batch, 1, 1, 1)
            free = {axis: size for axis, size in traced.free.items() if axis}
            traced = replace(traced, example=example, free=free)
        if card.task:
            from xfer.export.answer_layers import Labelling

            labelled = Labelling(traced.net, card.task["thresholds"], pictures).eval()
            traced = replace(traced, net=labelled, outputs=(*traced.outputs, *labelled.outputs))
        if card.certificate is not None:
            from xfer.export.answer_layers import Certified

            sets = Certified(traced.net, net, card.certificate, traced.outputs).eval()
            traced = replace(traced, net=sets, outputs=(*traced.outputs, *sets.outputs))
        return traced

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, on the CPU."""
        return runner(open_session(path))

    def open_labelled(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """The file alone, to its probabilities and labels."""
        return several(open_session(path), PROBABILITIES, LABELS)

    def open_certified(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """The file alone, with what it has of a certificate after its answers."""
        session = open_session(path)
        return several(session, session.get_outputs()[0].name, *promises(session))


def with_suffix(file: str, suffix: str) -> str:
    """``file`` with the suffix of its format. Raises ConfigError for what is no bare name."""
    if not re.fullmatch(r"\w[\w .-]*", file) or len(file) > 200:
        fix = "give letters, digits, '-' and '_'; the folder is the run's own"
        raise ConfigError("export", f"'{file}' is not a valid name for an exported file", fix, 93)
    return file if file.endswith(suffix) else file + suffix


def tensors(net: nn.Module, images: Array) -> Traced:
    """``net`` from preprocessed images to logits, the batch size free."""
    import torch

    # Two copies of one image: a batch of 1 could be taken for a constant.
    example = torch.from_numpy(images[:1]).repeat(2, 1, 1, 1)
    return Traced(net, example, {0: torch.export.Dim("batch", min=1)}, ("logits",))


def _pictures(net: nn.Module, card: Card, file: str) -> Traced:
    import torch

    from xfer.export.pixels import FromPixels

    whole = FromPixels(net, card.input, file, several=bool(card.task)).eval()
    # No side equals another or the recipe's: equal numbers could be taken for one.
    example = torch.arange(2 * 3 * 301 * 433).view(2, 3, 301, 433).to(torch.uint8)
    sides = {2: torch.export.Dim("height", min=1), 3: torch.export.Dim("width", min=1)}
    free = {0: torch.export.Dim("batch", min=1), **sides}
    return Traced(whole, example, free, ("probabilities",))
