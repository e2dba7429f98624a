"""What is wrong with a fit, judged by its epoch rows and its logits, each with a key to type.

Equal probabilities for every class have a cross-entropy of log(classes), and new heads start from
them. A fit whose loss is above that has made the network worse than guessing.

All of it is a function of the rows that the resume file keeps, so that a run that was killed and
resumed says what a whole one says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from xfer.core.log import log
from xfer.core.types import Plain, Predictions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from xfer.config.specs import Specs
    from xfer.plan.plan import Plan

HIGHEST_RATE = 10.0
"""The highest rate that the range test tries."""
_ABOVE = 1.01  # times the loss of guessing: closer to it, a fit has not begun to learn
_FAR_ABOVE = 2.0  # times it, in the mean over the first epoch of a head that began there
_RISE = 1.1, 0.05  # times the first epoch's loss, and that share of guessing's above it
_MOST_SATURATED = 0.1
_MARGIN = 4.0  # by which a proposed rate is below the one at which the loss reaches guessing's


@dataclass(frozen=True)
class Terms:
    """What a fit is judged by: the number of classes, ``optim.lr`` (``None`` for a solver without
    a rate), the training loss of guessing where it is not log(classes), whether the head began
    there, and whether it is ``calibrated`` after the fit, which the losses of its rows are not."""

    classes: int
    lr: float | None
    training: float | None = None
    fresh: bool = True
    calibrated: bool = False

    @property
    def when(self) -> str:
        """What tells the losses of the rows from those that evaluation scores."""
        return " before calibration" if self.calibrated else ""

    @property
    def guessing(self) -> float:
        """The cross-entropy of equal probabilities."""
        return math.log(self.classes)

    @property
    def trained(self) -> float:
        """The training loss of equal probabilities."""
        return self.guessing if self.training is None else self.training


def terms(plan: Plan) -> Terms:
    """Those of a planned fit."""
    specs, labels = plan.specs, plan.split("train").labels
    fresh = not hasattr(specs.head, "aliases")  # else its rows may come from the source
    rate = None if specs.optim.solves else specs.optim.rate
    count, guessing = specs.task.guessing(specs.loss, labels, len(plan.card.classes))
    return Terms(count, rate, guessing, fresh, plan.calibration.method != "none")


def warn(said: list[str], lines: Iterable[str]) -> None:
    """Log each of ``lines`` as a warning, and keep it in ``said``."""
    for line in lines:
        log.warning(line)
        said.append(line)


def alarm(rows: Sequence[Plain], terms: Terms) -> str | None:
    """A line for the epoch that ``rows`` end with, if the rate is seen to be too high there for
    the first time."""
    if _too_fast(rows[:-1], terms) or not (row := _too_fast(rows, terms)):
        return None
    what = f"the training loss is {row['train_loss']:.3g}"
    return f"epoch {row['epoch']}: {what}; {_guess(terms)}. {_slower(rows, terms)}"


def warnings_of(rows: Sequence[Plain], terms: Terms, best: int | None = None) -> list[str]:
    """What is wrong with a finished fit, ``best`` its best epoch (from 1); empty when it is well.

    A row has ``epoch``, ``train_loss``, and the plain cross-entropy ``val_loss``, which is ``None``
    where there are no validation images. Of a solved head the rows are strengths of its penalty,
    and the chosen one alone is judged: the others are not in the checkpoint.
    """
    if terms.lr is None:
        return _of_solved(next((row for row in rows if row["epoch"] == best), rows[-1]), terms)
    last, problems = rows[-1], _risen(rows, terms)
    most = _ABOVE * terms.guessing
    if last["train_loss"] > _most_at_the_end(rows, terms):
        problems.append(f"the training loss ends at {last['train_loss']:.3g}")
    if _val_loss(last) > most:
        problems.append(f"the validation loss{terms.when} ends at {last['val_loss']:.3g}")
    for row in rows[:-1]:
        if row["epoch"] == best and _val_loss(row) > most:
            problems.append(f"that of the best epoch, {best}, is {row['val_loss']:.3g}")
    if problems:
        what = f"the fit went wrong: {', '.join(problems)}"
        return [f"{what}; {_guess(terms)}. {_remedy(rows, terms)}"]
    if terms.lr > HIGHEST_RATE:
        return [
            f"optim.lr={terms.lr:g} is above {HIGHEST_RATE:g}, the highest rate that lr_find "
            "tries: 'stages=[lr_find]' proposes one"
        ]
    return []


def _most_at_the_end(rows: Sequence[Plain], terms: Terms) -> float:
    """The highest loss that a training may end with. It is a mean over the last epoch, in which
    the weights have moved: the validation loss is measured where they came to, and of an only epoch
    the mean says how it began."""
    if _learned(rows[-1], terms):
        return math.inf
    return (_ABOVE if len(rows) > 1 else _FAR_ABOVE) * terms.trained


def _learned(row: Plain, terms: Terms) -> bool:
    """Whether validation images are answered better than by guessing; not where there are none."""
    return -math.inf < _val_loss(row) < terms.guessing


def _of_solved(row: Plain, terms: Terms) -> list[str]:
    losses = (
        ("training", float(row["train_loss"]), terms.trained),
        ("validation", _val_loss(row), terms.guessing),
    )
    above = [
        f"the {on} loss{terms.when} is {loss:.3g}"
        for on, loss, most in losses
        if loss > _ABOVE * most
    ]
    if not above:
        return []
    return [
        f"the solved head is worse than guessing: {', '.join(above)}; {_guess(terms)}. Look at the "
        "images and labels of every class: the validation images may be unlike the training images"
    ]


def _val_loss(row: Plain) -> float:
    """The validation loss; of no validation images one that nothing is wrong with."""
    return -math.inf if row["val_loss"] is None else float(row["val_loss"])


def saturated(logits: npt.NDArray[np.float32]) -> int:
    """How many rows of ``logits`` (n, classes) have a float32 softmax with a one in it."""
    import numpy as np

    z = logits.astype(np.float32)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    # The largest is exp(0): its probability is one where the others add nothing to it.
    return int((z.sum(axis=1, dtype=np.float32) == 1).sum())


def saturation(split: str, answers: Predictions, specs: Specs) -> list[str]:
    """A remark on a split of which so many images are saturated that its probabilities say little
    about how sure the network is; with what bounds them where ``specs`` train it step by step."""
    count = 0 if answers.task else saturated(answers.logits)
    if count <= _MOST_SATURATED * len(answers.logits):
        return []
    have = "has" if count == 1 else "have"
    what = (
        f"{count} of {len(answers.logits)} {split} images {have} a float32 probability of exactly "
        "1: the logits are too large"
    )
    if specs.optim.solves or "fit" not in specs.stages:
        return [f"{what} to say how sure the network is"]
    return [f"{what}. A lower optim.lr makes them smaller, loss=smoothed bounds them"]


def _too_fast(rows: Sequence[Plain], terms: Terms) -> Plain | None:
    """The epoch in which a rate that is too high shows: the loss is far above that of the first
    batch, which a new head begins with, or rises where it is above guessing."""
    if not rows:
        return None
    if terms.fresh and rows[0]["train_loss"] > _FAR_ABOVE * terms.trained:
        return rows[0]
    for before, row in pairwise(rows):
        if row["train_loss"] > max(_ABOVE * terms.trained, before["train_loss"]):
            return row
    return None


def _risen(rows: Sequence[Plain], terms: Terms) -> list[str]:
    first, last = rows[0]["train_loss"], rows[-1]["train_loss"]
    if row := _too_fast(rows, terms):
        return [f"the training loss was {row['train_loss']:.3g} in epoch {row['epoch']}"]
    if last > max(_RISE[0] * first, first + _RISE[1] * terms.trained):
        return [f"the training loss rises from {first:.3g} to {last:.3g}"]
    return []


def _guess(terms: Terms) -> str:
    return f"guessing among {terms.classes} classes has {terms.guessing:.3g}"


def _remedy(rows: Sequence[Plain], terms: Terms) -> str:
    lowest = min(rows, key=_val_loss)
    if _peak(rows) > _ABOVE * terms.trained or _risen(rows, terms):
        return _slower(rows, terms)
    if _learned(lowest, terms) and lowest is not rows[-1]:
        return (
            f"It learned the training images by heart: trainer.max_epochs={lowest['epoch']} ends "
            "where the validation loss was lowest"
        )
    return (
        f"{_slower(rows, terms)}. Where that changes nothing, the validation images or their "
        "labels are unlike the training images"
    )


def _slower(rows: Sequence[Plain], terms: Terms) -> str:
    """A rate to type. A loss far above guessing's grows as the rate does, so that their ratio
    tells how far the rate must come down."""
    if terms.lr is None:
        raise ValueError("a solver has no rate that could be too high")
    ratio = _peak(rows) / terms.trained
    # Where the training loss shows no such thing, a tenth is the usual next try.
    rate = terms.lr / (_MARGIN * ratio if ratio > _ABOVE else 10)
    power = math.floor(math.log10(rate))
    rounded = float(f"{int(rate / 10.0**power)}e{power}")  # down to one digit
    return (
        f"optim.lr={terms.lr:g} is too high: try optim.lr={rounded:g}, or let "
        "'stages=[lr_find]' propose a rate"
    )


def _peak(rows: Sequence[Plain]) -> float:
    return max(float(row["train_loss"]) for row in rows)
