"""What every data option has: how images are loaded, and rows that become a dataset."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from xfer.core.errors import ConfigError, DataError
from xfer.core.files import path_problem
from xfer.core.types import Dataset

SPLITS = ("train", "val", "test")


def place(text: str) -> Path:
    """An absolute path: a worker or a later run may have another working directory."""
    if problem := path_problem(text):
        raise DataError(text[:200], problem, "write the path out", 1)
    return Path(os.path.normpath(Path(text).expanduser().absolute()))


class ImageRow(NamedTuple):
    """One image: its unique name, its class, and its split (empty while it has none)."""

    name: str
    label: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Loading(ABC):
    """The keys that every option has.

    ``workers`` are processes that decode images. They share up to ``decoded_gb`` gigabytes of
    memory for what they decoded, so that training decodes a file once; ``auto`` is a tenth of the
    memory that is available, 0 decodes anew. Where ``val`` or ``test`` is missing, the fractions
    say how much of every class is held out, ``split_seed`` which images. ``on_bad`` says what
    becomes of broken image files, ``leakage`` of images on both sides of a split. ``sampler`` says
    how often an epoch trains on an image: ``shuffled`` once, ``balanced`` so that every class comes
    equally often. ``range`` are the numbers that are black and white in image files of more than 8
    bits: ``auto`` is the smallest of 8, 10, 12, 14 and 16 bits that holds those of all files,
    ``null`` 16 bits.
    """

    batch_size: Annotated[int, Gt(0)] = 24
    eval_batch_size: Annotated[int, Gt(0)] = 64
    workers: Annotated[int, Ge(0)] = 2
    decoded_gb: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    val_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    split_seed: Annotated[int, Ge(0)] = 0
    on_bad: Literal["error", "skip"] = "error"
    leakage: Literal["error", "warn", "ignore"] = "warn"
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    range: tuple[float, float] | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.range, tuple) and self.range[0] >= self.range[1]:
            what = f"{self.range[0]:g} is not below {self.range[1]:g}"
            raise ConfigError("data.range", what, "type data.range=[LOW,HIGH]", 90)

    def balance(self, labels: Iterable[int]) -> list[int] | None:
        """The training ``labels`` to balance by; ``None`` where every image comes once."""
        return [int(label) for label in labels] if self.sampler == "balanced" else None

    @abstractmethod
    def dataset(self, training: bool) -> Dataset:
        """The classes and splits, every file checked.

        ``training`` asks for ``train`` and ``val``; without it ``train`` is left out, and what
        is held out is the same. Raises DataError naming the folder or file.
        """
