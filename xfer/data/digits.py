"""The handwritten digits that scikit-learn ships: real data without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, MinLen

from xfer.core.types import Dataset
from xfer.data.dataset import of_arrays
from xfer.data.options import ImageRow, Loading
from xfer.data.split import divide

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Digit = Annotated[int, Ge(0), Le(9)]


@dataclass(frozen=True)
class Digits(Loading):
    """1,797 pictures of 8 x 8 pixels in 17 grey levels, about 180 of each digit.

    From the test part of E. Alpaydin and C. Kaynak's Optical Recognition of Handwritten Digits
    (UCI, 1998), as ``sklearn.datasets.load_digits`` gives it; ``digits`` chooses the classes.
    """

    digits: Annotated[tuple[Digit, ...], MinLen(2)]
    """which digits are the classes"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        pixels, labels = pictures()
        pairs = zip(pixels, labels, strict=True)
        rows = [ImageRow(name, str(digit)) for name, digit in pairs if digit in self.digits]
        return of_arrays(divide(rows, self, "data.digits", training), pixels, self)


@cache
def pictures() -> tuple[dict[str, npt.NDArray[np.uint8]], list[int]]:
    """Every picture by its name, uint8 (8, 8), and which digit each is. Read once a process:
    scikit-learn has them as text, which takes as long to read as some heads take to solve."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    named = {f"digits/{i:04d}": picture for i, picture in enumerate(grey)}
    return named, bunch.target.tolist()
