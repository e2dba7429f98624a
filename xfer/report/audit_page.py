"""The stage ``audit`` as ``audit.html``: a page to look through, which fetches nothing.

Each listed image stands beside its near-duplicate and its nearest neighbours of its own class and
of the class that it is most like else; where an image has several labels, those that have a label
in question and those that lack it. What the user decides there is saved as the CSV file that
``data=csv`` reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from xfer.core.errors import plural, printable
from xfer.core.files import write_json, write_rows
from xfer.core.live_line import working
from xfer.core.types import Plain
from xfer.data.preprocess import fit_to_size
from xfer.evaluation.multilabel_predictions import sign_for
from xfer.report.audit_files import (
    KINDS,
    NEAREST,
    Accusation,
    accusations,
    facts,
    in_words,
    next_command,
    of_known,
    reasons,
    table,
    unread,
)
from xfer.report.card import about, data_name
from xfer.report.image_tiles import data_uri, jpeg
from xfer.report.page import lay_out
from xfer.training.fit_health import warn

if TYPE_CHECKING:
    from markupsafe import Markup

    from xfer.report.inputs import Work
    from xfer.training.image_audit import Audited

MOST, ROOM = 300, 6_000_000
"""At most so many images on the page, and so many characters of pictures."""
_LARGE, _SMALL = 160, 72
_NAMES = {
    "label": "label looks wrong",
    "duplicate": "near-duplicate",
    "outlier": "least like any others",
    "influence": "moves the answers",
}


@dataclass(frozen=True)
class Thumbnail:
    """One picture of the page, as the network sees it; ``size`` in pixels."""

    path: str
    uri: Markup
    size: tuple[int, int]


@dataclass(frozen=True)
class Strip:
    """The nearest images that are ``what`` (labelled, with, without) a ``label``; so many of them
    are ``sisters``, which are of the group of the image."""

    what: str
    label: str
    shots: tuple[Thumbnail, ...]
    sisters: int


@dataclass(frozen=True)
class Find:
    """One listed image: its ``row`` in the table, its ``label`` in words and the class that it
    ``looks`` like, or the ``accusations`` where it may have several, its ``kinds``, what is said of
    it in ``lines``, and the images nearest to it."""

    row: int
    path: str
    split: str
    label: str
    looks: str | None
    accusations: tuple[Accusation, ...]
    kinds: tuple[str, ...]
    lines: tuple[str, ...]
    shot: Thumbnail
    twin: Thumbnail | None
    near: tuple[Strip, ...]


def audit(work: Work) -> None:
    """The stage: look at all images of the run, and write down what was noticed. Raises as
    :func:`xfer.training.image_audit.audit`."""
    from xfer.training import image_audit

    with working("audit"):
        audited = image_audit.audit(work.plan)
        work.audited, work.device = audited, audited.device
        warn(work.warnings, audited.warnings)
        rows = table(audited)
        write_rows(work.folder / "audit.csv", rows)
        write_json(work.folder / "audit.json", facts(audited))
        write_page(work, audited, rows)


def write_page(work: Work, audited: Audited, rows: list[Plain]) -> None:
    """Write ``audit.html``; ``rows`` are those of ``audit.csv``. Raises OutputError."""
    listed = reasons(audited)
    finds = list(_finds(work, audited, listed))
    planned, result = work.plan.facts, {"experiment": work.plan.specs.experiment}
    more = len(listed) - len(finds)
    card = {
        "title": f"Audit of {data_name(result, planned)}",
        "about": about(result, planned),
        "verdict": _verdict(audited),
        "command": printable(next_command(work) or f"{unread(work)}: data=csv reads none"),
        "place": printable(work.folder / "audit.csv"),
        "sections": (),
        "script": "audit.js",
        "meanings": _meanings(audited),
        "left_out": f"Listed in audit.csv alone: {plural(more, 'more image')}." if more else "",
        "kinds": [
            (kind, _NAMES[kind], sum(kind in find.kinds for find in finds)) for kind in KINDS
        ],
        "classes": audited.classes,
        "several": audited.several,
        "finds": finds,
        "table": _embedded(audited, rows),
    }
    lay_out(work.folder / "audit", card, "audit", ("html",))


def _embedded(audited: Audited, rows: list[Plain]) -> Markup:
    """The whole table as JSON inside the page, from which the script saves it."""
    from markupsafe import Markup

    head = list(rows[0])
    whole = {
        "head": head,
        "rows": [[row[name] for name in head] for row in rows],
        "classes": audited.classes,
        "sign": sign_for(audited.classes) if audited.several else None,
    }
    # Nothing in it may end the script element that holds it.
    return Markup(json.dumps(whole, separators=(",", ":")).replace("<", "\\u003c"))


def _verdict(audited: Audited) -> list[str]:
    counts = audited.counts
    are = "is" if counts["labels"] == 1 else "are"
    known = of_known(audited) if audited.several else f"{counts['images']} labels"
    lead = f"{counts['labels']} of {known} {are} probably wrong"
    if not counts["labels"]:
        lead = f"None of {known} is more likely wrong than right"
    of_labels = ""
    if audited.blind:
        lead = "No label can be judged by these features"
    elif counts["labels"]:
        right = f"{100 * counts['fdr']:.0f} %"
        of_labels = f"Of these, {right} are expected to be right (the false-discovery rate). "
    if not audited.blind:
        of_labels += (
            f"In all, {100 * counts['rate']:.1f} % of the labels are estimated to be wrong. "
        )
    return [
        lead,
        f"{of_labels}Pairs that are nearly the same: {counts['duplicates']}, across splits: "
        f"{counts['across_splits']}. Images that are least like any others: {counts['outliers']}.",
        *audited.warnings,
    ]


def _meanings(audited: Audited) -> list[tuple[str, str]]:
    return [
        (
            _NAMES["label"],
            "more likely wrong than right, by the answers of a ridge regression on the network's "
            "features that had not seen the image"
            + (" nor others of its group" if audited.groups else "")
            + ("; each label is a question of its own" if audited.several else ""),
        ),
        (
            _NAMES["duplicate"],
            f"features whose cosine is {audited.facts['near_duplicate']['cosine']:.3f} or more, or "
            "files that the data's own check calls the same",
        ),
        (
            _NAMES["outlier"],
            "the hundredth part, three at least, that is least like its fifth-nearest image, and "
            "what is far off",
        ),
        (
            _NAMES["influence"],
            "the images whose removal would move the answers of that regression most: the "
            "effect, the root of the mean square of how far they move, is exact, as if it had been "
            "fitted again without the image",
        ),
    ]


def _finds(work: Work, audited: Audited, listed: dict[int, list[str]]) -> Iterator[Find]:
    """The listed images with their pictures, as many as there is room for."""
    dataset, spec = work.plan.dataset, work.plan.card.input
    if dataset is None:
        return
    places = [
        (samples.images, i) for samples in dataset.splits.values() for i in range(len(samples))
    ]

    @cache
    def thumbnail(image: int, side: int) -> Thumbnail:
        images, i = places[image]
        picture = fit_to_size(images[i], spec)
        picture.thumbnail((side, side))
        return Thumbnail(audited.names[image], data_uri(jpeg(picture, 72)), picture.size)

    def strip(what: str, label: int, of: int, has: int = 1) -> Strip:
        images = audited.like(of, label, NEAREST, has)
        shots = tuple(thumbnail(i, _SMALL) for i in images)
        groups = audited.groups
        sisters = sum(groups[i] == groups[of] for i in images) if groups else 0
        return Strip(what, audited.classes[label], shots, sisters)

    room, twin_of, accused = ROOM, dict[int, int](), accusations(audited)
    for twin in reversed(audited.twins):
        twin_of |= {twin.image: twin.other, twin.other: twin.image}
    for row, (image, kinds) in enumerate(listed.items()):
        pair, labels = twin_of.get(image), audited.labels[image]
        if audited.several:
            label, looks = in_words(labels, audited.classes), None
            near = [
                strip(what, one.label, image, has)
                for one in accused.get(image, ())
                for what, has in (("with", 1), ("without", 0))
            ]
        else:
            given, other = int(labels), int(audited.judged.suggested[image])
            label, looks = audited.classes[given], audited.classes[other]
            near = [strip("labelled", of, image) for of in (given, other)]
        copy = thumbnail(pair, _SMALL) if pair is not None else None
        shot = thumbnail(image, _LARGE)
        pictures = [shot, *(one for each in near for one in each.shots), *([copy] if copy else [])]
        room -= sum(len(one.uri) for one in pictures)
        if row >= MOST or room < 0:
            return
        yield Find(
            row=row,
            path=audited.names[image],
            split=audited.splits[image],
            label=label,
            looks=looks if "label" in kinds else None,
            accusations=tuple(accused.get(image, ())),
            kinds=tuple(kinds),
            lines=tuple(_lines(audited, image, kinds, pair)),
            shot=shot,
            twin=copy,
            near=tuple(near),
        )


def _lines(audited: Audited, image: int, kinds: list[str], pair: int | None) -> Iterator[str]:
    if "label" in kinds and not audited.several:
        p_wrong, fdr = audited.judged.p_wrong[image], audited.judged.fdr[image]
        yield (
            f"label looks wrong: probability {p_wrong:.2f}; of the list down to here "
            f"{100 * fdr:.0f} % are expected to be right"
        )
    if pair is not None:
        yield f"near-duplicate of {audited.names[pair]} ({audited.splits[pair]})"
    if "outlier" in kinds:
        yield "least like any others"
    if image in audited.influential:
        changed = audited.influential[image]
        what = "labels" if audited.several else "class"
        yield (
            f"moves the answers: without it {changed} other image{'s' * (changed != 1)} would "
            f"change {what}; effect {audited.left_out.effect[image]:.3g}"
        )
