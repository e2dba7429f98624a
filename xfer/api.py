"""xfer from Python: the same runs without a command line, and trained networks as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import nn

    from xfer.core.types import Card, Tta
    from xfer.workflow import Result

    Input = str | Path | Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. ``probabilities`` is by class name, ``path`` for a picture that is
    no file ``image 0``, ``image 1`` and so on. With a certificate ``prediction_set`` names the
    classes in it, and ``p_unlike`` is the p-value of being unlike all training images. With several
    labels an image ``labels`` are those that it is said to have; ``label`` is the most probable."""

    path: str
    label: str
    confidence: float
    probabilities: Mapping[str, float]
    prediction_set: tuple[str, ...] | None = None
    p_unlike: float | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Model:
    """A trained network with its card. ``net`` is in evaluation mode on the CPU."""

    net: nn.Module = field(repr=False)
    card: Card

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.classes

    def predict(self, images: Input | Sequence[Input], tta: Tta = "none") -> list[Prediction]:
        """Answers for files, folders (walked) and glob patterns, sorted within each; or for
        pictures: PIL's, and numpy arrays (height, width[, 3 or 4]) or a batch of them, uint8.

        ``tta`` averages the probabilities over views of each image: ``flip``, ``five_crop``,
        ``ten_crop``. Raises ConfigError for another word, and for crops where there are none.

        Files that are no images are left out and counted in a warning, as the command line does
        it. Raises DataError when one names nothing, or no file is an image.
        """
        from xfer.core.errors import XferError
        from xfer.data.tta import check_tta
        from xfer.evaluation.certificate_answers import certified, distances_at, usable
        from xfer.evaluation.evaluate import Reading, answers
        from xfer.evaluation.predict import find, pictures, warn_of_broken

        inputs: Any = [images] if isinstance(images, str | Path) else images
        named = isinstance(inputs, Sequence) and all(isinstance(i, str | Path) for i in inputs)
        recipe, broken = self.card.input, list[XferError]()
        check_tta(recipe, tta)
        samples = find([str(p) for p in inputs], recipe.range) if named else pictures(inputs)
        reading = Reading(tta=tta, several=bool(self.card.task))
        certificate = usable(self.card.certificate, tta)
        classes = self.card.classes
        with distances_at(self.net, certificate) as distances:
            predicted = answers(self.net, samples, recipe, classes, reading, broken=broken)
        warn_of_broken(broken, len(samples))
        predicted = replace(predicted, task=self.card.task)
        if certificate is not None:
            predicted = certified(predicted, certificate, distances)
        sets, p_unlike = predicted.sets, predicted.p_unlike
        return [
            Prediction(
                path,
                classes[int(row.argmax())],
                float(row.max()),
                dict(zip(classes, row.tolist(), strict=True)),
                None if sets is None else tuple(compress(classes, sets[i])),
                None if p_unlike is None else float(p_unlike[i]),
                tuple(compress(classes, predicted.said[i])) if predicted.task else None,
            )
            for i, (path, row) in enumerate(
                zip(predicted.names, predicted.probabilities, strict=True)
            )
        ]


def load(path: str | Path) -> Model:
    """A checkpoint or the best one of a run folder. Raises WeightsError or SafetyError."""
    from xfer.config import schema
    from xfer.core.errors import WeightsError
    from xfer.core.files import path_problem
    from xfer.models.restore import open_checkpoint

    if problem := path_problem(str(path)):
        raise WeightsError(path, problem, "give the path of a checkpoint", 1)
    net, card = open_checkpoint(Path(path), schema.build)
    return Model(net, card)


def run(experiment: str | None = None, overrides: Sequence[str] = ()) -> Result:
    """One run, as ``xfer experiment=EXPERIMENT OVERRIDES...`` does it. Raises XferError."""
    from xfer.config.hydra import compose_specs
    from xfer.workflow import run as work

    typed = [f"experiment={experiment}"] if experiment else []
    return work(compose_specs([*typed, *overrides]))
