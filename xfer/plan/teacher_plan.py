"""The teacher of a run with ``loss=distill``: which network it is, and what it does not go with.

The teacher is looked at here and asked in the fit: no picture goes through it for a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xfer.config.verbs import LAST, run_named
from xfer.core.errors import CommandError
from xfer.core.files import file_sha256, parsed, read_json
from xfer.core.protocols import HasTeacher
from xfer.core.read_back import checked
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Dataset, InputSpec, Plain
from xfer.weights.formats.detect import kind_of
from xfer.weights.hub import huggingface

if TYPE_CHECKING:
    from xfer.config.specs import ModelFile, Specs

_KEY = "loss.teacher"
_WITHOUT = "type loss=cross_entropy without loss.teacher"


@dataclass(frozen=True)
class TeacherPlan:
    """What is known of a teacher before it is asked.

    ``path`` is its file, a checkpoint or an ONNX network, with this ``sha256``; ``columns`` says
    where the run's classes stand among its answers, ``input`` how it takes an image, ``trained``
    the sha256 of the images that it is trained on, if its file says so, ``thresholds`` from which
    probability of the run's classes on it says yes, where an image has several labels, and
    ``score`` how its run was scored. ``parameters`` and ``operations`` (floating-point ones, an
    image) are of a checkpoint alone. ``temperature`` and ``weight`` are those of the loss.
    """

    path: Path
    kind: Literal["run", "onnx"]
    sha256: str
    classes: tuple[str, ...]
    columns: tuple[int, ...]
    input: InputSpec
    trained: str | None
    thresholds: tuple[float, ...]
    score: Plain | None
    bytes: int
    parameters: int | None
    operations: float | None
    temperature: float
    weight: float

    def to_plain(self, dataset: Dataset | None, follows: bool) -> Plain:
        """As JSON-like facts, for ``plan.json``; ``follows`` says that it sees augmented views."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "classes": list(self.classes),
            "input": self.input.to_plain(),
            "trained_on": self.seen(dataset),
            "score": self.score,
            "parameters": self.parameters,
            "operations": self.operations,
            "bytes": self.bytes,
            "sees": "the student's views" if follows else "images as it is evaluated",
            "temperature": self.temperature,
            "weight": self.weight,
        }

    def seen(self, dataset: Dataset | None) -> list[str]:
        """The splits whose very images it was trained on, as far as its file says."""
        splits = dataset.splits if dataset else {}
        return [name for name, samples in splits.items() if samples.sha256 == self.trained]


def plan_teacher(specs: Specs, dataset: Dataset, classes: tuple[str, ...]) -> TeacherPlan | None:
    """The teacher that the loss of ``specs``, in which all is decided, asks for; ``None`` for none.

    Raises CommandError for what a teacher does not go with, for one that does not fit and for a
    name that is no run's, WeightsError for a file that cannot be read or had from a hub.
    """
    loss = specs.loss
    if not isinstance(loss, HasTeacher) or not {"fit", "lr_find"} & {*(specs.stages or ("fit",))}:
        return None
    _refuse(specs, dataset, classes)
    path = _file_of(loss.teacher)
    _refuse_itself(specs, path)
    onnx = path.suffix.lower() == ".onnx" or kind_of(path) == "ONNX"
    known = (_onnx if onnx else _checkpoint)(path, specs)
    if known.input.range != dataset.range:
        ends = f"black and white at {list(known.input.range)}" if known.input.range else "8 bits"
        what = f"{path} takes pixels with {ends}, and those of the data are otherwise"
        raise CommandError(_KEY, what, f"give it the same data.range, or {_WITHOUT}", 39)
    columns = _columns(path, known.classes, classes)
    return TeacherPlan(
        path=path,
        kind=known.kind,
        sha256=file_sha256(path),
        classes=known.classes,
        columns=columns,
        input=known.input,
        trained=known.splits.get("train"),
        thresholds=tuple(known.task["thresholds"][i] for i in columns if known.task),
        score=_score(path, "map" if known.task else "acc"),
        bytes=path.stat().st_size,
        parameters=known.parameters,
        operations=known.operations,
        temperature=loss.temperature,
        weight=loss.weight,
    )


@dataclass(frozen=True)
class _Known:
    """What a file says of itself."""

    kind: Literal["run", "onnx"]
    classes: tuple[str, ...]
    input: InputSpec
    splits: Mapping[str, str]
    task: Plain
    parameters: int | None = None
    operations: float | None = None


