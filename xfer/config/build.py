"""A composed configuration, now plain, to specs: every group is built, every problem kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from xfer.config import custom, other_tools, schema
from xfer.config.help import GROUPS
from xfer.config.provenance import Places, override_key
from xfer.config.specs import STAGES, Embedding, Exports, ModelFile, Packing, Promise, Specs
from xfer.core import errors
from xfer.core.errors import Attempts, CombinationError, ConfigError, XferError, closest, raise_all
from xfer.core.files import path_problem
from xfer.core.types import Calibrating, Plain, Tta

_SPEC_GROUPS = tuple(g for g in GROUPS if g not in ("experiment", "export"))
_PATHS = (
    "run.dir checkpoint.path checkpoint.resume source.path features.dir loss.teacher "
    "predict.model predict.labels predict.recipe embed.neighbours sweep.dir pack.out"
).split()
"""Keys that name a file or folder; those of data and what is predicted have their own checks."""
_EMBED = vars(Embedding())
_EMBED = vars(Embedding())
_WITHOUT_DATA = {"predict", "report", "leaderboard", "compare"}
_STAGES = "any of " + ", ".join(STAGES) + "; none prints the plan"
GENERAL: dict[str, tuple[Any, str]] = {
    "seed": (
        Annotated[int, Ge(0), Lt(2**32)],
        "what every random choice of the run is derived from",
    ),
    "stages": (tuple[str, ...], _STAGES),
    "tta": (
        Tta,
        "views of each image whose probabilities evaluate and predict average: none is the image "
        "alone, flip adds its mirror image, five_crop is its corners and centre, ten_crop those of "
        "both",
    ),
    "calibration": (
        Calibrating,
        "what scales the logits at the end of a fit, as a part of the last layer: temperature is "
        "one number, vector a scale and a shift a class; auto fits it on held-out training images "
        "where the head is solved, and does nothing where it is trained step by step",
    ),
    "certificate.coverage": (
        Annotated[float, Gt(0), Lt(1)] | None,
        "share of images whose prediction set is to have their true class, such as 0.9; "
        "predictions and ONNX files then have sets, and p-values of being unlike all training "
        "images; null is none of this",
    ),
    "certificate.by_class": (
        bool,
        "whether that share is to hold for each class for itself, which takes as many images of "
        "each as of all together otherwise",
    ),
    "run.dir": (str | None, "the run's folder; null makes outputs/<experiment or data's name>/..."),
    "predict.input": (
        str | tuple[str, ...] | None,
        "what is classified or embedded: a folder, a file, a glob pattern, or a list of them; "
        "embed without it takes the splits of the data",
    ),
    "predict.model": (
        str | None,
        "an ONNX file to predict with, in place of checkpoint.path; it is run without torch",
    ),
    "predict.labels": (
        str | tuple[str, ...] | None,
        "the class names of that file, a list or a file of them, where it does not hold them",
    ),
    "predict.recipe": (str | None, "the preprocess.json of that file, where it does not hold one"),
    "predict.maps": (
        Annotated[int, Ge(0), Le(200)],
        "how many of the predicted images a page shows with a heat map, the first ones; 0 is none",
    ),
    "embed.format": (
        Literal["npz", "parquet"],
        "the file that embed writes; parquet is written by pyarrow, which must be installed",
    ),
    "embed.neighbours": (
        str | None,
        "an image whose nearest neighbours among the embedded ones are printed and written",
    ),
    "embed.k": (Annotated[int, Gt(0)], "how many neighbours"),
    "compare.runs": (
        tuple[str, ...] | None,
        "the run folders that the stage compare puts beside each other, two or more",
    ),
    "pack.out": (
        str | None,
        "the folder that the stage pack writes shards of the images into; new, or begun by it",
    ),
    "pack.mb": (
        Annotated[int, Ge(1), Le(100_000)],
        "the megabytes (1e6 bytes) of a shard at most; an image that is larger has one of its own",
    ),
    "report.maps": (
        Annotated[int, Ge(0), Le(200)],
        "images on the run card that have a heat map, two mistakes for each right answer; 0 "
        "computes none",
    ),
}
"""Keys that are in no group: type and meaning. Their defaults are in conf/config.yaml."""


class Builder:
    """Builds every group and keeps the errors, so that all are reported together."""

    def __init__(self, plain: Plain, where: Places) -> None:
        self.plain, self.where = plain, where
        self.attempt = Attempts()
        self.facts: dict[str, Plain] = {}

    def specs(self, experiment: str, typed: Sequence[str]) -> Specs:
        """What the run is asked to do. Raises all problems together."""
        stages = self._value("stages") or ()
        inputs = self._value("predict.input")
        named = {"embed"} if inputs else set()
        needs_data = not stages or set(STAGES) & set(stages) - _WITHOUT_DATA - named
        # The card of a run that is named shows its images.
        if stages == ("report",) and schema.value_at(self.plain, "checkpoint.resume"):
            needs_data = True
        built = {g: self._group(g) for g in _SPEC_GROUPS if g != "data" or needs_data}
        general = {
            "seed": self._value("seed"),
            "tta": self._value("tta"),
            "calibration": self._value("calibration"),
            "run_dir": self._value("run.dir"),
            "certificate": self._promise(),
            "export": self._exports(),
            "predict_with": self._model_file(),
            "compare_runs": self._value("compare.runs") or (),
            "embed": Embedding(*(self._value(f"embed.{k}") for k in _EMBED)),
            "packing": Packing(self._value("pack.out") or "", self._value("pack.mb")),
            "report_maps": self._value("report.maps"),
            "predict_maps": self._value("predict.maps"),
        }
        if (trainer := built["trainer"]) is not None:
            general["metrics"] = custom.metrics(trainer.metrics, self.where, self.attempt)
            general["callbacks"] = custom.callbacks(trainer.callbacks, self.where, self.attempt)
        self.attempt.errors += [
            *self._unknown_keys(),
            *self._impossible_paths(),
            *self._wrong_stages(stages, inputs),
            *self._wrong_maps(stages),
            *self._wrong_comparison(stages, general["compare_runs"]),
            *self._wrong_packing(stages, general["packing"]),
            *self._wrong_audit(stages),
            *self._wrong_embedding(stages, general["embed"]),
            *self._contradictions(),
            *self._wrong_folds(stages, frozenset(override_key(text) for text in typed)),
            *self._unused(stages, frozenset(override_key(text) for text in typed)),
        ]
        raise_all(self.attempt.errors)
        built.setdefault("data", None)
        return Specs(
            experiment=experiment,
            stages=stages,
            predict_input=(inputs,) if isinstance(inputs, str) else tuple(inputs or ()),
            make=schema.build,
            explicit=frozenset(override_key(text) for text in typed),
            config={**self.plain, **self.facts},  # with every default spelt out
            overrides=tuple(typed),
            **general,
            **built,
        )

    def _group(self, name: str) -> Any:
        """The spec of one group, or ``None`` and a problem."""
        node = self.plain.get(name)
        spec = self.attempt(schema.build, name, node, self.where, name, self.where.elsewhere)
        if spec is not None:
            self.facts[name] = schema.facts(spec, self.plain[name])
        return spec

    def _value(self, key: str) -> Any:
        """One value outside the groups, or ``None`` and a problem."""
        if "." in key and not isinstance(self.plain.get(key.split(".")[0]), dict):
            return None  # and the problem is what stands in place of them all
        node = schema.value_at(self.plain, key)
        return self.attempt(schema.convert, key, node, GENERAL[key][0], self.where)

    def _promise(self) -> Promise:
        coverage, by_class = (self._value(f"certificate.{key}") for key in ("coverage", "by_class"))
        return Promise(coverage, bool(by_class))

    def _exports(self) -> Exports | None:
        """The export group is a list of writers by name beside the gate's own two keys."""
        node = self.plain.get("export") or {}
        if not isinstance(node, dict):
            unknown = schema.unknown("export", ["export.tolerance"], self.where)
            self.attempt.errors.append(unknown)
            return None
        named = {key: value for key, value in node.items() if isinstance(value, dict)}
        writers = [
            self.attempt(schema.build, "export", value, self.where, f"export.{key}")
            for key, value in named.items()
        ]
        rest = {key: value for key, value in node.items() if key not in named}
        target = {"_target_": "xfer.export.Strictness", **rest}
        gate = self.attempt(schema.build, "export", target, self.where)
        return gate and Exports(gate, tuple(w for w in writers if w is not None))

    def _model_file(self) -> ModelFile | None:
        """The exported file to predict with."""
        path = self._value("predict.model")
        labels = self._value("predict.labels")
        recipe = self._value("predict.recipe")
        if path is not None:
            return ModelFile(path, labels, recipe)
        for key, value in (("predict.labels", labels), ("predict.recipe", recipe)):
            if value is not None:
                what, fix = "describes predict.model, which is not given", "drop it"
                self.attempt.errors.append(ConfigError(key, what, fix, 94))
        return None

    def _unknown_keys(self) -> Iterator[XferError]:
        """Keys outside the groups' own, which the specs do not see."""
        known = [f"{g}.{key}" for g, node in self.facts.items() for key in node if key[0] != "_"]
        known = [*GENERAL, *GROUPS, *known]
        for top, node in self.plain.items():
            if top not in (*_SPEC_GROUPS, "export", "seed", "stages", "tta", "calibration"):
                for key in schema.leaves(str(top), node):
                    if key not in known or key in GROUPS:
                        yield schema.unknown(key, known, self.where)

    def _impossible_paths(self) -> Iterator[XferError]:
        """Names that no file can have: each call to the file system would fail in its own way."""
        for key, text in ((key, schema.value_at(self.plain, key)) for key in _PATHS):
            if isinstance(text, str) and (problem := path_problem(text)):
                said = f"'{text[:80]}' {problem}"
                yield ConfigError(self.where(key), said, "write the path out", 99)

    def _wrong_stages(self, stages: tuple[str, ...], inputs: Any) -> Iterator[XferError]:
        """Stages that do not exist, or do not go with each other or with what else is given."""
        for stage in stages:
            if stage not in STAGES:
                other = other_tools.STAGES.get(stage.lower())
                fix = f"did you mean '{other}'?" if other else closest(stage, STAGES)
                yield ConfigError("stages", f"there is no stage '{stage}'", fix, 8)
        if "predict" in stages and not inputs:
            yield schema.missing("predict.input")
        if inputs and not {"predict", "embed"} & set(stages):
            fix = "type 'stages=[predict]', or drop predict.input"
            yield ConfigError("predict.input", "is given but stages has no 'predict'", fix, 9)
        if schema.value_at(self.plain, "predict.model") is not None and stages != ("predict",):
            what = f"predicts with that file alone; stages is {list(stages)}"
            yield ConfigError("predict.model", what, "type 'stages=[predict]'", 95)
        if {"leaderboard", "soup"} & {*stages} and not self.facts.get("sweep", {}).get("dir"):
            fix = "type sweep.dir=outputs/multirun/EXPERIMENT/SWEEP"
            yield ConfigError("sweep.dir", "must be given", fix, 3)
        if "leaderboard" in stages and stages != ("leaderboard",):
            what = f"the leaderboard is made of runs that have ended; stages is {list(stages)}"
            yield ConfigError("stages", what, "type 'stages=[leaderboard]'", 76)

    def _wrong_maps(self, stages: tuple[str, ...]) -> Iterator[XferError]:
        """Heat maps of predictions where nothing is predicted, or with an exported file."""
        key, drop = "predict.maps", "or drop predict.maps"
        if not schema.value_at(self.plain, key):
            return
        if stages and "predict" not in stages:
            what, fix = "is given but stages has no 'predict'", f"type 'stages=[predict]', {drop}"
            yield errors.CommandError(key, what, fix, 40)
        if schema.value_at(self.plain, "predict.model") is not None:
            what = "heat maps are made of gradients, which an exported file does not have"
            fix = f"type checkpoint.path=RUN in place of predict.model, {drop}"
            yield errors.CommandError(key, what, fix, 41)

    def _wrong_embedding(self, stages: tuple[str, ...], asked: Embedding) -> Iterator[XferError]:
        """Keys of the stage ``embed`` without it, and a format that cannot be written."""
        if "embed" not in stages:
            for key in (f"embed.{k}" for k in _EMBED if getattr(asked, k) != _EMBED[k]):
                what, fix = "is given but stages has no 'embed'", "type 'stages=[embed]'"
                yield CombinationError(key, what, f"{fix}, or drop {key}", 36)
            return
        if asked.format == "parquet" and find_spec("pyarrow") is None:
            what = "parquet is written by pyarrow, which is not installed"
            fix = "type embed.format=npz, or pip install pyarrow"
            yield CombinationError("embed.format", what, fix, 35)

    def _wrong_comparison(
        self, stages: tuple[str, ...], runs: tuple[str, ...]
    ) -> Iterator[XferError]:
        """The stage ``compare`` with too few runs or with other stages, and runs without it."""
        fix = "type stages=[compare] 'compare.runs=[RUN,RUN]'"
        if "compare" not in stages:
            if runs:
                what = "is given but stages has no 'compare'"
                yield CombinationError("compare.runs", what, "type stages=[compare]", 42)
            return
        if stages != ("compare",):
            what = f"runs are compared that have ended; stages is {list(stages)}"
            yield CombinationError("stages", what, "type stages=[compare]", 42)
        if len(runs) < 2:
            what = f"names {len(runs) or 'no'} run{'s' * (not runs)}, and two or more are compared"
            yield CombinationError("compare.runs", what, fix, 40)
        for run in runs:
            if problem := path_problem(run):
                yield ConfigError("compare.runs", f"'{run[:80]}' {problem}", "write it out", 99)

    def _wrong_packing(self, stages: tuple[str, ...], asked: Packing) -> Iterator[XferError]:
        """The stage ``pack`` with other stages or without a folder, and a folder without it."""
        if "pack" not in stages:
            if asked.out or asked.mb != Packing.mb:
                what = "is given but stages has no 'pack'"
                key = "pack.out" if asked.out else "pack.mb"
                yield CombinationError(key, what, f"type stages=[pack], or drop {key}", 47)
        elif stages != ("pack",):
            what = f"packing is no part of a run; stages is {list(stages)}"
            yield CombinationError("stages", what, "type stages=[pack]", 47)
        elif not asked.out:
            what = "must be given: the folder that the shards are written into"
            yield CombinationError("pack.out", what, "type pack.out=OUT", 48)

    def _wrong_audit(self, stages: tuple[str, ...]) -> Iterator[XferError]:
        """The stage ``audit`` with what it cannot do its work with."""
        if "audit" not in stages:
            return
        if schema.value_at(self.plain, "checkpoint.path") is not None:
            what = "has been trained on labels that the audit is to judge"
            fix = "drop it: the audit takes the weights of source"
            yield CombinationError("checkpoint.path", what, fix, 24)
        if str(self.facts.get("features", {}).get("_target_", "")).endswith(".Never"):
            what = "the audit looks at cached features, and never caches none"
            yield CombinationError("features", what, "type features=auto", 25)

    def _unused(self, stages: tuple[str, ...], typed: Collection[str]) -> Iterator[XferError]:
        """What was typed and no stage asks for; a run whose card is drawn anew has done it."""
        if stages == ("report",) and schema.value_at(self.plain, "checkpoint.resume"):
            return
        if "tta" in typed and stages and not {"evaluate", "predict"} & set(stages):
            what = f"is for evaluate and predict, and stages is {list(stages)}"
            yield CombinationError("tta", what, "drop it, or add 'evaluate' to stages", 21)
        if "calibration" in typed and stages and "fit" not in stages:
            what = f"is for the stage fit, and stages is {list(stages)}"
            yield CombinationError("calibration", what, "drop it, or add 'fit' to stages", 13)
        asked = schema.value_at(self.plain, "certificate.coverage") is not None
        if "certificate.coverage" in typed and asked and stages and "fit" not in stages:
            what = f"is fitted with the network, and stages is {list(stages)}"
            fix = "drop it: the checkpoint has the certificate of its fit"
            yield CombinationError("certificate.coverage", what, fix, 18)
        if "certificate.by_class" in typed and not asked:
            what = "is given without certificate.coverage, so that there are no sets"
            fix = "type certificate.coverage=0.9 as well"
            yield CombinationError("certificate.by_class", what, fix, 18)

    def _wrong_folds(self, stages: tuple[str, ...], typed: Collection[str]) -> Iterator[XferError]:
        """A cross-validation with what does not go with it."""
        data = self.facts.get("data", {})
        if data.get("folds") is None:
            return
        whole = data.get("fold") is None
        # A model of its own, or a run whose card is drawn anew, has been fitted already.
        models = ("checkpoint.path", "checkpoint.resume")
        fitted = any(schema.value_at(self.plain, key) for key in models)
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
        if str(self.facts.get("head", {}).get("_target_", "")).endswith((".Knn", ".Prototype")):
            what = "the head answers each training image by all the others already: see cv_acc"
            yield CombinationError("data.folds", what, "drop it", 27)
        if "data.val_fraction" in typed:
            what = "is of no use: the folds take the place of val"
            yield CombinationError("data.val_fraction", what, "drop it, or drop data.folds", 11)
        if whole and self.facts.get("sweep", {}).get("pruner", "none") != "none":
            what = "compares epochs, and the value of a cross-validation is known at its end"
            yield CombinationError("sweep.pruner", what, "drop it, or drop data.folds", 12)

    def _contradictions(self) -> Iterator[XferError]:
        """Values that are fine alone and wrong together."""
        models = ("predict.model", "checkpoint.path")
        if all(schema.value_at(self.plain, key) for key in models):
            what = "and checkpoint.path are two models"
            yield ConfigError("predict.model", what, "drop one of them", 96)
        if schema.value_at(self.plain, "certificate.coverage") and self.plain.get("tta") != "none":
            what = "holds for one view of an image, and tta averages over several"
            yield CombinationError("certificate.coverage", what, "type tta=none", 17)
        asked = (("data", "sampler"), ("loss", "class_weights"))
        if all(self.facts.get(group, {}).get(key) == "balanced" for group, key in asked):
            what = "compensates for class sizes, and loss.class_weights=balanced does so again"
            fix = "type loss.class_weights=none, or drop data.sampler"
            yield ConfigError("data.sampler", what, fix, 89)
        trainer = self.facts.get("trainer", {})
        if trainer.get("precision") == "16-mixed" and trainer.get("accelerator") == "cpu":
            what = "16-mixed needs a GPU, trainer.accelerator is cpu"
            yield ConfigError("trainer.precision", what, "type trainer.precision=bf16-mixed", 22)
