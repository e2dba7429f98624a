"""A composed configuration, now plain, to specs: every group is built, every problem kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xfer.config import custom, schema
from xfer.config.contradictions import Composed, contradictions
from xfer.config.general_keys import GENERAL
from xfer.config.help import GROUPS
from xfer.config.provenance import Places, override_key
from xfer.config.specs import STAGES, Embedding, Exports, ModelFile, Packing, Promise, Specs
from xfer.core.errors import Attempts, ConfigError, XferError, raise_all
from xfer.core.files import path_problem
from xfer.core.types import Plain

_SPEC_GROUPS = tuple(g for g in GROUPS if g not in ("experiment", "export"))
_PATHS = (
    "run.dir checkpoint.path checkpoint.resume source.path features.dir loss.teacher "
    "predict.model predict.labels predict.recipe embed.neighbours sweep.dir pack.out"
).split()
"""Keys that name a file or folder; those of data and what is predicted have their own checks."""
_EMBED = vars(Embedding())
_WITHOUT_DATA = {"predict", "report", "leaderboard", "compare"}


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
            "predict_format": self._value("predict.format"),
        }
        if (trainer := built["trainer"]) is not None:
            general["metrics"] = custom.metrics(trainer.metrics, self.where, self.attempt)
            general["callbacks"] = custom.callbacks(trainer.callbacks, self.where, self.attempt)
        asked = Composed(
            self.plain,
            self.facts,
            stages,
            inputs,
            general["compare_runs"],
            general["packing"],
            general["embed"],
            frozenset(override_key(text) for text in typed),
        )
        self.attempt.errors += [
            *self._unknown_keys(),
            *self._impossible_paths(),
            *contradictions(asked),
        ]
        raise_all(self.attempt.errors)
        built.setdefault("data", None)
        return Specs(
            experiment=experiment,
            stages=stages,
            predict_input=(inputs,) if isinstance(inputs, str) else tuple(inputs or ()),
            make=schema.build,
            explicit=asked.typed,
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
        rest = {key: value for key, value in node.items() if key not in named}
        target = {"_target_": "xfer.export.Strictness", **rest}
        writers = [self._writer(key, value) for key, value in named.items()]
        gate = self.attempt(schema.build, "export", target, self.where)
        return gate and Exports(gate, tuple(w for w in writers if w is not None))

    def _writer(self, name: str, node: Plain) -> Any:
        """The writer of one format; ``None`` and an error for keys of one that is not chosen."""
        key = f"export.{name}"
        if "_target_" in node:
            return self.attempt(schema.build, "export", node, self.where, key)
        shared = ("export.images", "export.max_drop", "export.tolerance")
        what = f"has keys, and export chooses no format '{name}'"
        fix = (
            f"choose the format as well (one of your own names its class as {key}._target_), or "
            f"drop {key}; the keys of all are {', '.join(shared)}"
        )
        self.attempt.errors.append(ConfigError(self.where(key), what, fix, 5))
        return None

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
