"""A certificate: what travels with trained weights to answer with prediction sets and with how
unlike the training images a picture is. numpy only.

It is fitted by :mod:`xfer.evaluation.conformal` and :mod:`xfer.evaluation.out_of_distribution`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from xfer.core.read_back import checked

Floats = npt.NDArray[np.float32]
JsonFacts = dict[str, Any]

MOST_BYTES = 1_000_000
"""The arrays of a certificate take no more."""
FittedOn = Literal["cv", "val"]
"""``cv``: training images, each answered by the fit of the folds that had not seen it; ``val``: the
validation images."""


@dataclass(frozen=True)
class Unlike:
    """Where the features of training images lie, and how far from them held-out images were.

    The features are what enters ``layers`` (dotted paths, the head's last), the means over the
    positions of maps, side by side. Each less ``mean`` (d,) times ``scale`` (d,), they are seen in
    ``r`` principal directions ``basis`` (r, d), orthonormal, with one variance outside of them
    (Tipping and Bishop, 1999), and there ``whiten`` (r, r) by the covariance within classes (Lee et
    al., 2018). ``centres`` (m, r), whitened, are training images, in the first files of xfer the
    means of classes, and ``radius`` (m,) how far from each others are, squared. ``noise`` (1,) is
    the weight of what is outside of the basis, 0 where nothing is; ``reference`` (k,) are ascending
    distances of images that were held out. All float32.
    """

    layers: tuple[str, ...]
    mean: Floats
    scale: Floats
    basis: Floats
    whiten: Floats
    centres: Floats
    radius: Floats
    noise: Floats
    reference: Floats

    def distance(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The least of the squared distances to the centres, whitened, each over the radius of its
        centre, (n,), of features (n, d)."""
        away = (np.asarray(features, np.float64) - self.mean) * self.scale
        inside = away @ self.basis.T.astype(np.float64)
        outside = np.maximum((away**2).sum(axis=1) - (inside**2).sum(axis=1), 0) * self.noise[0]
        white = inside @ self.whiten.T.astype(np.float64)
        near = np.full(len(white), np.inf)
        for centre, radius in zip(self.centres, self.radius, strict=True):
            away_from = ((white - centre) ** 2).sum(axis=1) + outside
            np.minimum(near, away_from / radius, out=near)
        return np.asarray(near)

    def p_value(self, distance: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Conformal p-values (n,) of distances (n,): the share of held-out images that were as far
        away, the image itself counted among them, so that none is 0 (Vovk et al., 2005)."""
        nearer = np.searchsorted(self.reference, distance, side="left")
        count = len(self.reference)
        return np.asarray((1 + count - nearer) / (1 + count), np.float64)


@dataclass(frozen=True)
class Certificate:
    """From which probability on a class is in the prediction set of an image, and what is known of
    images that are like none of training.

    ``least`` float32 (classes,) are those probabilities; sets have the true class of a share
    ``coverage`` of images like the ``n`` that it was ``fitted_on``, each class for itself where
    ``by_class``. With ``several`` labels an image they have that share of an image's labels on
    average, over images that have one. ``mean_set_size`` is that of those images, ``sha256`` of the
    split they are of. ``unlike`` is ``None`` where the head has no layer whose input could be
    looked at.
    """

    coverage: float
    by_class: bool
    fitted_on: FittedOn
    n: int
    mean_set_size: float
    sha256: str
    least: Floats
    unlike: Unlike | None = None
    several: bool = False

    def cuts(self, probabilities: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """From which of its probabilities (n, classes) on a class is in the set of an image, such
        that it compares with them.

        The most probable class is always in: no set is empty, and sets cover more than they were
        asked to where the network is right more often than that. With several labels an image may
        have none, and its set be empty.
        """
        if self.several:
            return self.least
        return np.asarray(np.minimum(self.least, probabilities.max(axis=1, keepdims=True)))

    def sets(self, probabilities: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Prediction sets, bool (n, classes), of probabilities (n, classes)."""
        return np.asarray(probabilities >= self.cuts(probabilities))

    def to_plain(self) -> JsonFacts:
        """Its facts without the arrays, JSON-like, as a card has them."""
        facts = {name: value for name, value in vars(self).items() if name in _FACTS}
        return facts | {"layers": list(self.unlike.layers) if self.unlike else None}

    def arrays(self) -> dict[str, Floats]:
        """The arrays by name, float32: the other half of :meth:`to_plain`."""
        unlike = {name: getattr(self.unlike, name) for name in _UNLIKE} if self.unlike else {}
        return {"least": self.least, **unlike}


_UNLIKE = ("mean", "scale", "basis", "whiten", "centres", "radius", "noise", "reference")
_Share = Annotated[float, Field(gt=0, lt=1)]


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
class CertificateFacts(TypedDict):
    """What a card says of its certificate."""

    coverage: _Share
    by_class: bool
    fitted_on: FittedOn
    n: Annotated[int, Field(gt=0)]
    mean_set_size: Annotated[float, Field(ge=0)]
    sha256: str
    layers: NotRequired[Annotated[list[str], Field(min_length=1)] | None]
    layer: NotRequired[str | None]
    """in place of ``layers``, where a file says it of one: what xfer wrote at first"""


_FACTS = frozenset(CertificateFacts.__annotations__) - {"layer", "layers"}


def certificate_of(
    facts: JsonFacts, arrays: Mapping[str, Any], classes: int, several: bool = False
) -> Certificate:
    """The certificate of a network of so many ``classes``, of which an image may have ``several``,
    from both of its halves, as a file holds them. Raises ValueError in one line for what is
    none."""
    checked(CertificateFacts, facts)
    values = dict(facts)
    layers, layer = values.pop("layers", None), values.pop("layer", None)
    if layer is not None:  # one layer, and no scale
        layers, arrays = [layer], {"scale": np.ones_like(arrays.get("mean", ())), **arrays}
    if layers is not None:  # the first files have no radius
        count = np.shape(arrays.get("centres", ()))[:1]
        arrays = {"radius": np.ones(count, np.float32), **arrays}
    names = ("least", *_UNLIKE) if layers is not None else ("least",)
    if set(arrays) != set(names):
        raise ValueError(f"the certificate has the arrays {sorted(map(str, arrays))}")
    parts = {name: np.asarray(arrays[name]) for name in names}
    if sum(part.nbytes for part in parts.values()) > MOST_BYTES:
        raise ValueError(f"the certificate takes more than {MOST_BYTES:,} bytes")
    _check_shapes(parts, classes)
    least = parts.pop("least")
    unlike = Unlike(tuple(layers), **parts) if layers is not None else None
    return Certificate(**values, least=least, unlike=unlike, several=several)


def _check_shapes(parts: Mapping[str, npt.NDArray[Any]], classes: int) -> None:
    """Raise ValueError for an array of another shape or type, and for one with NaN or Inf."""
    wanted: dict[str, tuple[int, ...]] = {"least": (classes,)}
    if "basis" in parts:
        rank, width = parts["basis"].shape if parts["basis"].ndim == 2 else (-1, -1)
        wanted |= {"mean": (width,), "scale": (width,), "basis": (rank, width)}
        wanted |= {"whiten": (rank, rank)}
        count = len(parts["centres"])
        wanted |= {"centres": (count, rank), "radius": (count,), "noise": (1,)}
        wanted |= {"reference": (parts["reference"].size,)}
        if not (count and parts["reference"].size):
            raise ValueError("the certificate has no centre or no reference")
        if (np.diff(parts["reference"]) < 0).any():
            raise ValueError("the certificate's reference does not ascend")
    for name, shape in wanted.items():
        part = parts[name]
        if part.dtype != np.float32 or part.shape != shape or not np.isfinite(part).all():
            raise ValueError(f"the certificate's {name} is {part.dtype} of shape {part.shape}")
    if "radius" in parts and not (parts["radius"] > 0).all():
        raise ValueError("the certificate has a centre without a radius")
