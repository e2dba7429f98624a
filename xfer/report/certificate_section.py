"""What a certificate promised, and what came of it on images that nothing was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.types import Plain
from xfer.evaluation.conformal import covered, having_labels, in_words
from xfer.export.stage import unseen_splits
from xfer.weights.formats.checkpoint_format import read_snapshot

if TYPE_CHECKING:
    from xfer.report.inputs import Work

NOT_CHECKED: Plain = {"checked_on": None, "checked": 0, "covered": None, "set_sizes": None}
"""What is said where no labelled images are left that nothing was fitted on."""
_FACTS = ("coverage", "by_class", "fitted_on", "n", "mean_set_size")


def certificate_outcome(work: Work) -> Plain | None:
    """What ``result.json`` says of it; ``None`` without one. ``checked_on`` is the split whose sets
    were held against its labels, test before val, and ``covered`` the share of its ``checked``
    images whose set has the true class, with several labels the mean share of the labels of those
    that have one; ``null`` where no such split was answered."""
    certificate = work.plan.card.certificate
    if certificate is None and work.fitted and work.plan.specs.certificate.coverage:
        # No stage has opened it: the fit is the last one.
        certificate = read_snapshot(work.fitted.checkpoint).card.certificate
    if certificate is None:
        return None
    facts = {key: getattr(certificate, key) for key in _FACTS}
    facts |= NOT_CHECKED
    for name in unseen_splits(work.plan, certificate):
        answers = work.predictions.get(name)
        if answers is None or answers.sets is None or answers.labels is None:
            continue
        sizes = answers.sets[having_labels(answers.labels)].sum(axis=1).tolist()
        facts |= {"checked_on": name, "checked": len(sizes)}
        facts["covered"] = covered(answers.sets, answers.labels)
        facts["set_sizes"] = {str(size): sizes.count(size) for size in sorted({*sizes})}
        break
    return facts


_OF = {"cv": "training images, each held out by a fold", "val": "validation images"}


def promised_lines(result: Plain, several: bool) -> list[str]:
    """The certificate of ``result.json`` in sentences, of ``several`` labels an image or of one;
    none without one."""
    facts = result.get("certificate")
    if not facts:
        return []
    promised = in_words(facts["coverage"], facts["by_class"], several)
    fitted = f"{facts['n']:,} {'labelled ' * several}{_OF.get(facts['fitted_on'], 'images')}"
    first = (
        f"Prediction sets are to have {promised}. They are fitted on {fitted}, and have "
        f"{facts['mean_set_size']:.2f} classes on average there."
    )
    score = (result.get("scores") or {}).get(facts["fitted_on"]) or {}
    if score.get("used_for_selection"):
        first += " These also chose the best epoch, so that sets may cover a little less."
    always = _EMPTY if several else _ALWAYS.format(f"{100 * facts['coverage']:g} %")
    return [first, _checked(facts, several), always, _UNLIKE]


def _checked(facts: Plain, several: bool) -> str:
    if not facts.get("checked_on"):
        return (
            "What they cover was not checked: no labelled images were answered that nothing was "
            "fitted on. Give a test split."
        )
    n, sizes = facts["checked"], facts["set_sizes"]
    counts = ", ".join(f"{count:,} of size {size}" for size, count in sizes.items())
    share, which = f"{100 * facts['covered']:.1f} %", f"images of {facts['checked_on']}"
    have = f"the true class of {share} ({round(facts['covered'] * n):,} of {n:,})"
    if several:
        which, have = f"{which} that have a label", f"{share} of an image's labels on average"
    return f"On the {n:,} {which}, which nothing was fitted on, they have {have}; sets: {counts}."


_ALWAYS = (
    "The most probable class is always in, so that no set is empty: where the network is right "
    "more often than {}, its sets cover more."
)
_EMPTY = (
    "Images without a label are in neither number: every set has all of their labels. A set may be "
    "empty."
)
_UNLIKE = (
    "p_unlike is the share of images like those of training whose features are as far from theirs. "
    "At 0.05 or less the image may be of none of the classes, and its set then says nothing; one "
    "in twenty images that are of them has that as well."
)
