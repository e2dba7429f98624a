"""The plan as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from xfer.config import custom
from xfer.core.errors import first_few, plural, printable
from xfer.core.types import InputSpec, Plain
from xfer.data.folds import fold_words
from xfer.data.image import are_files
from xfer.data.tta import tta_words
from xfer.evaluation.multilabel_leave_one_out import known_alike
from xfer.evaluation.task import CHOSEN_ON
from xfer.plan.calibration_plan import calibration_words
from xfer.plan.certificate_images import certificate_line, unlike_line
from xfer.plan.teacher_plan import teacher_lines

if TYPE_CHECKING:
    from xfer.plan.plan import Plan


def table(plan: Plan) -> str:
    """The plan for people: what would run on what, and what would train."""
    facts, card = plan.facts, plan.card
    lines = [
        ("experiment", f"{facts['experiment']}, seed {facts['seed']}"),
        ("stages", ", ".join(facts["stages"]) or "none: this is the plan alone"),
        ("classes", f"{len(card.classes)}: {first_few(card.classes, 8)}"),
        *_task_lines(plan),
        *_audit_lines(plan),
        *((f"split {name}", _split_line(split)) for name, split in facts["splits"].items()),
        *_fold_lines(plan),
        ("backbone", _spec_line(card.backbone)),
        ("source", _source_line(plan)),
        *(("", line) for line in _load_lines(plan.load)),
        ("head", _spec_line(card.head)),
        ("input", _input_line(card.input)),
        *_recipe_lines(plan),
        *_views_lines(plan),
        *(_training_lines(facts) if "params" in facts and not _only_audits(plan) else ()),
        *_parts(plan),
        *_teacher_lines(plan),
        *(("remark", remark) for remark in facts["remarks"]),
    ]
    return _columns(lines)


def _teacher_lines(plan: Plan) -> list[tuple[str, str]]:
    if plan.teacher is None:
        return []
    lines = teacher_lines(plan.teacher, plan.dataset, follows=plan.specs.augment.random)
    return [("teacher" if i == 0 else "", line) for i, line in enumerate(lines)]


def _task_lines(plan: Plan) -> list[tuple[str, str]]:
    """What an image's labels are, where it may have several; and where thresholds come from."""
    if not plan.specs.task.several:
        return []
    fixed, stages = getattr(plan.specs.task, "thresholds", "f1"), {*plan.specs.stages}
    if "soup" in stages and plan.card.task.get("chosen_on") != "given":
        said = "a threshold a class by its F1 on the images that choose"
    elif plan.card.task:
        said = f"thresholds of the checkpoint, {CHOSEN_ON[plan.card.task['chosen_on']]}"
    elif stages and "fit" not in stages:
        return [("labels", "several an image, or none")]  # no stage takes a threshold
    elif fixed != "f1":
        said = f"threshold {fixed:g} for each class"
    elif plan.specs.optim.solves:
        said = "a threshold a class by its F1 on held-out training images"
    else:
        said = "a threshold a class by its F1 on val, which then is no longer unseen"
    return [("labels", f"several an image, or none; {said}")]


def _audit_lines(plan: Plan) -> list[tuple[str, str]]:
    """What an audit judges labels by, and, where they are known of different images, how many
    regressions it is of: each takes as long as that of labels that are all known. And whether
    decisions in its table are read."""
    if "audit" not in plan.specs.stages or not plan.dataset:
        return []
    by = "features alone: the source has no classifier that knows nothing of these labels"
    if plan.source_head:
        by = f"features and the source's answers for its {len(plan.source_head[1]):,} classes"
    splits, said = plan.dataset.splits.values(), [f"labels are judged by {by}"]
    if plan.specs.task.several:
        count = len(known_alike(np.concatenate([samples.labels for samples in splits])))
        if count > 1:
            said.append(f"labels are known of {count} different sets of images: a regression each")
    if not all(are_files(samples.images) for samples in splits):
        said.append("these images are no files, so that data=csv cannot read what is decided")
    return [("audit", line) for line in said]


