"""Whether the output of a frozen prefix is computed once and cached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from xfer.core import files

if TYPE_CHECKING:
    from xfer.training.features.store import Store

Use = Literal["never", "auto", "require"]
UNCACHED = {"cached": False, "hit": None, "views": None}
"""What ``result.json`` says of a run without features."""


@dataclass(frozen=True)
class Never:
    """Every epoch runs the whole network on every image."""

    use: ClassVar[Use] = "never"

    def views_of(self, augments: bool, epochs: int) -> int | None:
        """None is cached."""
        return None

    def store(self) -> None:
        """Nothing else is cached either."""


@dataclass(frozen=True)
class AutoFeatures:
    """The output of a frozen prefix is cached in ``dir`` (default: below ``$XFER_CACHE``), where
    there is such a prefix. ``dir`` may hold ``max_gb`` gigabytes; the least recently used features
    are dropped first.

    ``views`` differently augmented views of each image are computed and used in turn; 1 takes the
    evaluation transform, ``max`` one view an epoch, as without a cache. ``batch_size`` images are
    computed together, ``None`` as many as are trained together. Where features cannot be cached,
    the log says why and the run trains as usual.
    """

    use: ClassVar[Use] = "auto"

    dir: str | None = None
    """folder of the store; ``null`` is ``features`` below ``$XFER_CACHE``"""
    views: Annotated[int, Gt(0)] | Literal["max"] = 4
    """how many differently augmented views an image are computed and then used in turn; ``1``
    is the evaluation transform, ``max`` one view an epoch"""
    batch_size: Annotated[int, Gt(0)] | None = None
    """training images that are computed together; ``null`` is ``data.batch_size``. With a
    number the result is never exact"""
    max_gb: Annotated[float, Gt(0)] = 20.0
    """size of the store in gigabytes (1e9 bytes); what was used least recently makes room"""

    def views_of(self, augments: bool, epochs: int) -> int | None:
        """Differently augmented views an image in a fit; ``None`` for the evaluation view alone."""
        if not augments or self.views == 1:
            return None
        return epochs if self.views == "max" else min(self.views, epochs)

    def store(self) -> Store:
        """The store in ``dir``, which holds graphs of networks as well."""
        from xfer.training.features.store import Store

        return Store(folder(self.dir), self.max_gb)


@dataclass(frozen=True)
class Require(AutoFeatures):
    """As :class:`AutoFeatures`, but it is an error where features cannot be cached."""

    use: ClassVar[Use] = "require"


def folder(asked: str | None) -> Path:
    """Where features are stored."""
    return Path(asked).expanduser() if asked else files.cache_dir() / "features"
