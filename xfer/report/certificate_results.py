"""What a certificate promised, and what came of it on images that nothing was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.types import Plain
from xfer.evaluation.conformal import covered, having_labels
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
