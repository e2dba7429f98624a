"""The charts of the run card: curves, confusion, confidence and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from xfer.core.errors import printable
from xfer.evaluation.metrics import METRICS
from xfer.evaluation.multilabel_metrics import LABEL_METRICS
from xfer.report.charts import filled, points
from xfer.report.format import strength
from xfer.report.svg import Chart, Panel, Points, estimate, label, picture

if TYPE_CHECKING:
    from xfer.core.types import Plain
    from xfer.report.confidence import Bin, RecallCurve
    from xfer.report.confusion import Counts

_DOTS = 40
_CURVES = 6
_LOOKS = {"train": "train", "val": "val", "held out": "rate", "lr": "rate"}


def curves(history: Sequence[Plain], best: int | None, metric: str) -> list[Chart]:
    """Loss, ``metric`` and learning rate by epoch; a chart without a finite value is left out, and
    all of a head that was filled."""
    if filled(history):
        return []
    other = metric.replace("val_", "train_", 1)
    of = "train" if metric.startswith("train_") else "val"
    kinds: dict[str, dict[str, Points]] = {
        "loss": {"train": points(history, "train_loss"), "val": points(history, "val_loss")},
        metric: {
            "train": points(history, other) if other != metric else [],
            of: points(history, metric),
        },
        "learning rate": {"lr": points(history, "lr")},
    }
    several = bool(history) and "val_map" in history[0]
    names = {f"val_{row.name}": row.label for row in (LABEL_METRICS if several else METRICS)}
    charts = []
    for title, lines in kinds.items():
        if drawn := {name: line for name, line in lines.items() if line}:
            marked = (best, of) if title == metric else None
            charts.append(_lines(names.get(title, title), drawn, "epoch", marked))
    return charts


def strengths(history: Sequence[Plain], best: int) -> list[Chart]:
    """Loss and accuracy over the strength of the penalty that a head was solved with."""
    charts = []
    several = bool(history) and "val_map" in history[0]
    second = {"map": "mAP"} if several else {"acc": "accuracy"}
    for kind, title in {"loss": "loss", **second}.items():
        lines: dict[str, Points] = {}
        for name, split in (("train", "train"), ("val", "val"), ("held out", "cv")):
            key = f"{split}_{kind}"
            rows = [
                (math.log10(row["l2"]), row[key]) for row in history if row.get(key) is not None
            ]
            if rows:
                lines[name] = rows
        if lines:
            at = "held out" if "held out" in lines else next(iter(lines))
            chosen = (math.log10(history[best - 1]["l2"]), at)
            charts.append(_lines(title, lines, "l2", chosen))
    return charts


def _lines(
    title: str, lines: dict[str, Points], name: str, marked: tuple[float | None, str] | None
) -> Chart:
    """A panel of lines over epochs or, of ``l2``, powers of ten; ``marked`` is a point of one."""
    log = name == "l2"
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    beside = 0.5 + 0.01 * (max(xs) - min(xs)) if not log else 0.1
    low, high = min(ys), max(ys)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    low = 0.0 if "lr" in lines else low - pad
    panel = Panel((min(xs) - beside, max(xs) + beside), (low, high + pad), log)
    panel.axes("penalty l2" if log else name, whole=not log)
    # The learning rate is alone in its chart, and named above it.
    if "lr" not in lines:
        panel.legend((_LOOKS[each], each) for each in lines)
    for each, line in lines.items():
        panel.line(line, _LOOKS[each], dots=len(line) <= _DOTS)
    said = [_in_words(each, line, name) for each, line in lines.items()]
    alt = f"{title} over {'the penalty' if log else 'the epochs'}: {'; '.join(said)}."
    caption = ""
    x, of = marked or (None, "")
    value = dict(lines.get(of, [])).get(x) if x is not None else None
    if x is not None and value is not None:
        panel.mark(x, value, _LOOKS[of])
        place = f"l2 {strength(10**x)}" if log else f"epoch {x:g}"
        what = f"{'chosen' if log else 'best'}: {value:.3f} at {place}"
        alt += f" The ring and the dashed line are the {what}."
        folds = "; held out are folds of the training images" * ("held out" in lines)
        caption = f"ring, {what}{folds}"
    return panel.draw(title, alt, caption)


def _in_words(name: str, line: Points, over: str) -> str:
    (first, begin), (last, end) = line[0], line[-1]
    if len(line) == 1:
        return f"{name} {begin:.3g}"
    ends = (first, last) if over == "epoch" else (10**first, 10**last)
    return f"{name} from {begin:.3g} at {ends[0]:.3g} to {end:.3g} at {ends[1]:.3g}"


class Bars(NamedTuple):
    """In words, what the bars of a reliability diagram are the share of, what they are over, what
    the numbers count, and what a bar on the dashed line says."""

    right: str
    sure: str
    counts: str
    even: str


OF_IMAGES = Bars("right", "confidence", "images", "as often right as sure")
OF_LABELS = Bars(
    "with the label", "probability", "labels", "as many have the label as the probability says"
)


def reliability(
    given: Sequence[Bin],
    by_chance: float | None = None,
    name: str = "",
    note: str = "",
    of: Bars = OF_IMAGES,
) -> Chart:
    """How often the network was right, by how sure it was; the numbers count images. ``by_chance``
    is the calibration error that perfect answers would show, ``name`` what was answered, ``note``
    what else to know. With several labels an image, the share of yes by the probability of yes."""
    gap = sum(abs(each.right - each.n * each.confidence) for each in given)
    ece = gap / (sum(each.n for each in given) or 1)
    panel = Panel((0.0, 1.0), (0.0, 1.0)).axes(of.sure)
    for each in given:
        if each.n:
            tip = f"{each.right:,} of {each.n:,} {of.right}, mean {of.sure} {each.confidence:.3f}"
            panel.bar((each.low, each.high), (0, each.right / each.n), "bar val", tip)
    panel.line([(0, 0), (1, 1)], "ideal")
    for each in given:
        if each.n:
            x, y = panel.across((each.low + each.high) / 2), panel.up(each.right / each.n) - 3
            room = panel.across(each.high) - panel.across(each.low)
            upright = estimate(f"{each.n:,}", _TINY) <= room
            place: dict[str, Any] = {"look": "tiny mid"} if upright else _TURNED
            panel.parts.append(label(x if upright else x + 4, y, f"{each.n:,}", **place))
    filled = [each for each in given if each.n]
    said = "; ".join(
        f"{each.low:.2f} to {each.high:.2f}: {each.right:,} of {each.n:,} {of.right}"
        for each in filled
    )
    alt = f"Share {of.right} by {of.sure}, in {len(filled)} bins. {said}."
    caption = (
        f"Bars on the dashed line: {of.even}. Above it too modest, below it too "
        f"sure. The numbers count {of.counts}. Calibration error {ece:.3f}"
    )
    caption += "." if by_chance is None else f"; {by_chance:.3f} is what chance alone leaves."
    # Short enough to stay one line where two of them stand beside each other.
    title = f"{name}: share {of.right}"
    title = title if name else f"reliability: share {of.right} by {of.sure}"
    return panel.draw(title, alt, f"{caption}{note and ' '}{note}")


_TINY = 10.0
_TURNED = {"look": "tiny", "turn": -90}


def spread(given: Sequence[Bin]) -> Chart:
    """How many images had which confidence, right and wrong ones."""
    most = max(each.n for each in given)
    panel = Panel((0.0, 1.0), (0.0, 1.05 * (most or 1))).axes("confidence")
    panel.legend([("val thick", "right"), ("train thick", "wrong")])
    for each in given:
        ends, wrong = (each.low, each.high), each.n - each.right
        panel.bar(ends, (0, wrong), "bar train", f"{wrong:,} wrong")
        panel.bar(ends, (wrong, each.n), "bar val", f"{each.right:,} right")
    total, wrong = sum(each.n for each in given), sum(each.n - each.right for each in given)
    sure = given[-1]
    alt = (
        f"Number of images by confidence, {total:,} in all, {wrong:,} of them wrong. In the last "
        f"bin, above {sure.low:.2f}, are {sure.n:,} images, {sure.n - sure.right:,} of them wrong."
    )
    return panel.draw("confidence: number of images", alt, "Wrong answers stand below right ones.")


def recall(given: Sequence[RecallCurve], several: bool = False) -> Chart | None:
    """Precision over recall of the classes with the lowest average precision; of images that may
    have ``several`` labels."""
    worst = sorted(given, key=lambda curve: curve.area)[:_CURVES]
    if not worst:
        return None
    rows = -(-len(worst) // 2)
    high, top = 230.0 + 15 * (rows - 1), 15.0 * (rows - 1)
    panel = Panel((0.0, 1.0), (0.0, 1.03), high=high, top=top)
    panel.axes("recall")
    looks = [f"c{i}" for i in range(len(worst))]
    named = [(look, f"{curve.name}") for look, curve in zip(looks, worst, strict=True)]
    panel.legend(named, columns=2)
    for look, curve in zip(looks, worst, strict=True):
        panel.line(list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True)), look)
    areas = "; ".join(f"{curve.name}: {curve.area:.3f}" for curve in worst)
    which = f"the {len(worst)} of {len(given)} classes with the lowest" if len(given) > 6 else "the"
    alt = f"Precision over recall of {len(worst)} classes. Average precision, {areas}."
    against = (
        "Images with a label against those without it"
        if several
        else "Each class against all others"
    )
    caption = f"{against}; drawn are {which} average precision."
    if len(given) <= _CURVES:
        caption = f"{against}, the lowest average precision first."
    return panel.draw("precision by recall", alt, caption)


NUMBERED, _ZEROS = 40, 12
_NAME = 130.0  # pixels of a class name at most


def matrix(counts: Counts, classes: Sequence[str]) -> Chart:
    """Counts (rows true, columns predicted), coloured by their share of the row."""
    many, totals = len(classes), counts.sum(axis=1)
    cell = max(30.0, min(52.0, 230.0 / many)) if many <= NUMBERED else max(1.5, 420.0 / many)
    every = 1 if many <= NUMBERED else -(-many // 25)
    shown = range(0, many, every)
    longest = min(_NAME, max(estimate(printable(classes[i])) for i in shown) + 2)
    turned = longest > cell * every - 4
    low = 16 + (0.72 * longest if turned else 12)
    left, high = longest + 40, many * cell
    wide = left + high + 8
    parts = [f'<rect class="empty" x="{left:g}" y="0" width="{high:.1f}" height="{high:.1f}"/>']
    parts += _cells(counts, left, cell)
    for i in shown:
        middle = i * cell + cell / 2
        parts.append(label(left - 6, middle + 4, classes[i], longest, "end"))
        if turned:
            x, y = left + middle + 4, high + 14
            parts.append(label(x, y, classes[i], longest, "end", turn=-45))
        else:
            parts.append(label(left + middle, high + 16, classes[i], cell * every, "mid"))
    if many <= NUMBERED:
        parts += _numbers(counts, left, cell)
    parts.append(label(left + high / 2, high + low + 18, "predicted class", look="soft mid"))
    parts.append(label(12, high / 2, "true class", look="soft mid", turn=-90))
    right = int(counts.trace())
    alt = (
        f"Confusion of {many} classes, a row for each true class and a column for each predicted "
        f"one: {right:,} of {int(totals.sum()):,} images stand on the diagonal."
    )
    svg = picture(wide, high + low + 24, parts, alt)
    return Chart("confusion", svg, alt, _SEEN, wide * 1.15, wide * 0.8 if wide > 400 else 0)


_SEEN = "Rows are true classes, columns predicted ones; the colour is the share of the row."


def _cells(counts: Counts, left: float, cell: float) -> list[str]:
    """One path for each of twelve shades: a thousand classes need no million rectangles."""
    totals = counts.sum(axis=1)
    shades: dict[int, list[str]] = {}
    rows, columns = counts.nonzero()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        # The square root keeps one mistake in a hundred visible.
        shade = math.ceil(12 * math.sqrt(counts[row, column] / totals[row]))
        shades.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
    paths = [
        f'<path class="heat" fill-opacity="{0.55 * shade / 12:.2f}" d="{"".join(places)}"/>'
        for shade, places in sorted(shades.items())
    ]
    return [f'<g transform="translate({left:g} 0) scale({cell:.4f})">', *paths, "</g>"]


def _numbers(counts: Counts, left: float, cell: float) -> list[str]:
    many = len(counts)
    return [
        label(
            left + column * cell + cell / 2,
            row * cell + cell / 2 + 4,
            f"{counts[row, column]:,}",
            look="mid" if counts[row, column] else "soft mid",
        )
        for row in range(many)
        for column in range(many)
        if counts[row, column] or many <= _ZEROS
    ]
