"""Heat maps of a few answers: of which images, and how they are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import TypedDict

from xfer.core.checksum import fingerprint
from xfer.core.errors import OutputError, printable
from xfer.core.files import parsed
from xfer.core.log import log
from xfer.core.read_back import checked
from xfer.data.preprocess import prepare
from xfer.export.cache_key import arithmetic, surroundings
from xfer.export.onnx_graph import UnknownLayer, layers_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from xfer.core.protocols import Graphs
    from xfer.core.types import InputSpec, Plain, Predictions, Samples

    Floats = npt.NDArray[np.float32]

_BATCH = 8


@dataclass(frozen=True)
class Heat:
    """The maps by the image's position in its split, float32 (rows, columns), each 0 or more, and
    how they were made or why there are none, in words. ``right`` are positions of right answers."""

    said: str
    maps: dict[int, Floats] = field(default_factory=dict)
    right: tuple[int, ...] = ()


def heat_of(
    net: nn.Module,
    answers: Predictions,
    samples: Samples,
    spec: InputSpec,
    most: int,
    stored: Graphs | None = None,
) -> Heat:
    """The maps of at most ``most`` images for the class that the network took them for: two in
    three are the first mistakes, the others right answers, spread over the split.

    Costs one pass over those images, and the gradient of what follows the map, unless the maps of
    the same network for the same images are ``stored``. A network without a map has none, and
    ``said`` names the reason.
    """
    from xfer.evaluation.evaluate import most_wrong

    wrong = most_wrong(answers)[: most - most // 3].tolist()
    right = _spread_right(answers, most // 3)
    shown = [*wrong, *right]
    taken = [int(answers.logits[i].argmax()) for i in shown]
    key = _key(net, samples, spec, shown, taken) if stored and shown else None
    of = dict(zip(shown, taken, strict=True))
    heat = _made_once(stored, key, lambda: heat_at(net, of, samples, spec))
    return replace(heat, right=right)


def _key(
    net: nn.Module, samples: Samples, spec: InputSpec, shown: list[int], taken: list[int]
) -> Plain | None:
    """Everything that the maps depend on; ``None`` where a network or its images cannot be
    recognised."""
    try:
        layers = layers_of(net)
    except UnknownLayer:
        return None
    if not samples.sha256 or next(iter(net.parameters())).device.type != "cpu":
        return None
    return {
        "kind": "heat maps",
        "format": 1,
        "layers": layers,
        "weights": fingerprint(net.state_dict().items()),
        "split": samples.sha256,
        "shown": shown,
        "taken": taken,
        "input": spec.to_plain(),
        **arithmetic(),
        **surroundings(_DISTRIBUTIONS, _CODE),
    }


_DISTRIBUTIONS = ("torch", "timm", "torchvision", "numpy", "pillow", "xfer-vision")
_CODE = ("core", "data", "evaluation", "models", "report")


class _Stored(TypedDict):
    said: str
    maps: dict[str, list[list[float]]]


def _made_once(stored: Graphs | None, key: Plain | None, make: Callable[[], Heat]) -> Heat:
    """The maps of ``key`` as they are ``stored``, or made now, and then stored."""
    if stored is None or key is None:
        return make()
    made: list[Heat] = []

    def text() -> bytes:
        made.append(make())
        maps = {str(i): cells.tolist() for i, cells in made[0].maps.items()}
        return json.dumps({"said": made[0].said, "maps": maps}, allow_nan=False).encode()

    try:
        data, _ = stored.content(key, text)
        if made:
            return made[0]
        read: _Stored = checked(_Stored, parsed(data.decode()))
        maps = {int(i): np.array(cells, np.float32) for i, cells in read["maps"].items()}
    except (OutputError, ValueError) as error:
        log.warning(f"heat maps are not cached: {error}")
        return made[0] if made else make()
    return Heat(read["said"], maps)


def heat_at(
    net: nn.Module, of: Mapping[int, int], samples: Samples, spec: InputSpec, said: str = ""
) -> Heat:
    """The maps of images, by their positions in ``samples``, for the class ``of`` each; ``said`` in
    place of the usual words on what they show. Costs and refusals as :func:`heat_of`."""
    import torch

    from xfer.evaluation.layer_cam import find_site, heat_maps

    shown = list(of)
    device = next(iter(net.parameters())).device

    def batch(positions: Sequence[int]) -> torch.Tensor:
        arrays = np.stack([prepare(samples.images[i], spec) for i in positions])
        return torch.from_numpy(arrays).to(device)

    maps: dict[int, Floats] = {}
    try:
        site = find_site(net, batch(shown[:1])) if shown else None
        if site is None:
            return Heat(_NO_PLACE if shown else "")
        for start in range(0, len(shown), _BATCH):
            part = shown[start : start + _BATCH]
            classes = [of[i] for i in part]
            maps |= zip(part, heat_maps(net, site, batch(part), classes), strict=True)
    except (RuntimeError, NotImplementedError) as error:  # of a layer that has no gradient
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return Heat(f"There are no heat maps: {printable(reason)}.")
    images = len({samples.names[i] for i in shown})
    have = f"{images} images have one" if images > 1 else "one image has one"
    if images < len(maps):
        have = f"{len(maps)} maps of {images} image{'s' * (images > 1)}"
    return Heat(f"{said or _MADE} {_SCALES} {site.method}; {have}.", maps)


_NO_PLACE = (
    "There are no heat maps: no layer near the end of this network is laid out over the image."
)
_MADE = (
    "Heat maps show where in an image the network finds what speaks for the class that it predicts:"
)
_SCALES = (
    "from clear through violet and red to bright yellow, where it finds most. Each map has its own "
    "scale."
)


def _spread_right(answers: Predictions, count: int) -> tuple[int, ...]:
    """Positions of right answers, evenly over the split, so that each class is seen."""
    right = np.flatnonzero(answers.logits.argmax(axis=1) == answers.labels)
    n = min(count, len(right))
    return tuple(int(right[i * len(right) // n]) for i in range(n))
