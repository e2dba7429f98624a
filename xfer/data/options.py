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
    """images in a training batch"""
    eval_batch_size: Annotated[int, Gt(0)] = 64
    """images in a batch of validation, test and prediction"""
    workers: Annotated[int, Ge(0)] = 2
    """processes that decode images; 0 decodes in the main process"""
    decoded_gb: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """gigabytes (1e9 bytes) of memory for decoded images during a fit, so that a file is
    decoded once; ``auto`` is a tenth of the memory that is available, 0 decodes anew in every
    epoch"""
    val_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    """share of every class that is held out as ``val``, where the data has no ``val``"""
    test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    """share of every class that is held out as ``test``, where the data has no ``test``; 0
    makes none"""
    split_seed: Annotated[int, Ge(0)] = 0
    """which images are held out; the run's ``seed`` does not move them"""
    on_bad: Literal["error", "skip"] = "error"
    """what becomes of files that are no sound images, or so narrow that resizing makes them
    huge; ``skip`` leaves them out and says how many and which"""
    leakage: Literal["error", "warn", "ignore"] = "warn"
    """what becomes of held-out images that are in ``train`` too; ``error`` refuses the same
    bytes, images that look alike are told"""
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    """how often an epoch trains on an image: ``shuffled`` once; ``balanced`` as often as makes
    every class come equally often, in an epoch of the same length (augmented anew each time)"""
    range: tuple[float, float] | Literal["auto"] | None = "auto"
    """the numbers that are black and white in image files of more than 8 bits; ``auto`` is the
    smallest of 8, 10, 12, 14 and 16 bits that holds the numbers of all files, ``null`` is 16
    bits"""

    def __post_init__(self) -> None:
        if isinstance(self.range, tuple) and self.range[0] >= self.range[1]:
            what = f"{self.range[0]:g} is not below {self.range[1]:g}"
            raise ConfigError("data.range", what, "type 'data.range=[LOW,HIGH]'", 90)

    def balance(self, labels: Iterable[int]) -> list[int] | None:
        """The training ``labels`` to balance by; ``None`` where every image comes once."""
        return [int(label) for label in labels] if self.sampler == "balanced" else None

    @abstractmethod
    def dataset(self, training: bool) -> Dataset:
        """The classes and splits, every file checked.

        ``training`` asks for ``train`` and ``val``; without it ``train`` is left out, and what
        is held out is the same. Raises DataError naming the folder or file.
        """
