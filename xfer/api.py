"""xfer from Python: the same runs without a command line, and trained networks as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import nn

    from xfer.types import Card
    from xfer.workflow import Result

    Input = str | Path | Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. ``probabilities`` is by class name, ``path`` for a picture that is
    no file ``image 0``, ``image 1`` and so on."""

    path: str
    label: str
    confidence: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Model:
    """A trained network with its card. ``net`` is in evaluation mode on the CPU."""

    net: nn.Module
    card: Card

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.classes

    def predict(self, images: Input | Sequence[Input]) -> list[Prediction]:
        """Answers for files, folders (walked) and glob patterns, sorted within each; or for
        pictures: PIL's, and numpy arrays (height, width[, 3 or 4]) or a batch of them, uint8.

        Raises DataError when one names nothing or is no image.
        """
        from xfer.evaluate import answers
        from xfer.predict import find, pictures

        inputs: Any = [images] if isinstance(images, str | Path) else images
        named = isinstance(inputs, Sequence) and all(isinstance(i, str | Path) for i in inputs)
        samples = find([str(path) for path in inputs]) if named else pictures(inputs)
        found = answers(self.net, samples, self.card.input, self.card.classes)
        return [
            Prediction(
                path,
                self.classes[int(row.argmax())],
                float(row.max()),
                dict(zip(self.classes, row.tolist(), strict=True)),
            )
            for path, row in zip(found.names, found.probabilities, strict=True)
        ]


def load(path: str | Path) -> Model:
    """A checkpoint or the best one of a run folder. Raises WeightsError or SafetyError."""
    from xfer import schema
    from xfer.errors import WeightsError
    from xfer.network import open_checkpoint
    from xfer.storage import path_problem

    if problem := path_problem(str(path)):
        raise WeightsError(path, problem, "give the path of a checkpoint", 1)
    net, card = open_checkpoint(Path(path), schema.build)
    return Model(net, card)


def run(experiment: str | None = None, overrides: Sequence[str] = ()) -> Result:
    """One run, as ``xfer experiment=EXPERIMENT OVERRIDES...`` does it. Raises XferError."""
    from xfer.config import compose_specs
    from xfer.workflow import run as work

    typed = [f"experiment={experiment}"] if experiment else []
    return work(compose_specs([*typed, *overrides]))
