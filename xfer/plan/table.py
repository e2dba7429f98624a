"""The plan as a table for the terminal."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from xfer.core.errors import printable
from xfer.core.types import Plain

if TYPE_CHECKING:
    from xfer.plan.plan import Plan


def table(plan: Plan) -> str:
    """The plan for people: what would run on what, and what would train."""
    facts, card = plan.facts, plan.card
    lines = [
        ("experiment", f"{facts['experiment']}, seed {facts['seed']}"),
        ("stages", ", ".join(facts["stages"]) or "none: this is the plan alone"),
        (
            "classes",
            f"{len(card.classes)}: {', '.join(card.classes[:8])}"
            + ", ..." * (len(card.classes) > 8),
        ),
        *((f"split {name}", _split_line(split)) for name, split in facts["splits"].items()),
        ("backbone", _spec_line(card.backbone)),
        ("source", _source_line(card.source)),
        *_load_lines(plan.load),
        ("head", _spec_line(card.head)),
        ("input", _input_line(plan)),
        *_training_lines(facts),
        *(("remark", remark) for remark in facts["remarks"]),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines)


def _split_line(split: Plain) -> str:
    counts = split["per_class"].items()
    shown = ", ".join(f"{name} {n}" for name, n in list(counts)[:6])
    return f"{split['n']} images ({shown}{', ...' if len(counts) > 6 else ''})"


def _spec_line(facts: Plain) -> str:
    kind = str(facts["_target_"]).rpartition(".")[2].lower()
    rest = ", ".join(
        f"{k}={v}"
        for k, v in facts.items()
        if k not in ("_target_", "name") and v not in (None, {})
    )
    return (
        " ".join([kind, str(facts.get("name", "")), f"({rest})" if rest else ""])
        .replace("  ", " ")
        .strip()
    )


def _source_line(source: Plain) -> str:
    if not source.get("origin"):
        return "none: random weights"
    hashed = f", sha256 {source['sha256'][:12]}" if source.get("sha256") else ""
    return f"{source['origin']}{hashed}"


def _load_lines(load: Plain) -> list[tuple[str, str]]:
    """What became of the source's tensors: a line a fate, each with its first examples."""
    if not load:
        return []
    covered = load["coverage"]
    share = f"{covered['parameters']:.1%} of the backbone's numbers, {covered['tensors']:.1%} of "
    lines = [f"{load['format']}: {share}its tensors"] if "format" in load else []
    for fate, count in load["counts"].items():
        rows = [row for row in load["rows"] if row["fate"] == fate]
        shown = "; ".join(map(_load_example, rows[: 1 if fate == "loaded" else 3]))
        lines.append(f"{count:>5} {fate}: {shown}{'; ...' if count > 3 else ''}")
    for name, members in (load.get("head") or {}).items():
        lines.append(f"class {name}: {', '.join(members) or 'new, starts from zero'}")
    if state := load.get("optimizer"):
        left = f"; left out: {', '.join(state['dropped'])}" if state["dropped"] else ""
        lines.append(f"{state['algorithm']} state of {state['continued']} parameters goes on{left}")
    return [("", line) for line in lines]


def _load_example(row: Plain) -> str:
    name, key, note = row["name"], row["key"], row.get("note")
    renamed = f"{name} from {key}" if name and key and name != key else str(name or key)
    return renamed + (f" ({note})" if note else "")


def _input_line(plan: Plan) -> str:
    spec = plan.card.input
    height, width = spec.size
    how = "squashed" if spec.resize is None else f"short side {spec.resize}, centre crop"
    line = f"{height} x {width} RGB ({how}, {spec.interpolation}); mean {spec.mean}, std {spec.std}"
    return line + (f"; range {spec.range[0]:g} to {spec.range[1]:g}" if spec.range else "")


def _training_lines(facts: Plain) -> list[tuple[str, str]]:
    if "params" not in facts:
        return []
    params, steps = facts["params"], facts["steps"]
    trained = (
        f"{steps['epochs']} epochs of {steps['per_epoch']} = {steps['total']} "
        f"(batches of {_batch_line(steps)})"
    )
    return [
        (
            "parameters",
            f"{params['total']:,}: {params['trainable']:,} train, {params['frozen']:,} frozen",
        ),
        *(("", line) for line in _parameter_lines(facts["parameters"])),
        *_feature_lines(facts["features"]),
        ("steps", trained if facts["optimizer"] else "none: the head is solved exactly"),
        *(
            ("" if i else "auto", f"{row['key']}={row['value']}: {row['why']}")
            for i, row in enumerate(facts["auto"])
        ),
    ]


def _batch_line(steps: Plain) -> str:
    size, devices = steps["batch_size"], steps["devices"]
    return str(size) if devices == 1 else f"{size} on each of {devices} devices"


def _parameter_lines(rows: list[Plain]) -> list[str]:
    """The parameters of one stage and one rate in one line."""
    sizes: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row["stage"] or row["name"], row["group"], _rates(row))
        sizes[key] = sizes.get(key, 0) + math.prod(row["shape"])
    return [
        f"{name:<28} {group:<9} {rates:<9} {size:>12,}"
        for (name, group, rates), size in sizes.items()
    ]


def _feature_lines(facts: Plain) -> list[tuple[str, str]]:
    if "cut" not in facts:
        return []
    told = f"at {facts['cut']}"
    if "bytes" in facts:
        told = (
            f"{told}: at most {facts['bytes_per_image'] / 1e3:,.1f} kB an image, "
            f"{facts['count']} view(s): {facts['bytes'] / 1e6:,.1f} MB"
        )
    return [("features", told)]


def _rates(row: Plain) -> str:
    """The multiple of the learning rate, phase by phase where it changes."""
    rates = row.get("phases") or [row["lr"]]
    told = ["frozen" if rate == 0 else f"lr x {rate:g}" for rate in rates]
    later = [
        f", {now} from phase {i}"
        for i, (before, now) in enumerate(pairwise(told), 2)
        if now != before
    ]
    return told[0] + "".join(later)
