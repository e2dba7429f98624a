"""The first predictions as pictures with heat maps: a page beside their table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xfer.core.errors import printable
from xfer.core.live_line import working
from xfer.core.types import Samples
from xfer.report.card import Section
from xfer.report.format import words
from xfer.report.heat import heat_at
from xfer.report.image_tiles import shots
from xfer.report.page import lay_out
from xfer.report.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import nn

    from xfer.core.types import Images, Predictions
    from xfer.report.inputs import Work

_ROOM = 4_000_000
"""Characters of pictures on the page."""


@dataclass(frozen=True)
class _Answered:
    """The images at the positions ``at``: without those that could not be decoded."""

    images: Images
    at: tuple[int, ...]

    def __getitem__(self, index: int) -> Image:
        return self.images[self.at[index]]

    def __len__(self) -> int:
        return len(self.at)


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
    place = {name: i for i, name in enumerate(samples.names)}
    images = _Answered(samples.images, tuple(place[name] for name in answers.names))
    seen = Samples(answers.names, samples.labels[list(images.at)], images, "")
    with working("heat maps"):
        heat = heat_at(net, answers, seen, spec, shown)
        pictures = shots(seen, answers, shown, spec, heat, _ROOM)
    page, which = table.with_suffix(".html"), _which(len(pictures), len(answers.names))
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
        "captions": {},
        "drawn": {},
        "script": "mistakes.js",
    }
    lay_out(page, card, kinds=("html",))
    what = f"heat maps of {which[0].lower()}{which[1:]}" if heat.maps else heat.said
    return [f"{what.rstrip('.')}: {page}"]


def _which(pictures: int, images: int) -> str:
    if pictures == images:
        return "All images" if images > 1 else "The image"
    return f"The first {pictures:,} of {images:,} images"


def _counts(answers: Predictions) -> Table:
    """How many images were taken for each class, the most frequent first."""
    taken = Counter(answers.logits.argmax(axis=1).tolist()).most_common()
    rows = tuple((answers.classes[i], f"{count:,}") for i, count in taken)
    return Table("", ("class", "images"), rows)