def _refuse(specs: Specs, dataset: Dataset, classes: tuple[str, ...]) -> None:
    """Raise CommandError for what makes answers about whole images useless, or answers that
    are held out worthless."""
    train = dataset.splits.get("train")
    if specs.augment.mix(len(classes)) is not None:
        what = "answers one image at a time, and augment mixes whole images (mixup, cutmix)"
        raise CommandError(_KEY, what, "type augment=standard", 35)
    if specs.data is not None and specs.data.sampler == "balanced" and specs.augment.random:
        what = "answers a view once an epoch, and data.sampler=balanced draws several of an image"
        fix = "type data.sampler=shuffled loss.class_weights=balanced, or augment=none"
        raise CommandError(_KEY, what, fix, 35)
    if getattr(specs.data, "fold", None) is not None or (train and train.folds is not None):
        what = "holds images out that the teacher may have been trained on, so that nothing is"
        raise CommandError("data.folds", f"{what} unseen", f"drop it, or {_WITHOUT}", 36)
    if specs.certificate.coverage is not None and specs.optim.solves:
        what = "is fitted on training images held out, which the teacher may have been trained on"
        fix = f"type optim=adamw, which fits it on val, or {_WITHOUT}"
        raise CommandError("certificate.coverage", what, fix, 38)


def _file_of(text: str) -> Path:
    if text == LAST:
        what = "'last' is another run each time that this file is read"
        raise CommandError(_KEY, what, "type it on the command line, or name the run", 37)
    if text.startswith("hf://"):
        return huggingface.file_at(_KEY, text)
    path = Path(text).expanduser()
    if path.suffix.lower() == ".onnx":
        return path
    return best_checkpoint(run_named(text))


def _refuse_itself(specs: Specs, path: Path) -> None:
    """Raise CommandError where the run would teach itself."""
    for key, folder in (("run.dir", specs.run_dir), ("resume", specs.checkpoint.resume)):
        if folder in (None, "auto"):
            continue
        named = Path(str(folder)).expanduser().resolve()
        if named in path.resolve().parents[:2]:
            where = "run.dir" if key == "run.dir" else "checkpoint.resume"
            what = f"is {path}, of the run that {where} names: no run teaches itself"
            raise CommandError(_KEY, what, "type loss.teacher=RUN, another run", 32)


def _columns(path: Path, answers: tuple[str, ...], classes: tuple[str, ...]) -> tuple[int, ...]:
    """Where each of ``classes`` stands in ``answers``. Raises CommandError for other names."""
    lacking = [name for name in classes if name not in answers]
    extra = [name for name in answers if name not in classes]
    if not (lacking or extra):
        return tuple(answers.index(name) for name in classes)
    said = [f"does not know {_names(lacking)}"] if lacking else []
    said += [f"also answers {_names(extra)}"] if extra else []
    fix = "type loss.teacher=RUN with a run on the same classes"
    if not lacking:
        fix += ", such as one with head=remap on that network"
    raise CommandError(_KEY, f"{path} {' and '.join(said)}", fix, 33)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _score(path: Path, name: str) -> Plain | None:
    """How the run of ``path`` was scored, if it lies in one: the split, the metric ``name`` and the
    number of images; by its cross-validation (``cv``) where it held no split out."""
    try:
        facts = read_json(path.resolve().parents[1] / "result.json")
        scores = {**(facts.get("scores") or {}), "cv": facts.get("cv") or {}}
        checked(dict[str, dict[str, object]], scores)
    except (OSError, ValueError, AttributeError, IndexError):
        return None  # the plan then says that it is not known
    for split in ("val", "test", "cv"):
        value, n = (scores.get(split, {}).get(key) for key in (name, "n"))
        if isinstance(value, float) and isinstance(n, int):
            return {"split": split, name: value, "n": n}
    return None


def _checkpoint(path: Path, specs: Specs) -> _Known:
    """What a checkpoint says. Raises WeightsError."""
    from xfer.models.flops import operations
    from xfer.models.network import blueprint
    from xfer.models.restore import of_a_card, pieces, read_checkpoint

    file, snapshot = read_checkpoint(path)
    card = snapshot.card
    _refuse_task(path, card.task, specs)
    with of_a_card(file):
        parts, _ = pieces(card, specs.make)
    net = blueprint(parts)[1].module
    costs = sum(p.numel() for p in net.parameters()), operations(net, card.input.size)
    return _Known("run", card.classes, card.input, card.splits, card.task, *costs)