def _fold_lines(plan: Plan) -> list[tuple[str, str]]:
    """The folds of a cross-validation, how they are run, and what becomes of all images."""
    facts = plan.facts
    if not (folds := facts["folds"]):
        return []
    by_steps, launcher = bool(facts.get("optimizer")), plan.specs.launcher
    how = "all in this process, on features computed once"
    final = "the final model is fitted on all training images"
    if by_steps:
        slots = (launcher and launcher.options.get("slots")) or "one"
        how = f"each a separate job here, {slots} at a time (hydra.launcher.slots)"
        final += " by this process, for as many epochs as were best in the folds on average"
    if by_steps and launcher and launcher.queue:
        named = launcher.options.get("partition")
        partition = f", partition '{named}'" if named else ""
        how = f"each a job of Slurm (hydra/launcher={launcher.name}{partition})"
    return [("folds", f"{fold_words(folds)}, {how}"), ("", final)]


def _only_audits(plan: Plan) -> bool:
    """Whether nothing trains, though the images and the network are those of a fit."""
    return "audit" in plan.specs.stages and {"audit", "report"} >= set(plan.specs.stages)


def _views_lines(plan: Plan) -> list[tuple[str, str]]:
    """What training images go through, and which views of an image are answered."""
    specs, lines = plan.specs, []
    if plan.phases and not _only_audits(plan):
        shown = _spec_line({k: v for k, v in specs.facts["augment"].items() if v != 0})
        # By the name of its option, as the other line that names it has it.
        lines.append(("augment", "none" if shown == "plain" else shown))
    if tta := tta_words(specs.tta):
        lines.append(("answers", f"{tta}; exported files are compared without"))
    if (line := plan.calibration.in_words()) and plan.calibration.method == "none":
        lines.append(("calibration", line))
    if scaled := plan.card.calibration:
        lines.append(("calibration", f"{calibration_words(scaled)}; it is in the weights"))
    return lines + _certificate_lines(plan)


def _certificate_lines(plan: Plan) -> list[tuple[str, str]]:
    facts = plan.facts["certificate"]
    also_chosen = "val" in plan.card.splits
    if not facts:
        return []
    line = certificate_line(facts, plan.specs, also_chosen)
    made = plan.card.certificate is not None
    unlike = [("", unlike_line(facts, made))] if line.startswith("prediction sets") else []
    return [("certificate", line), *unlike]


def _columns(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines)


def brief(plan: Plan) -> str:
    """The plan of a run that begins, in at most a dozen lines; ``stages=[]`` shows it whole."""
    facts, card = plan.facts, plan.card
    remarks = facts["remarks"]
    counts = ", ".join(f"{split['n']:,} {name}" for name, split in facts["splits"].items())
    height, width = card.input.size
    parts = [*_certificate_lines(plan)[:1], *_parts(plan), *_teacher_lines(plan)[:1]]
    tta = tta_words(plan.specs.tta)
    shown = max(_REMARKS - len(parts) - bool(tta), 0)  # of the dozen lines
    lines = [
        ("run", f"{facts['experiment']}, seed {facts['seed']}: {', '.join(facts['stages'])}"),
        *([("images", counts)] if counts else []),
        *_fold_lines(plan)[:1],
        ("classes", f"{len(card.classes)}: {first_few(card.classes, _FEW)}"),
        *_task_lines(plan),
        *_audit_lines(plan),
        ("network", f"{_name(card.backbone)}, {_name(card.head)} head, {height} x {width} pixels"),
        *([("answers", tta)] if tta else []),
        ("weights", _source_line(plan) + _fates(plan.load)),
        *(_training_brief(plan) if "params" in facts and not _only_audits(plan) else ()),
        *parts,
        *(("remark", remark) for remark in remarks[:shown]),
    ]
    unseen = len(remarks) - shown
    left = f" and {unseen} more remark{'s' * (unseen > 1)}" if unseen > 0 else ""
    return _columns([*lines, ("whole plan", f"add 'stages=[]' to see it{left}")])


_FEW, _REMARKS = 6, 3


def _parts(plan: Plan) -> list[tuple[str, str]]:
    """The user's metrics and callbacks, and the calibration that was asked for by name."""
    trainer, asked = plan.specs.trainer, plan.calibration.method in ("temperature", "vector")
    called = trainer.callbacks if "fit" in plan.specs.stages or not plan.specs.stages else ()
    lines = [*custom.lines(trainer.metrics, called), *_soup_lines(plan.card.source.get("soup"))]
    return lines + [("calibration", plan.calibration.in_words())] * asked


