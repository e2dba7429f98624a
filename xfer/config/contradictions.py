"""Values that are fine alone and wrong together: stages, and keys that one stage or group reads."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from xfer.config import other_tools, schema
from xfer.config.general_keys import STAGES, Embedding, Packing
from xfer.core import errors
from xfer.core.errors import CombinationError, ConfigError, XferError, closest
from xfer.core.files import path_problem
from xfer.core.types import Plain

_EMBED = vars(Embedding())


class Composed(NamedTuple):
    """A composed configuration whose values have been read one by one.

    ``plain`` is all of it, ``facts`` the groups' with every default spelt out, and ``typed`` the
    keys of the command line.
    """

    plain: Plain
    facts: dict[str, Plain]
    stages: tuple[str, ...]
    inputs: Any
    compare_runs: tuple[str, ...]
    packing: Packing
    embed: Embedding
    typed: frozenset[str]


def contradictions(c: Composed) -> Iterator[XferError]:
    """Every contradiction of ``c``, one after the other."""
    stages = (_stages, _predictions, _comparison, _packing, _audit, _embedding)
    for check in (*stages, _pairs, _heads, _folds, _groups, _unused):
        yield from check(c)


def _stages(c: Composed) -> Iterator[XferError]:
    """Stages that do not exist, or do not go with each other or with what else is given."""
    stages = c.stages
    for stage in stages:
        if stage not in STAGES:
            other = other_tools.STAGES.get(stage.lower())
            fix = f"did you mean '{other}'?" if other else closest(stage, STAGES)
            yield ConfigError("stages", f"there is no stage '{stage}'", fix, 8)
    if "predict" in stages and not c.inputs:
        yield schema.missing("predict.input")
    if c.inputs and not {"predict", "embed"} & set(stages):
        fix = "type 'stages=[predict]', or drop predict.input"
        yield ConfigError("predict.input", "is given but stages has no 'predict'", fix, 9)
    if schema.value_at(c.plain, "predict.model") is not None and stages != ("predict",):
        what = f"predicts with that file alone; stages is {list(stages)}"
        yield ConfigError("predict.model", what, "type 'stages=[predict]'", 95)
    if {"leaderboard", "soup"} & {*stages} and not c.facts.get("sweep", {}).get("dir"):
        fix = "type sweep.dir=outputs/multirun/EXPERIMENT/SWEEP"
        yield ConfigError("sweep.dir", "must be given", fix, 3)
    if "leaderboard" in stages and stages != ("leaderboard",):
        what = f"the leaderboard is made of runs that have ended; stages is {list(stages)}"
        yield ConfigError("stages", what, "type 'stages=[leaderboard]'", 76)


def _predictions(c: Composed) -> Iterator[XferError]:
    """A format that cannot be written, or of nothing; heat maps of nothing, or with an exported
    file."""
    stages = c.stages
    asked = schema.value_at(c.plain, "predict.format")
    if asked == "parquet" and stages and "predict" not in stages:
        what, fix = "is given but stages has no 'predict'", "type 'stages=[predict]'"
        yield errors.CommandError("predict.format", what, f"{fix}, or drop predict.format", 40)
    elif asked == "parquet" and find_spec("pyarrow") is None:
        yield _no_pyarrow("predict.format", "csv")
    key, drop = "predict.maps", "or drop predict.maps"
    if not schema.value_at(c.plain, key):
        return
    if stages and "predict" not in stages:
        what, fix = "is given but stages has no 'predict'", f"type 'stages=[predict]', {drop}"
        yield errors.CommandError(key, what, fix, 40)
    if schema.value_at(c.plain, "predict.model") is not None:
        what = "heat maps are made of gradients, which an exported file does not have"
        typed = f"xfer predict RUN IMAGES {key}={schema.value_at(c.plain, key)}"
        fix = f"type {typed} with the run that the file is of, {drop}"
        yield errors.CommandError(key, what, fix, 41)


def _embedding(c: Composed) -> Iterator[XferError]:
    """Keys of the stage ``embed`` without it, and a format that cannot be written."""
    stages = c.stages
    if "embed" not in stages:
        for key in (f"embed.{k}" for k in _EMBED if getattr(c.embed, k) != _EMBED[k]):
            what, fix = "is given but stages has no 'embed'", "type 'stages=[embed]'"
            yield CombinationError(key, what, f"{fix}, or drop {key}", 36)
        return
    if c.embed.format == "parquet" and find_spec("pyarrow") is None:
        yield _no_pyarrow("embed.format", "npz")


def _no_pyarrow(key: str, other: str) -> CombinationError:
    what = "parquet is written by pyarrow, which is not installed"
    return CombinationError(key, what, f"type {key}={other}, or pip install pyarrow", 35)


def _comparison(c: Composed) -> Iterator[XferError]:
    """The stage ``compare`` with too few runs or with other stages, and runs without it."""
    stages, runs = c.stages, c.compare_runs
    fix = "type 'stages=[compare]' 'compare.runs=[RUN,RUN]'"
    if "compare" not in stages:
        if runs:
            what = "is given but stages has no 'compare'"
            yield CombinationError("compare.runs", what, "type 'stages=[compare]'", 42)
        return
    if stages != ("compare",):
        what = f"runs are compared that have ended; stages is {list(stages)}"
        yield CombinationError("stages", what, "type 'stages=[compare]'", 42)
    if len(runs) < 2:
        what = f"names {len(runs) or 'no'} run{'s' * (not runs)}, and two or more are compared"
        yield CombinationError("compare.runs", what, fix, 40)
    for run in runs:
        if problem := path_problem(run):
            yield ConfigError("compare.runs", f"'{run[:80]}' {problem}", "write it out", 99)


def _packing(c: Composed) -> Iterator[XferError]:
    """The stage ``pack`` with other stages or without a folder, and a folder without it."""
    stages = c.stages
    if "pack" not in stages:
        if c.packing.out or c.packing.mb != Packing.mb:
            what = "is given but stages has no 'pack'"
            key = "pack.out" if c.packing.out else "pack.mb"
            yield CombinationError(key, what, f"type 'stages=[pack]', or drop {key}", 47)
    elif stages != ("pack",):
        what = f"packing is no part of a run; stages is {list(stages)}"
        yield CombinationError("stages", what, "type 'stages=[pack]'", 47)
    elif not c.packing.out:
        what = "must be given: the folder that the shards are written into"
        yield CombinationError("pack.out", what, "type pack.out=OUT", 48)


def _audit(c: Composed) -> Iterator[XferError]:
    """The stage ``audit`` with what it cannot do its work with."""
    stages = c.stages
    if "audit" not in stages:
        return
    if schema.value_at(c.plain, "checkpoint.path") is not None:
        what = "has been trained on labels that the audit is to judge"
        fix = "drop it: the audit takes the weights of source"
        yield CombinationError("checkpoint.path", what, fix, 24)
    if str(c.facts.get("features", {}).get("_target_", "")).endswith(".Never"):
        what = "the audit looks at cached features, and never caches none"
        yield CombinationError("features", what, "type features=auto", 25)


def _unused(c: Composed) -> Iterator[XferError]:
    """What was typed and no stage asks for; a run whose card is drawn anew has done it."""
    stages = c.stages
    if stages == ("report",) and schema.value_at(c.plain, "checkpoint.resume"):
        return
    if "tta" in c.typed and stages and not {"evaluate", "predict"} & set(stages):
        what = f"is for evaluate and predict, and stages is {list(stages)}"
        yield CombinationError("tta", what, "drop it, or add 'evaluate' to stages", 21)
    if "calibration" in c.typed and stages and "fit" not in stages:
        what = f"is for the stage fit, and stages is {list(stages)}"
        yield CombinationError("calibration", what, "drop it, or add 'fit' to stages", 13)
    asked = schema.value_at(c.plain, "certificate.coverage") is not None
    if "certificate.coverage" in c.typed and asked and stages and "fit" not in stages:
        what = f"is fitted with the network, and stages is {list(stages)}"
        fix = "drop it: the checkpoint has the certificate of its fit"
        yield CombinationError("certificate.coverage", what, fix, 18)
    if "certificate.by_class" in c.typed and not asked:
        what = "is given without certificate.coverage, so that there are no sets"
        fix = "type certificate.coverage=0.9 as well"
        yield CombinationError("certificate.by_class", what, fix, 18)


def _heads(c: Composed) -> Iterator[XferError]:
    """Keys of a head that the plan sets by what the data is."""
    head = c.facts.get("head", {})
    sets = {
        "images": "is the number of training images, which the plan sets",
        "multilabel": "is whether an image has several labels, which the plan sets by task",
    }
    for key, what in sets.items():
        if key in head and (head[key] or f"head.{key}" in c.typed):
            yield errors.HeadError(f"head.{key}", what, "drop it", 2)


def _groups(c: Composed) -> Iterator[XferError]:
    """Groups of images with a stage that divides them."""
    data = c.facts.get("data", {})
    if data.get("group") is not None and data.get("folds") is None and "worth" in c.stages:
        what = "worth divides images without regard to groups"
        yield CombinationError("data.group", what, "drop it, or take worth out of stages", 8)


def _folds(c: Composed) -> Iterator[XferError]:
    """A cross-validation with what does not go with it."""
    stages = c.stages
    data = c.facts.get("data", {})
    if data.get("folds") is None:
        return
    whole = data.get("fold") is None
    # A model of its own, or a run whose card is drawn anew, has been fitted already.
    models = ("checkpoint.path", "checkpoint.resume")
    fitted = any(schema.value_at(c.plain, key) for key in models)
    if stages and "fit" not in stages and not fitted:
        what = f"a cross-validation fits, and stages is {list(stages)}"
        fix = "add 'fit' to stages, or drop data.folds"
        yield CombinationError("data.folds", what, fix, 8)
    elif whole and "lr_find" in stages:
        what = "a rate that is looked for on all images has seen those that the folds hold out"
        fix = "find the rate in another run, without data.folds, and type optim.lr=RATE"
        yield CombinationError("data.folds", what, fix, 8)
    if whole and "worth" in stages:
        what = "worth has folds of its own, and is checked on images that data.folds leaves out"
        yield CombinationError("data.folds", what, "drop it, or take worth out of stages", 8)
    if str(c.facts.get("head", {}).get("_target_", "")).endswith((".Knn", ".Prototype")):
        what = "the head answers each training image by all the others already: see cv_acc"
        yield CombinationError("data.folds", what, "drop it", 27)
    if "data.val_fraction" in c.typed:
        what = "is of no use: the folds take the place of val"
        yield CombinationError("data.val_fraction", what, "drop it, or drop data.folds", 11)
    if whole and c.facts.get("sweep", {}).get("pruner", "none") != "none":
        what = "compares epochs, and the value of a cross-validation is known at its end"
        yield CombinationError("sweep.pruner", what, "drop it, or drop data.folds", 12)


def _pairs(c: Composed) -> Iterator[XferError]:
    """Values that are fine alone and wrong together."""
    models = ("predict.model", "checkpoint.path")
    if all(schema.value_at(c.plain, key) for key in models):
        what = "and checkpoint.path are two models"
        yield ConfigError("predict.model", what, "drop one of them", 96)
    if schema.value_at(c.plain, "certificate.coverage") and c.plain.get("tta") != "none":
        what = "holds for one view of an image, and tta averages over several"
        yield CombinationError("certificate.coverage", what, "type tta=none", 17)
    asked = (("data", "sampler"), ("loss", "class_weights"))
    if all(c.facts.get(group, {}).get(key) == "balanced" for group, key in asked):
        what = "compensates for class sizes, and loss.class_weights=balanced does so again"
        fix = "type loss.class_weights=none, or drop data.sampler"
        yield ConfigError("data.sampler", what, fix, 89)
    trainer = c.facts.get("trainer", {})
    if trainer.get("precision") == "16-mixed" and trainer.get("accelerator") == "cpu":
        what = "16-mixed needs a GPU, trainer.accelerator is cpu"
        yield ConfigError("trainer.precision", what, "type trainer.precision=bf16-mixed", 22)
