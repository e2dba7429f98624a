"""The model card of a folder for the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator

from xfer.core.errors import plural, printable
from xfer.core.types import Card, Plain
from xfer.export.metadata import metadata

_NO_SCORES = "The run that wrote this model scored it on no images."
_MANY = 100


def model_card(card: Card, figures: Plain, license_name: str, repo: str | None) -> str:
    """``README.md``: the hub's own header, how to load the model, its scores with their intervals,
    its data. ``figures`` are those of :func:`xfer.export.stage.run_figures`."""
    architecture, title = card.backbone["name"], card.experiment or card.backbone["name"]
    place = f"hf-hub:{repo}" if repo else "local-dir:FOLDER"
    licensed = "Nobody has said under which license." if license_name == "unknown" else license_name
    lines = [
        "---",
        f"license: {json.dumps(license_name)}",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm]",
        "---",
        f"# {_plain(title)}",
        "",
        f"timm's `{architecture}` with {len(card.classes)} classes: {_classes(card)}.",
        f"Trained with xfer {metadata(card)['xfer']}.",
        "",
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("{place}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        'names = model.pretrained_cfg["label_names"]',
        "```",
        *_task(card),
        "",
        "## Scores",
        "",
        *(_scores(figures) or [_NO_SCORES]),
        "",
        "## Data",
        "",
        *_data(card, figures),
        "",
        "## License",
        "",
        licensed,
    ]
    return "\n".join(lines) + "\n"


def _task(card: Card) -> list[str]:
    """With several labels an image, what its answers mean."""
    if not card.task:
        return []
    pairs = zip(card.classes, card.task["thresholds"], strict=True)
    cuts = ", ".join(f"{_plain(name)} {cut:.4g}" for name, cut in pairs)
    return [
        "",
        "An image may have several labels, or none: the sigmoid of a logit is the probability of",
        f"its label, which an image is said to have from these on: {cuts}.",
    ]


def _plain(text: str) -> str:
    """``text`` in one line without what Markdown or HTML would read in it."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in printable(text))


def _classes(card: Card) -> str:
    names = [_plain(name) for name in card.classes[:_MANY]]
    more = f" and {len(card.classes) - _MANY} more" if len(card.classes) > _MANY else ""
    return ", ".join(names) + more


def _scores(figures: Plain) -> list[str]:
    """A row a split, and one of the cross-validation; what was chosen on a split stands below. With
    several labels an image, mAP and F1 stand in place of accuracy."""
    rows = dict(figures.get("scores") or {})
    if figures.get("cv"):
        rows["cross-validation"] = figures["cv"]
    if not rows:
        return []
    table = ["| images | number | accuracy | 95 % interval | loss | ECE |", "|" + " --- |" * 6]
    several = any("map" in row for row in rows.values())
    if several:
        names = "mAP | macro F1 | every label right | loss | ECE"
        table[0] = f"| images | number | {names} |"
        table[1] += " --- |"
        table += [_label_row(name, row) for name, row in rows.items()]
    for name, row in () if several else rows.items():
        low, high = row["acc_ci95"]
        table.append(
            f"| {name} | {row['n']:,} | {row['acc']:.4f} | {low:.4f} to {high:.4f} "
            f"| {row['loss']:.4f} | {row['ece']:.4f} |"
        )
    chosen = [name for name, row in rows.items() if row.get("used_for_selection")]
    if chosen:
        table += [
            "",
            f"The model was chosen on {' and '.join(chosen)}: other images may be harder.",
        ]
    return table


def _label_row(name: str, row: Plain) -> str:
    keys = ("map", "macro_f1", "acc", "loss", "ece")
    texts = ["–" if row.get(key) is None else f"{row[key]:.4f}" for key in keys]
    return f"| {name} | {row['n']:,} | {' | '.join(texts)} |"


def _data(card: Card, figures: Plain) -> Iterator[str]:
    counts = [
        f"{name}: {plural(count, 'image')}" for name, count in figures.get("images", {}).items()
    ]
    yield f"{'; '.join(counts)}." if counts else "How many images it was trained on is not known."
    spec, size = card.input, f"{card.input.size[0]} x {card.input.size[1]} pixels"
    resized = f"to {size}"
    if spec.resize:
        resized = f"until the short side is {spec.resize}; the middle {size} are taken"
    yield f"Images are resized ({spec.interpolation}) {resized}."
    yield f"Mean {list(spec.mean)}, standard deviation {list(spec.std)}."