def _soup_lines(soup: Plain | None) -> Iterator[tuple[str, str]]:
    """Who may go into a soup, and what chooses and judges them."""
    if not soup:
        return
    jobs = ", ".join(str(member["job"]) for member in soup["members"])
    yield "soup", f"greedy average of {soup['sweep']}, jobs {jobs}"
    if out := [f"{row['job']} ({row['state']})" for row in soup["left_out"]]:
        yield "", f"left out: job{'s' * (len(out) != 1)} {', '.join(out)}"
    on = [f"{soup[key]['images']} ({soup[key]['n']:,})" for key in ("chosen_on", "judged_on")]
    yield "", f"chosen on {on[0]}, judged on {on[1]}"


def _name(spec: Plain) -> str:
    return str(spec.get("name") or str(spec["_target_"]).rpartition(".")[2].lower())


def _fates(load: Plain) -> str:
    """How many tensors came to what, such as ``: 78 loaded, 2 dropped head``."""
    counts = ", ".join(f"{n} {fate}" for fate, n in load["counts"].items()) if load else ""
    return f": {counts}" if counts else ""


def _training_brief(plan: Plan) -> list[tuple[str, str]]:
    facts, option = plan.facts, plan.specs.choices.get("augment", "auto")
    params = facts["params"]
    # By the name that is typed: two options may be of one class. What auto has chosen is below.
    augmented = option != "auto" and _name(facts["augment"]) != "plain"
    how = steps_line(facts) + (f"; augment={option}" if augmented else "")
    chosen = ", ".join(f"{row['key']}={row['value']}" for row in facts["auto"])
    lines = [
        ("trains", f"{params['trainable']:,} of {params['total']:,} parameters"),
        ("steps", how),
    ]
    return lines + ([("auto", chosen)] if chosen else [])


def _split_line(split: Plain) -> str:
    counts = [f"{name} {n}" for name, n in split["per_class"].items()]
    return f"{plural(split['n'], 'image')} ({first_few(counts, 6)})"


def _spec_line(facts: Plain) -> str:
    kind = str(facts["_target_"]).rpartition(".")[2].lower()
    shown = {k: v for k, v in facts.items() if k not in ("_target_", "name")}
    rest = ", ".join(f"{k}={v}" for k, v in shown.items() if v not in (None, {}))
    parts = (kind, str(facts.get("name", "")), f"({rest})" if rest else "")
    return " ".join(part for part in parts if part)


def _source_line(plan: Plan) -> str:
    """Whose weights these are, and what a checkpoint was trained from."""
    source, checkpoint = plan.card.source, plan.specs.checkpoint.path
    hashed = f", sha256 {source['sha256'][:12]}" if source.get("sha256") else ""
    began = f"{source['origin']}{hashed}" if source.get("origin") else "random weights"
    if checkpoint:
        return f"{checkpoint}, trained from {began}"
    return began if source.get("origin") else f"none: {began}"


def _load_lines(load: Plain) -> list[str]:
    """What became of the source's tensors: a line a fate, each with its first examples."""
    if not load:
        return []
    covered = load["coverage"]
    numbers, tensors = 100 * covered["parameters"], 100 * covered["tensors"]
    share = f"{numbers:.1f} % of the backbone's numbers, {tensors:.1f} % of its tensors"
    lines = [f"{load['format']}: {share}"] if "format" in load else []
    for fate, count in load["counts"].items():
        rows = [row for row in load["rows"] if row["fate"] == fate]
        shown = "; ".join(map(_load_example, rows[: 1 if fate == "loaded" else 3]))
        lines.append(f"{count:>5} {fate}: {shown}{'; ...' if count > 3 else ''}")
    for name, members in (load.get("head") or {}).items():
        lines.append(f"class {name}: {', '.join(members) or 'new, starts from zero'}")
    if state := load.get("optimizer"):
        left = f"; left out: {', '.join(state['dropped'])}" if state["dropped"] else ""
        continued = f"{state['algorithm']} state of {state['continued']} parameters"
        lines.append(f"{continued} is continued{left}")
    return lines


def _load_example(row: Plain) -> str:
    name, key, note = row["name"], row["key"], row.get("note")
    renamed = f"{name} from {key}" if name and key and name != key else str(name or key)
    return renamed + (f" ({note})" if note else "")


