"""What every data option has: how images are loaded, and rows that become a dataset."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from xfer.core.errors import CombinationError, ConfigError, DataError
from xfer.core.files import path_problem
from xfer.core.types import Dataset

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SPLITS = ("train", "val", "test")


def place(text: str) -> Path:
    """An absolute path: a worker or a later run may have another working directory."""
    if problem := path_problem(text):
        raise DataError(text[:200], problem, "write the path out", 1)
    return Path(os.path.normpath(Path(text).expanduser().absolute()))


class ImageRow(NamedTuple):
    """One image: its unique name, its class, its split (empty while it has none), the group that
    it belongs to (empty for none), and in cross-validation its fold in each repeat."""

    name: str
    label: str
    split: str = ""
    group: str = ""
    folds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Loading(ABC):
    """The keys that every option has.

    With ``folds`` the score is that of a cross-validation; see :mod:`xfer.data.folds`. ``groups``
    is what an option calls the groups that it knows: ``FOLDER``, a ``COLUMN``, or nothing.
    """

    groups: ClassVar[str] = ""

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
    every class come equally often, in an epoch of the same length (augmented anew each time);
    with several labels in proportion to the largest inverse frequency among those of the image"""
    range: tuple[float, float] | Literal["auto"] | None = "auto"
    """the numbers that are black and white in image files of more than 8 bits; ``auto`` is the
    smallest of 8, 10, 12, 14 and 16 bits that holds the numbers of all files, ``null`` is 16
    bits"""
    folds: Annotated[int, Ge(2)] | None = None
    """cross-validation in so many parts: each is predicted by a fit on the others, and the final
    model is fitted on all images. Without ``val`` all images are used; ``val`` and ``test`` that
    are there stay held out"""
    repeats: Annotated[int, Gt(0)] = 1
    """cross-validations, each with other parts"""
    group: str | None = None
    """what keeps images on one side of every split and fold: a column of the list or table, also
    of one that was packed, or ``FOLDER``, the folder that an image is in below its class folder,
    or, with several labels, the outermost one, which is no label then"""
    fold: Annotated[int, Ge(0)] | None = None
    """train on the other parts alone and validate on this one, from 0 to folds x repeats - 1;
    ``null`` is the whole cross-validation"""

    def __post_init__(self) -> None:
        self._check_folds()
        if isinstance(self.range, tuple) and self.range[0] >= self.range[1]:
            what = f"{self.range[0]:g} is not below {self.range[1]:g}"
            raise ConfigError("data.range", what, "type 'data.range=[LOW,HIGH]'", 90)

    def _check_folds(self) -> None:
        asked = {"repeats": self.repeats > 1, "fold": self.fold is not None}
        for key, given in asked.items():
            if given and self.folds is None:
                what = "is for cross-validation, and data.folds is not given"
                raise CombinationError(f"data.{key}", what, "type data.folds=5", 6)
        if self.folds and self.fold is not None and self.fold >= self.folds * self.repeats:
            count = self.folds * self.repeats
            what = f"is {self.fold}, and {self.folds} folds x {self.repeats} repeats are {count}"
            raise CombinationError("data.fold", what, f"type 0 to {count - 1}", 7)
        if self.group and self.groups != "COLUMN" and self.group != self.groups:
            known = f"type data.group={self.groups}" if self.groups else "drop it"
            what = f"is '{self.group}', and " + (
                "images in folders are grouped by folder"
                if self.groups
                else f"the images of data={type(self).__name__.lower()} have no groups"
            )
            raise CombinationError("data.group", what, known, 10)

    def balance(self, labels: npt.NDArray[np.int64]) -> list[int] | npt.NDArray[np.int64] | None:
        """The training ``labels``, (n,) or (n, classes), to balance by; ``None`` where every image
        comes once."""
        if self.sampler != "balanced":
            return None
        return labels if labels.ndim == 2 else labels.tolist()

    @abstractmethod
    def dataset(self, training: bool) -> Dataset:
        """The classes and splits, every file checked.

        ``training`` asks for ``train`` and ``val``; without it ``train`` is left out, and what
        is held out is the same. Raises DataError naming the folder or file.
        """
