"""The first predictions as pictures with heat maps: a page beside their table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import printable
from xfer.core.live_line import working
from xfer.core.types import InputSpec, Predictions, Samples
from xfer.data.image import ImagesAt
from xfer.report.card import Section
from xfer.report.format import words
from xfer.report.heat import Heat, heat_at
from xfer.report.image_tiles import Shot, shots
from xfer.report.page import lay_out
from xfer.report.tables import Table

if TYPE_CHECKING:
    from torch import nn

    from xfer.report.inputs import Work

_ROOM = 4_000_000
"""Characters of pictures on the page."""


def answer_page(
    work: Work, net: nn.Module, samples: Samples, answers: Predictions, table: Path
) -> list[str]:
    """Write the page beside the ``table`` of ``answers``, called as it is, with the first
    ``predict.maps`` images in the table's order; nothing where that is 0. What is to be said of it,
    in lines. Raises OutputError.

    Costs one more pass over those images, and the gradient of what follows the map.
    """
    specs, spec = work.plan.specs, work.plan.card.input
    shown = range(min(specs.predict_maps, len(answers.names)))
    if not shown:
        return []
    first = answers.at(shown)
    wanted = set(first.names)  # a broken image has no answer
    place = {name: i for i, name in enumerate(samples.names) if name in wanted}
    images = ImagesAt(samples.images, [place[name] for name in first.names])
    seen = Samples(first.names, samples.labels[images.at], images, "")
    with working("heat maps"):
        heat, pictures = (_of_labels if answers.task else _of_one)(net, first, seen, spec, shown)
    pictured = len({picture.path for picture in pictures})
    page, which = table.with_suffix(".html"), _which(pictured, len(answers.names))
    said = [f"{which}, in the order of {table.name}.", heat.said]
    if heat.maps and specs.tta != "none":
        said.append(f"The answers are means over views (tta={specs.tta}), the maps of one view.")
    sections = [
        Section("Images", tuple(said), others=tuple(pictures)),
        Section("Answers", tables=(_counts(answers),)),
    ]
    card = {
        "title": f"Predictions: {', '.join(specs.predict_input)}",
        "about": f"by {work.checkpoint() or words(work.plan.card.backbone)}",
        "verdict": [f"{len(answers.names):,} predictions in {table.name}"],
        "command": printable(specs.command),
        "sections": sections,
        "script": "mistakes.js",
    }
    lay_out(page, card, kinds=("html",))
    what = f"heat maps of {which[0].lower()}{which[1:]}" if heat.maps else heat.said
    return [f"{what.rstrip('.')}: {page}"]


def _of_one(
    net: nn.Module, answers: Predictions, seen: Samples, spec: InputSpec, shown: range
) -> tuple[Heat, list[Shot]]:
    """A picture an image, with the map of the class that it is taken for."""
    of = {i: int(answers.logits[i].argmax()) for i in shown}
    heat = heat_at(net, of, seen, spec)
    return heat, shots(seen, answers, shown, spec, heat, _ROOM)


def _of_labels(
    net: nn.Module, answers: Predictions, seen: Samples, spec: InputSpec, shown: range
) -> tuple[Heat, list[Shot]]:
    """A picture for each label that an image is said to have, or for the most probable where it is
    none, with the map of that label; a picture an image where there are no maps."""
    said, shares = answers.said, answers.probabilities
    pairs = [(i, int(c)) for i in shown for c in np.flatnonzero(said[i]) if said[i].any()]
    pairs += [(i, int(shares[i].argmax())) for i in shown if not said[i].any()]
    pairs.sort()
    at = [i for i, _ in pairs]
    images = ImagesAt(seen.images, at)
    each = replace(seen, names=[seen.names[i] for i in at], labels=seen.labels[at], images=images)
    of = {k: c for k, (_, c) in enumerate(pairs)}
    heat = heat_at(net, of, each, spec, _MADE)
    if not heat.maps:
        return heat, shots(seen, answers, shown, spec, room=_ROOM)
    sure = {k: (c, float(shares[i, c])) for k, (i, c) in enumerate(pairs)}
    return heat, shots(each, answers.at(at), range(len(at)), spec, heat, _ROOM, sure)


_MADE = (
    "Each picture is of one label that the image is said to have, and with a question mark of the "
    "most probable one where it is said to have none. Its heat map shows where the network finds "
    "what speaks for that label:"
)


def _which(pictures: int, images: int) -> str:
    if pictures == images:
        return "All images" if images > 1 else "The image"
    return f"The first {pictures:,} of {images:,} images"


def _counts(answers: Predictions) -> Table:
    """How many images were taken for each class, or are said to have each label, the most frequent
    first; and then how many are said to have none."""
    if not answers.task:
        chosen = (block.logits.argmax(axis=1).tolist() for block in answers.blocks())
        return Table("", ("class", "images"), _rows(answers, Counter(chain.from_iterable(chosen))))
    taken, without = Counter[int](), 0
    for block in answers.blocks():
        said = block.said
        taken.update(np.nonzero(said)[1].tolist())
        without += int((~said.any(axis=1)).sum())
    rows = _rows(answers, taken)
    if without:
        rows += (("none", f"{without:,}"),)
    return Table("", ("label", "images"), rows)


def _rows(answers: Predictions, taken: Counter[int]) -> tuple[tuple[str, str], ...]:
    return tuple((answers.classes[i], f"{count:,}") for i, count in taken.most_common())
