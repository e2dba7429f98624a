"""The features of any images: what enters the classifier of a network, written in blocks.

Files name their rows: paths, labels where they are known, and the recipe that made them. Equal
images and weights make equal bytes.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import XferError
from xfer.core.files import atomic_write, file_sha256, write_rows
from xfer.core.types import Plain, Samples
from xfer.evaluation.multilabel_predictions import sign_for
from xfer.evaluation.predict import find, warn_of_broken
from xfer.evaluation.table_file import cell

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import nn

    from xfer.plan.plan import Plan

_BLOCK = 1 << 22  # numbers that are copied at a time
_STAMP = (1980, 1, 1, 0, 0, 0)  # what a zip file says of when, always
AXES = ["image", "feature"]


@dataclass(frozen=True)
class Embeddings:
    """``rows`` float32 (n, d) on the disk, an image a row; ``names`` and ``labels`` (-1 where
    unknown) and ``splits`` (empty where there is none) are theirs, ``classes`` what the labels
    count; ``recipe`` is how they were made. With several labels an image ``labels`` are
    (n, classes) of 1, 0 and -1."""

    rows: npt.NDArray[np.float32]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    recipe: Plain

    def write(self, path: Path) -> None:
        """Write them as the suffix of ``path`` says, atomically. Raises OutputError."""
        atomic_write(path, self._npz if path.suffix == ".npz" else self._parquet)

    def _npz(self, path: Path) -> None:
        few: dict[str, Any] = {
            "paths": np.array(self.names, dtype=np.str_),
            "labels": self.labels,
            "splits": np.array(self.splits, dtype=np.str_),
            "classes": np.array(self.classes, dtype=np.str_),
            "recipe": np.array(json.dumps(self.recipe)),
        }
        with zipfile.ZipFile(path, "w") as archive:
            with _entry(archive, "features") as stream:
                head = np.lib.format.header_data_from_array_1_0(self.rows)
                np.lib.format.write_array_header_2_0(stream, head)
                for part in _parts(self.rows):
                    stream.write(np.ascontiguousarray(self.rows[part]).tobytes())
            for name, array in few.items():
                with _entry(archive, name) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)

    def _parquet(self, path: Path) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        width, several = self.rows.shape[1], self.labels.ndim == 2
        kind = arrow.list_(arrow.string()) if several else arrow.string()
        schema = arrow.schema(
            {
                "path": arrow.string(),
                "split": arrow.string(),
                "labels" if several else "label": kind,
                "features": arrow.list_(arrow.float32(), width),
            },
            metadata={"xfer": json.dumps(self.recipe)},
        )
        names = [named(label, self.classes) for label in self.labels]
        with parquet.ParquetWriter(path, schema) as writer:
            for part in _parts(self.rows):
                flat = arrow.array(np.ascontiguousarray(self.rows[part]).reshape(-1))
                columns = [
                    arrow.array(self.names[part], arrow.string()),
                    arrow.array(self.splits[part], arrow.string()),
                    arrow.array(names[part], kind),
                    arrow.FixedSizeListArray.from_arrays(flat, width),
                ]
                writer.write_batch(arrow.record_batch(columns, schema=schema))


def named(label: npt.NDArray[np.int64], classes: Sequence[str]) -> str | list[str] | None:
    """The label of an image in words, ``None`` where it is unknown; of several, (classes,), those
    that it has, and with a question mark those that are unknown while others are not."""
    if not (label >= 0).any():
        return None
    if not label.ndim:
        return classes[int(label)]
    row = zip(classes, label.tolist(), strict=True)
    return ["?" * (value < 0) + name for name, value in row if value]


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _STAMP), "w", force_zip64=True)


def _parts(rows: npt.NDArray[np.float32]) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


def embed(plan: Plan, net: nn.Module, folder: Path, device: torch.device) -> Plain:
    """Write the features of what ``predict.input`` names, or without it of the splits of the data,
    to ``folder``; with ``embed.neighbours`` also what is nearest to that image. What
    ``result.json`` says of it.

    Raises DataError where there are no images, OutputError where a file cannot be written.
    """
    specs = plan.specs
    layer = _AtClassifier(plan, net, device)
    with tempfile.TemporaryFile(dir=folder) as body:
        embeddings = _embedded(plan, layer, body)
        path = folder / f"embeddings.{specs.embed.format}"
        embeddings.write(path)
        facts: Plain = {
            "file": path.name,
            "sha256": file_sha256(path),
            "images": len(embeddings.names),
            "width": embeddings.rows.shape[1],
            "recipe": embeddings.recipe,
        }
        if specs.embed.neighbours:
            asked = specs.embed.neighbours
            facts["neighbours"] = _neighbours(plan, layer, embeddings, asked, folder)
    return facts


class _AtClassifier:
    """A network whose classifier's input is what it gives, float32 (n, d): of a feature map the
    mean over its positions."""

    def __init__(self, plan: Plan, net: nn.Module, device: torch.device) -> None:
        import torch
        from torch import nn

        from xfer.models.network import on_meta

        bare = on_meta(plan.parts.bare)
        self.path, self.device = bare.heads[0], device
        self.convolves = isinstance(bare.module.get_submodule(self.path), nn.Conv2d)
        self.net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def __call__(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """The features of ``images`` float32 (n, 3, h, w)."""
        import torch

        from xfer.evaluation.certificate_answers import features_at

        with features_at(self.net, [self.path]) as seen:
            self.net(images.to(self.device, memory_format=torch.channels_last))
        return seen[self.path][0]


def _embedded(plan: Plan, layer: _AtClassifier, body: IO[bytes]) -> Embeddings:
    """The features of all images asked for, on the disk in ``body``."""
    names: list[str] = []
    splits: list[str] = []
    labels: list[npt.NDArray[np.int64]] = []
    broken: list[XferError] = []
    width = asked = 0
    for split, samples in _asked(plan).items():
        asked += len(samples)
        for at, rows in _answers(plan, layer, samples, broken):
            body.write(np.ascontiguousarray(rows).tobytes())
            width = rows.shape[1]
            names += [samples.names[i] for i in at]
            labels.append(_labels(plan, samples, at))
            splits += [split] * len(at)
    warn_of_broken(broken, asked)
    body.flush()
    table = np.memmap(body, np.float32, "r", shape=(len(names), width))
    recipe = _recipe(plan, layer, width)
    return Embeddings(
        table, tuple(names), np.concatenate(labels), tuple(splits), plan.card.classes, recipe
    )


def _labels(plan: Plan, samples: Samples, at: Sequence[int]) -> npt.NDArray[np.int64]:
    """The labels of the images at these positions, which those of ``predict.input`` lack."""
    if plan.specs.task.several and samples.labels.ndim == 1:
        return np.full((len(at), len(plan.card.classes)), -1, np.int64)
    return samples.labels[list(at)]


def _asked(plan: Plan) -> Mapping[str, Samples]:
    """What is embedded, by split; what is named in ``predict.input`` is of none."""
    if plan.specs.predict_input:
        return {"": find(plan.specs.predict_input, plan.card.input.range)}
    return plan.dataset.splits if plan.dataset else {}


def _answers(
    plan: Plan, layer: _AtClassifier, samples: Samples, broken: list[XferError]
) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
    """Positions and features of the images that can be decoded, a batch at a time; the errors of
    the others go into ``broken``."""
    import torch

    from xfer.core.live_line import counted
    from xfer.data.loader import EvalLoader, eval_images

    data = plan.specs.data
    size, workers = (data.eval_batch_size, data.workers) if data else (64, 0)
    pictures = eval_images(samples, plan.card.input)
    loader = EvalLoader(pictures, size, workers, pin=False, sound=True)
    start = 0
    with torch.inference_mode():
        for batch, errors in counted(loader, "embedding", len(loader)):
            broken += [error for error in errors if error is not None]
            at = [start + i for i, error in enumerate(errors) if error is None]
            start += len(errors)
            if batch is not None:
                yield at, layer(batch[0])


def _recipe(plan: Plan, layer: _AtClassifier, width: int) -> Plain:
    """How features were made: pixels, network, layer and weights, and what their axes are."""
    from xfer.core.checksum import fingerprint

    source, path = plan.card.source, plan.specs.checkpoint.path
    below = (item for item in layer.net.state_dict().items() if not item[0].startswith(layer.path))
    return {
        "axes": AXES,
        "dtype": "float32",
        "width": width,
        "backbone": dict(plan.card.backbone),
        "layer": f"input of {layer.path}" + (", mean over positions" if layer.convolves else ""),
        "input": plan.card.input.to_plain(),
        "weights": {
            "origin": str(path) if path else source.get("origin"),
            "file_sha256": _weights_sha256(plan),
            "tensors_sha256": fingerprint(below),
        },
    }


def _weights_sha256(plan: Plan) -> str | None:
    from xfer.core.run_folder import best_checkpoint

    path = plan.specs.checkpoint.path
    if path is None:
        sha256: str | None = plan.card.source.get("sha256")
        return sha256
    return file_sha256(best_checkpoint(Path(path).expanduser()))


def _neighbours(
    plan: Plan, layer: _AtClassifier, embeddings: Embeddings, image: str, folder: Path
) -> list[Plain]:
    """The images nearest to the one asked about, by cosine distance; also ``neighbours.csv``."""
    samples = find([image], plan.card.input.range)
    broken: list[XferError] = []
    asked = [rows for _, rows in _answers(plan, layer, samples, broken)]
    warn_of_broken(broken, len(samples))
    rows = []
    for rank, (at, distance) in enumerate(
        nearest(embeddings.rows, asked[0][0], plan.specs.embed.k), start=1
    ):
        label = named(embeddings.labels[at], embeddings.classes) or ""
        rows.append(
            {
                "rank": rank,
                "path": embeddings.names[at],
                "split": embeddings.splits[at],
                "label": sign_for(embeddings.classes).join(label)
                if isinstance(label, list)
                else label,
                "distance": round(distance, 6),
            }
        )
    texts = [{**row, **{k: cell(str(row[k])) for k in ("path", "label")}} for row in rows]
    write_rows(folder / "neighbours.csv", texts)
    return rows


def nearest(
    rows: npt.NDArray[np.float32], asked: npt.NDArray[np.float32], count: int
) -> list[tuple[int, float]]:
    """Positions and cosine distances (1 - cosine) of the ``count`` rows of float32 (n, d) nearest
    to ``asked`` (d,), the nearest first and of equals the first. Read in blocks."""
    wanted = np.asarray(asked, np.float64)
    wanted = wanted / max(float(np.linalg.norm(wanted)), 1e-30)
    distances = np.concatenate([_distances(rows[part], wanted) for part in _parts(rows)])
    order = np.argsort(distances, kind="stable")[:count]
    return [(int(i), float(distances[i])) for i in order]


def _distances(
    rows: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    block = np.asarray(rows, np.float64)
    lengths = np.maximum(np.linalg.norm(block, axis=1), 1e-30)
    return np.asarray(1 - block @ wanted / lengths)


def lines(facts: Plain, folder: Path) -> Iterable[str]:
    """The outcome for people: the file, and what is nearest to the image that was asked about."""
    axes = " x ".join(("images", "features"))
    yield f"{facts['images']:,} x {facts['width']:,} ({axes}, float32) in {folder / facts['file']}"
    neighbours = facts.get("neighbours", ())
    if neighbours:
        yield "nearest to the image, each with its cosine distance, 0 for the same features,"
        yield f"as in {folder / 'neighbours.csv'}:"
    for row in neighbours:
        known = f" ({row['label']})" if row["label"] else ""
        yield f"{row['rank']:>3}  {row['distance']:.4f}  {row['path']}{known}"
