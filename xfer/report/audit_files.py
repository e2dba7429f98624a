"""What the stage ``audit`` leaves: the table, the facts, and the last lines of the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.config.provenance import override_key
from xfer.config.verbs import override, repeatable, shell
from xfer.core.types import Plain, Samples
from xfer.data.image import Files

if TYPE_CHECKING:
    from xfer.report.inputs import Work
    from xfer.training.image_audit import Audited

NEAREST = 3
"""Neighbours of each class that are named for an accused image."""
KINDS = ("label", "duplicate", "outlier", "influence")
_DATA = ("batch_size", "eval_batch_size", "workers", "decoded_gb", "on_bad", "leakage", "sampler")
"""Keys of ``data`` that mean the same for a CSV file, which has the splits that were made."""


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
    listed, judged, classes = reasons(audited), audited.judged, audited.classes
    twin_of: dict[int, int] = {}
    for twin in reversed(audited.twins):
        twin_of |= {twin.image: twin.other, twin.other: twin.image}
    ranked = np.argsort(-judged.p_wrong, kind="stable").tolist()
    rest = [image for image in ranked if image not in listed]
    return [
        {
            "path": audited.names[image],
            "label": classes[audited.labels[image]],
            "suggested": classes[judged.suggested[image]],
            "p_wrong": f"{judged.p_wrong[image]:.4f}",
            "fdr": f"{judged.fdr[image]:.4f}",
            "reason": " ".join(listed.get(image, [])),
            "split": audited.splits[image],
            "twin": audited.names[twin_of[image]] if image in twin_of else "",
            "effect": f"{audited.left_out.effect[image]:.3g}",
            "decision": "accept",
        }
        for image in [*listed, *rest]
    ]


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
        "labels": [accused(image) for image in audited.judged.accused.tolist()],
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
    """What trains on the images as the user decided; ``None`` where they are no files."""
    dataset, specs = work.plan.dataset, work.plan.specs
    if dataset is None or not all(map(_are_files, dataset.splits.values())):
        return None
    data = specs.facts["data"]
    root = data.get("root") or str(Path(data["file"]).parent)
    taken = [
        text
        for text in repeatable(specs.overrides)
        if override_key(text) not in ("stages", "data")
        and (override_key(text).split(".")[0] != "data" or override_key(text)[5:] in _DATA)
    ]
    table = override("data.file", str(work.folder / "audit.csv"))
    return shell(["data=csv", table, override("data.root", root), *taken])


def _are_files(samples: Samples) -> bool:
    """Whether a CSV file can name the images: each is a file of its own."""
    files = samples.images
    return isinstance(files, Files) and all(isinstance(path, Path) for path in files.paths)


def lines(work: Work) -> list[tuple[str, str]]:
    """What the last lines of a run say of its audit."""
    audited = work.audited
    if audited is None:
        return []
    counts = audited.counts
    labels = (
        f"none of {counts['images']} is more likely wrong than right; the highest p_wrong is "
        f"{audited.judged.p_wrong.max():.2f}"
    )
    if audited.blind:
        labels = f"none of {counts['images']} can be judged by these features"
    elif counts["labels"]:
        are = "is" if counts["labels"] == 1 else "are"
        labels = (
            f"{counts['labels']} of {counts['images']} {are} probably wrong; false-discovery rate "
            f"{counts['fdr']:.2f}, which is {counts['fdr'] * counts['labels']:.1f} of them"
        )
    pairs = "1 pair" if counts["duplicates"] == 1 else f"{counts['duplicates']} pairs"
    apart = "; none within a group is listed" if audited.facts["groups"] else ""
    decisive = sum(n > 0 for n in audited.influential.values())
    decide = f"{decisive or 'none'} of them decide{'s' * (decisive < 2)}"
    command = next_command(work)
    audit_csv = work.folder / "audit.csv"
    typed = [("note", f"these images are no files, so that data=csv cannot read {audit_csv}")]
    if command:
        typed = [("decide", f"in {audit_csv}: accept, relabel or drop"), ("next", command)]
    return [
        ("labels", labels),
        ("near-duplicates", f"{pairs}, {counts['across_splits']} across splits{apart}"),
        ("outliers", str(counts["outliers"])),
        (
            "influence",
            f"{counts['influential']} move the answers most; {decide} the class of another image",
        ),
        ("look through", str(work.folder / "audit.html")),
        *typed,
    ]
