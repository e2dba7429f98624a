"""What the run card shows of answers with several labels an image: pictures and curves. There is
no confusion of classes that do not exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xfer.core.text_columns import Made
from xfer.report import panels
from xfer.report.confidence import bins, label_curves
from xfer.report.image_tiles import MOST, shots, words_of_labels

if TYPE_CHECKING:
    from xfer.core.types import InputSpec, Plain, Predictions, Samples
    from xfer.report.svg import Chart
    from xfer.training.calibrate import BeforeAndAfter


def label_details(
    answers: Predictions,
    samples: Samples,
    spec: InputSpec,
    note: str,
    pair: BeforeAndAfter | None = None,
) -> Plain:
    """The images with a wrong label, the charts of the classes and of the probabilities, and a
    ``note`` on what they are drawn from. ``pair`` are the answers before and after the network was
    calibrated."""
    chart = panels.recall(label_curves(answers), several=True)
    charts = {"classes": (chart,) if chart else (), "confidence": _reliabilities(answers, pair)}
    return {"charts": charts, "notes": [note], **_mistakes(answers, samples, spec)}


def _mistakes(answers: Predictions, samples: Samples, spec: InputSpec) -> Plain:
    """``wrong`` and ``shots`` as :func:`xfer.report.write.answered` has them, the surest first: how
    sure a wrong label is is its probability, or that of its absence."""
    labels, said, shares = answers.labels, answers.said, answers.probabilities
    if labels is None:
        raise ValueError("answers without labels are neither right nor wrong")
    sure = np.where(said, shares, 1 - shares)
    sure[(labels < 0) | (said == (labels == 1))] = -1
    surest, which = sure.max(axis=1), sure.argmax(axis=1)
    wrong = np.flatnonzero(surest >= 0)
    positions = wrong[np.argsort(-surest[wrong], kind="stable")].tolist()

    def row(number: int) -> Plain:
        i = positions[number]
        label, prediction, *_ = words_of_labels(answers, i)
        return {
            "path": answers.names[i],
            "label": label,
            "prediction": prediction,
            "surest": ("" if said[i, which[i]] else "no ") + answers.classes[which[i]],
            "confidence": float(surest[i]),
        }

    seen = {i: (int(which[i]), float(surest[i])) for i in positions[:MOST]}
    pictures = shots(samples, answers, positions, spec, sure=seen)
    return {"wrong": Made(len(positions), row), "shots": pictures, "of_labels": _WRONG}


_WRONG = (
    "An image is here where a known label is wrong: missed, or given without being there. The "
    "confidence is that of the surest wrong one: its probability or, where it is missed, that of "
    "its absence. A question mark is before a label that is unknown."
)


def _reliabilities(answers: Predictions, pair: BeforeAndAfter | None) -> tuple[Chart, ...]:
    """The reliability diagram of all known labels together, of a calibrated network that of before
    as well."""
    drawn = []
    for name, given, note in stages_of(answers, pair, _TOGETHER):
        labels = given.labels
        if labels is None or not (known := labels >= 0).any():
            continue
        counted = bins(given.probabilities[known], labels[known] == 1)
        drawn.append(panels.reliability(counted, None, name, note, panels.OF_LABELS))
    return tuple(drawn)


def stages_of(
    answers: Predictions, pair: BeforeAndAfter | None, note: str
) -> list[tuple[str, Predictions, str]]:
    """What a reliability diagram is drawn of, with its name and a ``note``: the ``answers``, or of
    a calibrated network the ``pair``."""
    if pair is None:
        return [("", answers, note)]
    scaled = f"Each image is scaled by what was fitted without it. {note}"
    after = scaled.strip() if pair.cross_fitted else note
    return [("before calibration", pair.before, note), ("after calibration", pair.after, after)]


_TOGETHER = "All classes together: the tables have each."