def _input_line(spec: InputSpec) -> str:
    height, width = spec.size
    how = "squashed" if spec.resize is None else f"short side {spec.resize}, centre crop"
    line = f"{height} x {width} RGB ({how}, {spec.interpolation}); mean {spec.mean}, std {spec.std}"
    return line + (f"; range {spec.range[0]:g} to {spec.range[1]:g}" if spec.range else "")


def _recipe_lines(plan: Plan) -> list[tuple[str, str]]:
    """Whose recipe is taken, where that is not plain from the source."""
    source = plan.card.source
    asked, name = source.get("spec", {}), plan.card.backbone.get("name", "it")
    described = plan.load.get("repository") or not asked.get("path")
    published = source.get("kind") == "hub" and described
    if not plan.load or published or source.get("kind") == "run" or asked.get("recipe"):
        return []
    if plan.load.get("recipe"):
        return [("", "as the file says, which xfer exported; source.recipe=FILE for another")]
    if whose := plan.load.get("published"):
        return [("", f"as is published with it: by its sha256 the file is {whose}")]
    assumed = f"as {name} has it by default: the file says none; source.recipe=FILE sets another"
    return [("", assumed)]


def _training_lines(facts: Plain) -> list[tuple[str, str]]:
    params, features = facts["params"], facts["features"]
    counts = f"{params['trainable']:,} train, {params['frozen']:,} frozen"
    lines = [("parameters", f"{params['total']:,}: {counts}")]
    lines += [("", line) for line in _parameter_lines(facts["parameters"])]
    if "cut" in features:
        views = f"{features.get('count')} view{'s' * (features.get('count') != 1)}"
        size = (
            f": at most {features['bytes_per_image'] / 1e3:,.1f} kB an image, "
            f"{views}: {features['bytes'] / 1e6:,.1f} MB"
            if "bytes" in features
            else ""
        )
        lines.append(("features", f"at {features['cut']}{size}"))
    lines.append(("steps", steps_line(facts)))
    for i, row in enumerate(facts["auto"]):
        lines.append(("" if i else "auto", f"{row['key']}={row['value']}: {row['why']}"))
    return lines


def steps_line(facts: Plain) -> str:
    """How long the training is, from the facts of a plan."""
    steps = facts["steps"]
    begun = facts.get("begun") or steps
    devices, nodes = begun["devices"], begun.get("nodes", 1)
    if not facts["optimizer"]:
        filled = facts["params"]["trainable"] == 0
        how = "holds training features" if filled else "is solved exactly"
        by = ", by rank 0 on features that all ranks compute" if devices * nodes > 1 else ""
        return f"none: the head {how}{by}"
    each = f", {steps['accumulate']} a step" if steps["accumulate"] > 1 else ""
    each += f" on each of {devices} devices" if devices > 1 else ""
    each += f" on each of {nodes} nodes" if nodes > 1 else ""
    each += ", which divide the network among them" if steps.get("strategy") == "fsdp" else ""
    epochs = f"{steps['epochs']} epoch{'s' * (steps['epochs'] != 1)}"
    count = f"{epochs} of {steps['per_epoch']} step{'s' * (steps['per_epoch'] != 1)}"
    count += f", {steps['total']} in all" * (steps["epochs"] != 1)
    return f"{count} (batches of {steps['batch_size']}{each}{_going_on(facts)})"


def _going_on(facts: Plain) -> str:
    """With what devices a run goes on that others have begun, and what is then the same."""
    if "begun" not in facts:
        return ""
    from xfer.data.sampler import RankShare

    now, begun = (row["devices"] * row["nodes"] for row in (facts["steps"], facts["begun"]))
    share = RankShare(0, now, begun)
    said = f", as it began; now {plural(now, 'rank')}"
    if share.parts == begun:
        turns = f", {share.pieces} parts of each batch in turn" if share.pieces > 1 else ""
        return f"{said}{turns}: the same images in each step, figures agree to rounding"
    said += f", {share.parts} parts of each batch: the same images in each step, but BatchNorm that"
    return f"{said} trains, dropout, mixing and class weights see them in other parts"


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


def _rates(row: Plain) -> str:
    """The multiple of the learning rate, phase by phase where it changes."""
    rates = row.get("phases") or [row["lr"]]
    texts = ["frozen" if rate == 0 else f"lr x {rate:g}" for rate in rates]
    changes = enumerate(pairwise(texts), 2)
    return texts[0] + "".join(
        f", {now} from phase {i}" for i, (before, now) in changes if now != before
    )
