"""What the stage ``audit`` leaves: the table, the facts, and the last lines of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xfer.config.provenance import override_key
from xfer.config.verbs import override, repeatable, shell
from xfer.core.types import Array, Plain
from xfer.data.image import are_files
from xfer.evaluation.multilabel_predictions import labels_cell, sign_for
from xfer.evaluation.multilabel_wrong_labels import JudgedLabels
from xfer.evaluation.wrong_labels import Judged

if TYPE_CHECKING:
    from xfer.report.inputs import Work
    from xfer.training.image_audit import Audited

NEAREST = 3
"""Neighbours of each class that are named for an accused image."""
KINDS = ("label", "duplicate", "outlier", "influence")
_DATA = frozenset(
    "batch_size eval_batch_size workers decoded_gb on_bad leakage sampler range "
    "folds repeats split_seed".split()
)
"""Keys of ``data`` that mean the same for a CSV file, which has the splits that were made."""
_GROUP = "group"
"""The column of the groups, where images have some."""


def reasons(audited: Audited) -> dict[int, list[str]]:
    """The kinds by which each image is listed, in the order in which it is worth a look."""
    listed: dict[int, list[str]] = {}
    twins = [image for twin in audited.twins for image in (twin.image, twin.other)]
    groups: tuple[Iterable[int], ...] = (
        audited.judged.accused.tolist(),
        twins,
        audited.outliers.tolist(),
        audited.influential,
    )
    for kind, images in zip(KINDS, groups, strict=True):
        for image in images:
            kinds = listed.setdefault(image, [])
            if kind not in kinds:
                kinds.append(kind)
    return listed


def table(audited: Audited) -> list[Plain]:
    """The rows of ``audit.csv``: every image, those that are listed first, then the others from
    the label that is most likely wrong on."""
    listed, judged = reasons(audited), audited.judged
    twin_of: dict[int, int] = {}
    for twin in reversed(audited.twins):
        twin_of |= {twin.image: twin.other, twin.other: twin.image}
    ranked = np.argsort(-judged.p_wrong, kind="stable").tolist()
    rest = [image for image in ranked if image not in listed]
    return [
        {
            "path": audited.names[image],
            "label": _written(audited, audited.labels[image]),
            "suggested": _written(audited, judged.suggested[image]),
            **suspect_of(audited, image),
            "p_wrong": f"{judged.p_wrong[image]:.4f}",
            "fdr": f"{judged.fdr[image]:.4f}",
            "reason": " ".join(listed.get(image, [])),
            "split": audited.splits[image],
            **({_GROUP: audited.groups[image]} if audited.groups else {}),
            "twin": audited.names[twin_of[image]] if image in twin_of else "",
            "effect": f"{audited.left_out.effect[image]:.3g}",
            "decision": "accept",
        }
        for image in [*listed, *rest]
    ]


def _written(audited: Audited, label: Any) -> str:
    """A class, or several labels, as a cell of the table."""
    classes = audited.classes
    return labels_cell(label, classes, sign_for(classes)) if audited.several else classes[label]


def facts(audited: Audited) -> Plain:
    """What ``audit.json`` holds: the counts, how they came about, and each list."""
    names, classes = audited.names, audited.classes
    judged, effect = audited.judged, audited.left_out.effect

    def accused(image: int) -> Plain:
        label, other = int(audited.labels[image]), int(judged.suggested[image])
        return {
            "path": names[image],
            "split": audited.splits[image],
            "label": classes[label],
            "suggested": classes[other],
            "p_wrong": float(judged.p_wrong[image]),
            "fdr": float(judged.fdr[image]),
            "effect": float(effect[image]),
            "nearest": {
                classes[of]: [names[i] for i in audited.like(image, of, NEAREST)]
                for of in (label, other)
            },
        }

    return {
        **audited.facts,
        "counts": audited.counts,
        "features": audited.features,
        "labels": facts_of(audited, NEAREST)
        if audited.several
        else [accused(image) for image in audited.judged.accused.tolist()],
        "duplicates": [
            {
                "path": names[twin.image],
                "split": audited.splits[twin.image],
                "other": names[twin.other],
                "other_split": audited.splits[twin.other],
                "cosine": None if twin.cosine != twin.cosine else twin.cosine,
                "how": twin.how,
            }
            for twin in audited.twins
        ],
        "outliers": [
            {"path": names[image], "split": audited.splits[image]}
            for image in audited.outliers.tolist()
        ],
        "influence": [
            {"path": names[image], "effect": float(effect[image]), "changed": changed}
            for image, changed in audited.influential.items()
        ],
    }


def next_command(work: Work) -> str | None:
    """What trains on the images as the user decided; ``None`` where ``data=csv`` reads no table of
    them, see :func:`unread`."""
    dataset, specs = work.plan.dataset, work.plan.specs
    if dataset is None or unread(work):
        return None
    data = specs.facts["data"]
    root = data.get("root") or str(Path(data["file"]).parent)
    # The parts of one fold are the splits of the table.
    same = _DATA - {"folds", "repeats"} if data.get("fold") is not None else _DATA
    taken = [
        text
        for text in repeatable(specs.overrides)
        if override_key(text) not in ("stages", "data")
        and (override_key(text).split(".")[0] != "data" or override_key(text)[5:] in same)
    ]
    grouped = [override("data.group", _GROUP)] if data.get("group") else []
    table = override("data.file", str(work.folder / "audit.csv"))
    sign = read_sign(dataset.classes) if work.plan.specs.task.several else None
    between = [override("data.separator", sign)] if sign and sign != "|" else []
    return shell(["data=csv", table, override("data.root", root), *between, *grouped, *taken])


def unread(work: Work) -> str | None:
    """Why ``data=csv`` cannot read the table, in words."""
    dataset = work.plan.dataset
    if dataset is None or not all(are_files(s.images) for s in dataset.splits.values()):
        return "these images are no files"
    if work.plan.specs.task.several and read_sign(dataset.classes) is None:
        return "names of labels hold each sign that may be between them, or begin with ?"
    return None


def of_known(audited: Audited) -> str:
    """Of how many labels the accused ones are."""
    counts = audited.counts
    if not audited.several:
        return str(counts["images"])
    return f"{counts['known']} known labels of {counts['images']} images"


def lines(work: Work) -> list[tuple[str, str]]:
    """What the last lines of a run say of its audit."""
    audited = work.audited
    if audited is None:
        return []
    counts, known = audited.counts, of_known(audited)
    labels = (
        f"none of {known} is more likely wrong than right; the highest p_wrong is "
        f"{audited.judged.p_wrong.max():.2f}"
    )
    if audited.blind:
        labels = f"none of {known} can be judged by these features"
    elif counts["labels"]:
        are = "is" if counts["labels"] == 1 else "are"
        unsure = isinstance(audited.judged, Judged) and not audited.judged.shown
        likely = "perhaps" if unsure else "probably"
        labels = (
            f"{counts['labels']} of {known} {are} {likely} wrong; false-discovery rate "
            f"{counts['fdr']:.2f}, which is {counts['fdr'] * counts['labels']:.1f} of them"
        )
    pairs = "1 pair" if counts["duplicates"] == 1 else f"{counts['duplicates']} pairs"
    apart = "; none within a group is listed" if audited.facts["groups"] else ""
    decisive = sum(n > 0 for n in audited.influential.values())
    decide = f"{decisive or 'none'} of them decide{'s' * (decisive < 2)}"
    what = "a label" if audited.several else "the class"
    command = next_command(work)
    audit_csv = work.folder / "audit.csv"
    typed = [("note", f"{unread(work)}, so that data=csv cannot read {audit_csv}")]
    if command:
        typed = [("decide", f"in {audit_csv}: accept, relabel or drop"), ("next", command)]
    return [
        ("labels", labels),
        ("near-duplicates", f"{pairs}, {counts['across_splits']} across splits{apart}"),
        ("outliers", str(counts["outliers"])),
        (
            "influence",
            f"{counts['influential']} move the answers most; {decide} {what} of another image",
        ),
        ("look through", str(work.folder / "audit.html")),
        *typed,
    ]


_READ = "|;/+"
"""What ``data.separator`` may say to be between the labels of an image."""


class Accusation(NamedTuple):
    """One label that an image ``has`` by the data, or lacks, and ``probability`` that it has it by
    the answer to it; ``wrong`` is how likely the data is wrong, ``fdr`` the rate of the list down
    to here, ``effect`` what the answers for the label owe to the image."""

    label: int
    name: str
    has: bool
    probability: float
    wrong: float
    fdr: float
    effect: float


def accusations(audited: Audited) -> dict[int, list[Accusation]]:
    """The labels that are accused of each image, both the most suspect first; none where an image
    has one label."""
    judged, listed = audited.judged, dict[int, list[Accusation]]()
    if not isinstance(judged, JudgedLabels):
        return listed
    for image, label in judged.pairs:
        at = image, label
        accusation = Accusation(
            label,
            audited.classes[label],
            bool(judged.labels[at] == 1),
            float(judged.has[at]),
            float(judged.wrong[at]),
            float(judged.down_to[at]),
            float(audited.left_out.effects[at]),
        )
        listed.setdefault(image, []).append(accusation)
    return listed


def facts_of(audited: Audited, near: int) -> list[Plain]:
    """What ``audit.json`` says of each accusation, with the ``near`` images that are most like it
    and have the label, and those that lack it."""
    rows = [(image, one) for image, some in accusations(audited).items() for one in some]
    rows.sort(key=lambda row: -row[1].wrong)
    return [
        {
            "path": audited.names[image],
            "split": audited.splits[image],
            "label": one.name,
            "has": one.has,
            "probability": one.probability,
            "p_wrong": one.wrong,
            "fdr": one.fdr,
            "effect": one.effect,
            "nearest": {
                word: [audited.names[i] for i in audited.like(image, one.label, near, has)]
                for word, has in (("with", 1), ("without", 0))
            },
        }
        for image, one in rows
    ]


def suspect_of(audited: Audited, image: int) -> dict[str, str]:
    """The column ``suspect`` of an image that may have several labels: the one that ``p_wrong`` is
    of; empty where none is known."""
    judged = audited.judged
    if not isinstance(judged, JudgedLabels):
        return {}
    known = judged.p_wrong[image] > 0
    return {"suspect": audited.classes[judged.worst[image]] if known else ""}


def in_words(labels: Array, classes: Sequence[str]) -> str:
    """The labels of an image for people, a question mark before those that are unknown."""
    return labels_cell(labels, classes, ", ") or "none"


def read_sign(classes: Sequence[str]) -> str | None:
    """The sign between labels in ``audit.csv``; ``None`` where ``data=csv`` cannot read these names
    out of one cell."""
    sign = sign_for(classes)
    odd = [name for name in classes if name != name.strip() or name.startswith("?")]
    return sign if sign in _READ and not odd else None
