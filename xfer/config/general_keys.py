"""The keys that are in no group: what each may be and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from xfer.core.types import Calibrating, Tta

STAGES = (
    *("audit", "lr_find", "fit", "evaluate", "predict", "export", "benchmark", "report"),
    *("leaderboard", "compare", "worth", "embed", "pack", "soup"),
)


@dataclass(frozen=True)
class Embedding:
    """What the stage embed writes: the ``format`` of its file, and the ``k`` images nearest to the
    image ``neighbours``, if one is named."""

    format: Literal["npz", "parquet"] = "npz"
    neighbours: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Packing:
    """Where the stage pack writes the images of a folder, and the megabytes (1e6 bytes) of a
    shard."""

    out: str = ""
    mb: int = 256


_STAGES = "any of " + ", ".join(STAGES) + "; none prints the plan"
GENERAL: dict[str, tuple[Any, str]] = {
    "seed": (
        Annotated[int, Ge(0), Lt(2**32)],
        "what every random choice of the run is derived from",
    ),
    "stages": (tuple[str, ...], _STAGES),
    "tta": (
        Tta,
        "views of each image whose probabilities evaluate and predict average: none is the image "
        "alone, flip adds its mirror image, five_crop is its corners and centre, ten_crop those of "
        "both",
    ),
    "calibration": (
        Calibrating,
        "what scales the logits at the end of a fit, as a part of the last layer: temperature is "
        "one number, vector a scale and a shift a class; auto fits it on held-out training images "
        "where the head is solved, and does nothing where it is trained step by step",
    ),
    "certificate.coverage": (
        Annotated[float, Gt(0), Lt(1)] | None,
        "share of images whose prediction set is to have their true class, such as 0.9, or, with "
        "several labels, share of an image's labels that its set is to have on average; "
        "predictions and ONNX files then have sets, and p-values of being unlike all training "
        "images; null is none of this",
    ),
    "certificate.by_class": (
        bool,
        "whether that share is to hold for each class for itself, which takes as many images of "
        "each as of all together otherwise",
    ),
    "run.dir": (str | None, "the run's folder; null makes outputs/<experiment or data's name>/..."),
    "predict.input": (
        str | tuple[str, ...] | None,
        "what is classified or embedded: a folder, a file, a glob pattern, shards, a table, a list "
        "in CSV, a data set, arrays, or a list of them; "
        "embed without it takes the splits of the data",
    ),
    "predict.model": (
        str | None,
        "an ONNX file to predict with, in place of checkpoint.path; it is run without torch",
    ),
    "predict.labels": (
        str | tuple[str, ...] | None,
        "the class names of that file, a list or a file of them, where it does not hold them",
    ),
    "predict.recipe": (str | None, "the preprocess.json of that file, where it does not hold one"),
    "predict.maps": (
        Annotated[int, Ge(0), Le(200)],
        "how many of the predicted images a page shows with a heat map, the first ones; 0 is none",
    ),
    "predict.format": (
        Literal["csv", "parquet"],
        "the file that predict writes; parquet is written by pyarrow, which must be installed",
    ),
    "embed.format": (
        Literal["npz", "parquet"],
        "the file that embed writes; parquet is written by pyarrow, which must be installed",
    ),
    "embed.neighbours": (
        str | None,
        "an image whose nearest neighbours among the embedded ones are printed and written",
    ),
    "embed.k": (Annotated[int, Gt(0)], "how many neighbours"),
    "compare.runs": (
        tuple[str, ...] | None,
        "the run folders that the stage compare puts beside each other, two or more",
    ),
    "pack.out": (
        str | None,
        "the folder that the stage pack writes shards of the images into; new, or begun by it",
    ),
    "pack.mb": (
        Annotated[int, Ge(1), Le(100_000)],
        "the megabytes (1e6 bytes) of a shard at most; an image that is larger has one of its own",
    ),
    "report.maps": (
        Annotated[int, Ge(0), Le(200)],
        "images on the run card that have a heat map, two mistakes for each right answer; 0 "
        "computes none",
    ),
}
"""Keys that are in no group: type and meaning. Their defaults are in conf/config.yaml."""
