"""What more images are worth, in sentences, in tables, as a drawing and as a page of its own."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from xfer.core.errors import plural
from xfer.core.files import write_json, write_text
from xfer.core.types import Plain
from xfer.evaluation.table_file import cell
from xfer.report.card import Section
from xfer.report.format import size
from xfer.report.page import lay_out
from xfer.report.svg import HIGH, WIDE, Chart, Panel, label
from xfer.report.tables import Table

_SCORES = {
    "accuracy": ("Accuracy", "share right", "right"),
    "map": ("mAP", "mAP", "mAP"),
    "ap": ("Average precision", "average precision", "average precision"),
}
"""What a curve is of, by its key: at the head of a sentence, of a chart, of a column."""
_DRAWN = 6  # classes with a chart of their own: those that are answered worst
_MAP_METHOD = (
    "The answers of a repeat are ranked label by label; the curve is of the mean of the average "
    "precisions. "
)
_SOON = 1.5  # times the images that there are
_STYLE = """svg{background:#fff;font:12px system-ui,"Segoe UI","DejaVu Sans",sans-serif}
text{fill:#1f2328}.soft{fill:#59626c}.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:#dde1e6}.dash{stroke:#8a939d;stroke-dasharray:4 3}.ideal{stroke:#1f2328;
stroke-width:1.2;stroke-dasharray:4 3}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.val{stroke:#0072b2}.line.train{stroke:#c24e00;stroke-dasharray:7 3}.dot{stroke:none}
.dot.train{fill:#c24e00}.dot.val{fill:#0072b2}.ring{fill:#fff;stroke-width:2.5}.heat{fill:#0072b2}"""


def write_worth(folder: Path, facts: Plain, title: str, command: str) -> list[str]:
    """Write ``worth.json``, ``worth.csv``, ``figures/worth.svg`` and the page ``worth.html`` (and
    ``.md``) into ``folder``; the sentences that say it. Raises OutputError."""
    said = sentences(facts)
    write_json(folder / "worth.json", {**facts, "sentences": said})
    write_text(folder / "worth.csv", _table_text(facts))
    chart = drawn(facts, "all classes", facts["images"])
    (folder / "figures").mkdir(exist_ok=True)
    write_text(folder / "figures" / "worth.svg", alone(chart))
    lay_out(
        folder / "worth",
        {
            "title": f"What more images are worth: {title}",
            "about": (
                f"{facts['images']:,} training images, {len(facts['classes']):,} classes, "
                f"{facts['width']:,} features of {facts.get('backbone') or 'the backbone'}"
            ),
            "verdict": said,
            "command": command,
            "sections": _sections(facts, chart),
        },
    )
    return said


def summary(facts: Plain, said: Sequence[str]) -> Plain:
    """What ``result.json`` says under ``worth``: all but the points of the curves."""

    def without_points(row: Plain) -> Plain:
        return {key: row[key] for key in row if key not in ("curve", "measured", "by_class")}

    by_class = {name: without_points(row) for name, row in facts["by_class"].items()}
    return {**without_points(facts), "by_class": by_class, "sentences": list(said)}


def sentences(facts: Plain) -> list[str]:
    """What the curve says, a line each: where it stands, what 100 more images of each class bring,
    where the frozen backbone ends, when to unfreeze or take another one, and the check."""
    now, more, limit = facts["now"], facts["more"], facts["limit"]
    name, several = facts.get("backbone") or "backbone", _several(facts)
    added = f"{more['per_class']} more images of each class"
    scores = f"be right on {_share(now)} of"
    if several:
        added = (
            f"{more['images'] - facts['images']:,} more images, which have each label "
            f"{plural(more['per_class'], 'time')} on average,"
        )
        scores = f"have a mean average precision (mAP) of {_share(now)} on"
    lines = [
        f"{added} are expected to bring {_points(more['gain'])}",
        f"A linear head on the frozen {name}, solved on all {facts['images']:,} training images, "
        f"is expected to {scores} new images",
        f"The frozen {name} is expected to end at {'a mAP of ' * several}{_share(limit)}, however "
        "many images there are",
        _advice(facts),
        *_by_class(facts),
    ]
    if (largest := facts["largest_subsample"]) < 0.7 * facts["images"]:
        lines.append(
            f"The curve is measured on up to {largest:,} of {facts['images']:,} images "
            f"({size(facts['memory_bytes'])} at a time), and extrapolated from there"
        )
    return [*lines, _checked(facts["check"])]


def _score(row: Plain) -> str:
    """The key of what a curve is of: ``accuracy``, ``map`` or ``ap``."""
    return next(key for key in _SCORES if key in row["more"])


def _several(facts: Plain) -> bool:
    return _score(facts) == "map"


def _advice(facts: Plain) -> str:
    """When to unfreeze or take another backbone, and when to look for images first."""
    enough, images, part = facts["enough"], facts["images"], facts["removable"]
    errors = "what the mAP lacks today" if _several(facts) else "today's errors"
    removes = (
        f"more images alone can remove {100 * part['value']:.0f} % of {errors} "
        f"(95 % band {100 * part['low']:.0f} to {100 * part['high']:.0f})"
    )
    ways = "unfreeze (freeze=lp_ft) or take another backbone"
    if enough is None:
        return (
            f"Collect images first: {removes}, and twice as many keep bringing half a point or more"
        )
    if enough <= _SOON * images:
        return f"To do better, {ways}: twice as many images bring half a point or less; {removes}"
    return (
        f"Collect images first: {removes}; from about {enough:,} training images on, twice as many "
        f"bring less than half a point: then {ways}"
    )


def _by_class(facts: Plain) -> Iterator[str]:
    """The class that gains most, where its band is apart from that of every other."""
    gains = {name: row["more"]["gain"] for name, row in facts["by_class"].items()}
    name = max(gains, key=lambda key: gains[key]["value"])
    others = [gain["high"] for key, gain in gains.items() if key != name]
    if others and gains[name]["low"] > max(others):
        yield f"Of the classes, '{name}' gains most: {_points(gains[name])}"


def _checked(check: Plain) -> str:
    said = f"{100 * check['accuracy']:.1f} % are right" if "accuracy" in check else ""
    if "map" in check:
        if check["map"] is None:
            return "No check: of no label the validation images have some with it and some without"
        of = "1 label" if check["labels"] == 1 else f"{check['labels']} labels"
        said = f"the mAP of {of} is {100 * check['map']:.1f} %"
    verdict = "inside the band" if check["inside"] else "OUTSIDE the band"
    expected = check["expected"]
    why = "" if check["inside"] else ": validation images may be of another kind than training ones"
    return (
        f"Check: on the {check['judged']:,} validation images, which the curve has not seen, "
        f"{said}, {verdict} that so many images allow, "
        f"{100 * expected['low']:.1f} to {100 * expected['high']:.1f} %{why}"
    )


def _share(value: Plain) -> str:
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['value']:.1f} % (95 % band {low:.1f} to {high:.1f})"


def _points(value: Plain) -> str:
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['value']:+.1f} points (95 % band {low:+.1f} to {high:+.1f})"


def _table_text(facts: Plain) -> str:
    """``worth.csv``: a row a class and number of images, measured or expected; the class is empty
    for all of them together."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "images", "measured", "expected", "low", "high"])
    for name, row in [("", facts), *facts["by_class"].items()]:
        for point in row["measured"]:
            numbers = [point["images"], f"{point[_score(row)]:.6f}", "", "", ""]
            writer.writerow([cell(name), *numbers])
        for point in row["curve"]:
            ends = [f"{point[key]:.6f}" for key in ("value", "low", "high")]
            writer.writerow([cell(name), point["images"], "", *ends])
    return text.getvalue()


def drawn(facts: Plain, title: str, images: int) -> Chart:
    """The curve with its band over the number of training images; the dashed line is today."""
    places = [(math.log10(p["images"]), p) for p in facts["curve"]]
    name, above, _ = _SCORES[_score(facts)]
    measured = [(math.log10(p["images"]), p[_score(facts)]) for p in facts["measured"]]
    values = [p[key] for _, p in places for key in ("low", "high")] + [y for _, y in measured]
    low, high = min(values), min(1.0, max(values) + 0.01)
    panel = Panel((places[0][0] - 0.05, places[-1][0] + 0.05), (low - 0.01, high), log=True)
    panel.axes("training images")
    ends = [(x, p["high"]) for x, p in places] + [(x, p["low"]) for x, p in reversed(places)]
    path = "L".join(f"{panel.across(x):.1f} {panel.up(y):.1f}" for x, y in ends)
    panel.parts.append(f'<path class="heat" fill-opacity="0.18" d="M{path}Z"/>')
    panel.line([(x, p["value"]) for x, p in places], "val")
    panel.line(measured, "train", dots=True)
    panel.legend([("train", "measured"), ("val", "expected")])
    now, limit = facts["now"], facts["limit"]
    if low <= limit["value"] <= high:
        panel.line([(places[0][0], limit["value"]), (places[-1][0], limit["value"])], "ideal")
    panel.mark(math.log10(images), now["value"], "val")
    first, last = measured[0], measured[-1]
    alt = (
        f"{name} by number of training images, {title}: measured from {first[1]:.3f} at "
        f"{10 ** first[0]:.0f} to {last[1]:.3f} at {10 ** last[0]:.0f} images; expected "
        f"{now['value']:.3f} at {images:,}, {places[-1][1]['value']:.3f} at "
        f"{places[-1][1]['images']:,}, and {limit['value']:.3f} in the end."
    )
    caption = (
        f"The ring is today, {images:,} training images; the band is that of 95 %, the dashed "
        "level where the frozen backbone ends."
    )
    return panel.draw(f"{title}: {above}", alt, caption)


def alone(chart: Chart) -> str:
    """The drawing as a file of its own, with its colours and its title in it."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    whole = str(chart.svg).replace("<svg ", head, 1)
    first, _, rest = whole.partition(">")
    first = first.replace(f'"0 0 {WIDE:g} {HIGH:g}"', f'"0 -24 {WIDE:g} {HIGH + 24:g}"')
    title = label(4, -8, chart.title)
    return f"{first}><style>{_STYLE}</style>{title}{rest}\n"


def _sections(facts: Plain, chart: Chart) -> list[Section]:
    classes = sorted(facts["by_class"].items(), key=lambda item: item[1]["now"]["value"])
    charts = [drawn(row, name, facts["images"]) for name, row in classes[:_DRAWN]]
    shown = f", the {_DRAWN} that are answered worst" if len(classes) > _DRAWN else ""
    return [
        Section("Learning curve", charts=(chart,), tables=(_measured_table(facts),)),
        Section(
            f"By class{shown}",
            text=(
                "The number of images is that of all classes, whose proportions stay. Each class "
                "has a curve of its own, so that the gains of the classes need not be on average "
                "that of all.",
            ),
            charts=tuple(charts),
            tables=(_class_table(facts, classes),),
        ),
        Section("How it was measured", text=_method(facts)),
    ]


def _measured_table(facts: Plain) -> Table:
    score = _score(facts)
    head = ("training images", _SCORES[score][2], "of each class")
    counts = facts["per_class_counts"]
    few = len(facts["classes"]) <= 6
    rows = tuple(
        (
            f"{point['images']:,}",
            f"{point[score]:.3f}",
            ", ".join(map(str, of)) if few else f"{min(of)} to {max(of)}",
        )
        for point, of in zip(facts["measured"], counts, strict=True)
    )
    return Table("Measured", head, rows, left=0)


def _class_table(facts: Plain, classes: Sequence[tuple[str, Plain]]) -> Table:
    per = facts["more"]["per_class"]
    now = "average precision now" if _several(facts) else "right now"
    head = ("class", "images", now, f"{per} more of each bring", "in the end")
    rows = tuple(
        (
            name,
            f"{facts['classes'][name]:,}",
            _share(row["now"]).replace("95 % band ", ""),
            _points(row["more"]["gain"]).replace("95 % band ", ""),
            _share(row["limit"]).replace("95 % band ", ""),
        )
        for name, row in classes
    )
    return Table("", head, rows)


def _method(facts: Plain) -> tuple[str, ...]:
    times = "once" if facts["repeats"] == 1 else f"{facts['repeats']} times"
    return (
        f"Every training image is held out {times}, in {facts['folds']} stratified folds, and "
        "answered by linear heads that are solved on ever larger subsamples of the others, each "
        f"inside the next. {_MAP_METHOD if _several(facts) else ''}The validation images have no "
        "part in the curve.",
        "The curve is a power law with a floor, error = floor + scale x images^-rate. Its band "
        "holds what the images that judge leave open (they are weighed anew many times), "
        "which rates fit, and how far one training set is from another. It says what happens with "
        "more images of the same kind, not of another kind.",
        f"The largest subsample takes {size(facts['memory_bytes'])} in double precision.",
    )
