"""A composed configuration, now plain, to specs: every group is built, every problem kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt

from xfer.config import other_tools, schema
from xfer.config.help import GROUPS
from xfer.config.provenance import Places, override_key
from xfer.config.specs import STAGES, Exports, ModelFile, Specs
from xfer.core.errors import CombinationError, ConfigError, XferError, closest, raise_all
from xfer.core.files import path_problem
from xfer.core.types import Plain

_SPEC_GROUPS = tuple(g for g in GROUPS if g not in ("experiment", "export"))
_PATHS = (
    *(
        "run.dir",
        "checkpoint.path",
        "checkpoint.resume",
        "source.path",
        "features.dir",
        "sweep.dir",
    ),
    *("predict.model", "predict.labels", "predict.recipe"),
)
"""Keys that name a file or folder; those of data and what is predicted have their own checks."""
_STAGES = "any of " + ", ".join(STAGES) + "; none prints the plan"
GENERAL: dict[str, tuple[Any, str]] = {
    "seed": (
        Annotated[int, Ge(0), Lt(2**32)],
        "what every random choice of the run is derived from",
    ),
    "stages": (tuple[str, ...], _STAGES),
    "run.dir": (str | None, "the run's folder; null makes outputs/<experiment or data's name>/..."),
    "predict.input": (
        str | tuple[str, ...] | None,
        "what is classified: a folder, a file, a glob pattern, or a list of them",
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
}
"""Keys that are in no group: type and meaning. Their defaults are in conf/config.yaml."""


def run_name(experiment: str, data: str, *places: Any) -> str:
    """The name of a run's folder below ``outputs``: the experiment's, else that of the folder or
    file that ``places`` has first, else the option of ``data``."""
    if experiment != "default":
        return experiment
    place = next((place for place in places if isinstance(place, str) and place), data)
    name = Path(place).expanduser().resolve().name.removesuffix(".csv")
    # Those of sweeps lie below that name.
    return name if name not in ("", "multirun") else data


class Builder:
    """Builds every group and keeps the errors, so that all are told together."""

    def __init__(self, plain: Plain, where: Places) -> None:
        self.plain, self.where = plain, where
        self.problems: list[XferError] = []
        self.facts: dict[str, Plain] = {}

    def specs(self, experiment: str, typed: Sequence[str]) -> Specs:
        """What the run is asked to do. Raises all problems together."""
        stages = self.value("stages") or ()
        needs_data = not stages or set(STAGES) & set(stages) - {"predict", "report", "leaderboard"}
        built = {
            group: self.group(group) for group in _SPEC_GROUPS if group != "data" or needs_data
        }
        inputs = self.value("predict.input")
        general = {
            "seed": self.value("seed"),
            "run_dir": self.value("run.dir"),
            "export": self.exports(),
            "predict_with": self.model_file(stages),
        }
        self.unknown_keys()
        self.paths()
        self.contradictions(stages, inputs)
        self.leaderboard(stages)
        raise_all(self.problems)
        built.setdefault("data", None)
        return Specs(
            experiment=experiment,
            stages=stages,
            predict_input=(inputs,) if isinstance(inputs, str) else tuple(inputs or ()),
            facts=self.facts,
            make=schema.build,
            explicit=frozenset(override_key(text) for text in typed),
            config=self.resolved(),
            overrides=tuple(typed),
            **general,
            **built,
        )

    def unknown_keys(self) -> None:
        """Keys outside the groups' own, which the specs do not see."""
        known = [f"{g}.{key}" for g, node in self.facts.items() for key in node if key[0] != "_"]
        known = [*GENERAL, *GROUPS, *known]
        for top, node in self.plain.items():
            if top not in (*_SPEC_GROUPS, "export", "seed", "stages"):
                self.problems += [
                    schema.unknown(key, known, self.where)
                    for key in schema.leaves(str(top), node)
                    if key not in known or key in GROUPS
                ]

    def paths(self) -> None:
        """Names that no file can have: each call to the file system would fail in its own way."""
        for key in _PATHS:
            text = schema.value_at(self.plain, key)
            if isinstance(text, str) and (problem := path_problem(text)):
                what = f"'{text[:80]}' {problem}"
                self.problems.append(ConfigError(self.where(key), what, "write the path out", 99))

    def group(self, name: str) -> Any:
        """The spec of one group, or ``None`` and problems."""
        try:
            spec = schema.build(name, self.plain.get(name), self.where, name, self.where.elsewhere)
        except XferError as error:
            self.problems += getattr(error, "errors", [error])
            return None
        self.facts[name] = schema.facts(name, spec, self.plain[name])
        return spec

    def value(self, key: str) -> Any:
        """One value outside the groups, or ``None`` and a problem."""
        try:
            found = schema.value_at(self.plain, key)
            return schema.convert(key, found, GENERAL[key][0], self.where)
        except XferError as error:
            self.problems.append(error)
            return None

    def model_file(self, stages: tuple[str, ...]) -> ModelFile | None:
        """The exported file to predict with, which leaves no room for another model."""
        path = self.value("predict.model")
        labels = self.value("predict.labels")
        recipe = self.value("predict.recipe")
        if path is None:
            for key, value in (("predict.labels", labels), ("predict.recipe", recipe)):
                if value is not None:
                    what, fix = "describes predict.model, which is not given", "drop it"
                    self.problems.append(ConfigError(key, what, fix, 94))
            return None
        if stages != ("predict",):
            what = f"predicts with that file alone; stages is {list(stages)}"
            fix = "type stages=[predict]"
            self.problems.append(ConfigError("predict.model", what, fix, 95))
        if (self.plain.get("checkpoint") or {}).get("path"):
            what = "and checkpoint.path are two models"
            self.problems.append(ConfigError("predict.model", what, "drop one of them", 96))
        return ModelFile(path, labels, recipe)

    def leaderboard(self, stages: tuple[str, ...]) -> None:
        """It needs the folder of a sweep, and is all that is done then."""
        if "leaderboard" in stages and self.facts.get("sweep", {}).get("dir") is None:
            fix = "type sweep.dir=outputs/multirun/EXPERIMENT/SWEEP"
            self.problems.append(ConfigError("sweep.dir", "must be given", fix, 3))
        if "leaderboard" in stages and stages != ("leaderboard",):
            what = f"the leaderboard is of runs that are over; stages is {list(stages)}"
            fix = "type stages=[leaderboard]"
            self.problems.append(ConfigError("stages", what, fix, 76))

    def exports(self) -> Exports | None:
        """The export group is a list of writers by name beside the gate's own two keys."""
        node = self.plain.get("export") or {}
        if not isinstance(node, dict):
            self.problems.append(schema.unknown("export", ["export.tolerance"], self.where))
            return None
        named = {key: value for key, value in node.items() if isinstance(value, dict)}
        writers = [self.writer(key, value) for key, value in named.items()]
        rest = {key: value for key, value in node.items() if key not in named}
        try:
            target = {"_target_": "xfer.export.Gate", **rest}
            gate = schema.build("export", target, self.where)
        except XferError as error:
            self.problems += getattr(error, "errors", [error])
            return None
        return Exports(gate, tuple(w for w in writers if w is not None))

    def writer(self, name: str, node: Plain) -> Any:
        """One exporter, or ``None`` and problems."""
        try:
            return schema.build("export", node, self.where, f"export.{name}")
        except XferError as error:
            self.problems += getattr(error, "errors", [error])
            return None

    def contradictions(self, stages: tuple[str, ...], inputs: Any) -> None:
        """Values that are fine alone and wrong together."""
        for stage in stages:
            if stage not in STAGES:
                other = other_tools.STAGES.get(stage.lower())
                fix = f"did you mean '{other}'?" if other else closest(stage, STAGES)
                self.problems.append(ConfigError("stages", f"there is no stage '{stage}'", fix, 8))
        if "predict" in stages and not inputs:
            self.problems.append(schema.missing("predict.input"))
        if inputs and "predict" not in stages:
            self.problems.append(
                ConfigError(
                    "predict.input",
                    "is given but stages has no 'predict'",
                    "type stages=[predict], or drop predict.input",
                    9,
                )
            )
        asked = (("data", "sampler"), ("loss", "class_weights"))
        if all(self.facts.get(group, {}).get(key) == "balanced" for group, key in asked):
            what = "makes up for the classes' sizes, and loss.class_weights=balanced does again"
            fix = "type loss.class_weights=none, or drop data.sampler"
            self.problems.append(ConfigError("data.sampler", what, fix, 89))
        trainer = self.facts.get("trainer", {})
        if trainer.get("on_oom") == "halve" and trainer.get("devices", 1) > 1:
            what, fix = "halve works on one device alone", "type trainer.on_oom=error"
            self.problems.append(CombinationError("trainer.on_oom", what, fix, 1))
        if trainer.get("precision") == "16-mixed" and trainer.get("accelerator") == "cpu":
            self.problems.append(
                ConfigError(
                    "trainer.precision",
                    "16-mixed needs a GPU, trainer.accelerator is cpu",
                    "type trainer.precision=bf16-mixed",
                    22,
                )
            )

    def resolved(self) -> Plain:
        """The configuration with every default spelt out."""
        return {**self.plain, **self.facts}