def _refuse_task(path: Path, task: Plain, specs: Specs) -> None:
    """Raise CommandError for a network that gives an image several labels where those of the data
    have one: its answers do not share out an image among the classes. Or the other way round."""
    if bool(task) == specs.task.several:
        return
    one = "a run of one label an image"
    what, fix = "gives an image several labels, and the data's images have one", one
    if specs.task.several:
        what = "gives an image one label, and the data's images have several"
        fix = "a run of task=multilabel, or an ONNX file that it exported"
    raise CommandError(_KEY, f"{path} {what}", f"type loss.teacher=RUN with {fix}", 33)


def _onnx(path: Path, specs: Specs) -> _Known:
    """What an ONNX network says, and the files beside it. Raises CommandError for one without
    class names or recipe, or that takes pictures as they are; WeightsError for no classifier."""
    from xfer.evaluation.onnx_predict import open_model
    from xfer.evaluation.onnx_session import open_session

    said = open_session(path).get_modelmeta().custom_metadata_map
    model = open_model(teacher_file(path, said))
    _refuse_task(path, model.task, specs)
    if model.pictures or model.recipe is None:
        what = f"{path} crops whole pictures itself, so that it cannot be given the student's views"
        raise CommandError(_KEY, what, "type loss.teacher=RUN, or its model.onnx", 34)
    try:
        splits = checked(dict[str, str], parsed(said.get("card", "{}")).get("splits", {}))
    except (ValueError, AttributeError):
        splits = {}
    return _Known("onnx", model.classes, model.recipe, splits, model.task)


def teacher_file(path: Path, said: Mapping[str, str]) -> ModelFile:
    """How an ONNX file is opened that has ``said`` so much of itself: with ``labels.json`` and
    ``preprocess.json`` beside it for what it lacks. Raises CommandError where these are not
    there."""
    from xfer.config.specs import ModelFile

    given: dict[str, str] = {}
    kinds = (("classes", "labels", "class names"), ("preprocess", "recipe", "input recipe"))
    for name, key, words in kinds:
        file = path.with_name("labels.json" if key == "labels" else "preprocess.json")
        if name in said:
            continue
        if not file.is_file():
            what = f"{path} does not hold its {words}, and there is no {file.name} beside it"
            fix = f"put {file.name} there, as xfer exports it, or type loss.teacher=RUN"
            raise CommandError(_KEY, what, fix, 34)
        given[key] = str(file)
    return ModelFile(str(path), given.get("labels"), given.get("recipe"))


def teacher_lines(teacher: TeacherPlan, dataset: Dataset | None, follows: bool) -> list[str]:
    """The teacher in a few lines, for the plan."""
    score, name = "not known", "map" if teacher.thresholds else "acc"
    if given := teacher.score:
        on = "cross-validated on the {:,}" if given["split"] == "cv" else "on the {:,} {}"
        score = f"{given[name]:.3f} {on.format(given['n'], given['split'])} images of its run"
    costs = [f"file of {teacher.bytes / 1e6:,.1f} MB"]
    if teacher.parameters is not None:
        costs = [f"{teacher.parameters:,} parameters"]
    if teacher.operations is not None:
        costs.append(f"{teacher.operations / 1e9:,.2f} GFLOP an image")
    height, width = teacher.input.size
    seen = (
        "the augmented views of the student, resized" if follows else "each image as it is scored"
    )
    order = "" if sorted(teacher.columns) == list(teacher.columns) else ", put into our order"
    trained = teacher.seen(dataset)
    on = f"trained on the images of {' and '.join(trained)}; " if trained else ""
    metric = "mAP" if teacher.thresholds else "accuracy"
    return [
        f"{teacher.path}, sha256 {teacher.sha256[:12]}; {metric} {score}",
        f"{on}{len(teacher.classes)} classes by name{order}; {', '.join(costs)}; its answers are "
        "cached for every student",
        f"sees {seen}, at {height} x {width} pixels; loss: {1 - teacher.weight:g} of the labels, "
        f"{teacher.weight:g} of the teacher at temperature {teacher.temperature:g} (times "
        f"{teacher.temperature**2:g})",
    ]


def teacher_remarks(teacher: TeacherPlan | None, dataset: Dataset | None) -> list[str]:
    """What makes a comparison with the teacher worth less."""
    seen = [name for name in (teacher.seen(dataset) if teacher else ()) if name != "train"]
    return [
        f"the teacher was trained on the images of {name}: what student and teacher answer there "
        "is nothing that they had not seen"
        for name in seen
    ]
