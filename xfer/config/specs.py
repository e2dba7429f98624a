"""One run as asked for: a composed configuration, now plain, to the specs of its groups.

Every group is built and every problem kept, before any fact is derived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from xfer.config import custom, other_tools, schema
from xfer.config.contradictions import Composed, contradictions
from xfer.config.general_keys import GENERAL, STAGES, Embedding, Packing
from xfer.config.help import GROUPS
from xfer.config.provenance import Places, override_key
from xfer.config.verbs import repeatable, shell
from xfer.core.custom_parts import allowed_packages
from xfer.core.errors import Attempts, ConfigError, XferError, raise_all
from xfer.core.files import path_problem
from xfer.core.types import Calibrating, Plain, Tta

if TYPE_CHECKING:
    from xfer.config.checkpoint import CheckpointPolicy
    from xfer.config.choose import Choice, NoChoice
    from xfer.config.sweep_spec import SweepSpec
    from xfer.config.trainer import TrainerOptions
    from xfer.core import protocols, settings

_SPEC_GROUPS = tuple(g for g in GROUPS if g not in ("experiment", "export"))
_PATHS = (
    "run.dir checkpoint.path checkpoint.resume source.path features.dir loss.teacher "
    "predict.model predict.labels predict.recipe embed.neighbours sweep.dir pack.out"
).split()
"""Keys that name a file or folder; those of data and what is predicted have their own checks."""
_WITHOUT_DATA = {"predict", "report", "leaderboard", "compare"}


@dataclass(frozen=True)
class Exports:
    """What is exported, and the gate that every file must pass."""

    gate: settings.Gate
    writers: tuple[protocols.Writer, ...]


@dataclass(frozen=True)
class ModelFile:
    """An exported file to predict with. ``labels`` are class names, or a file of them, and
    ``recipe`` a ``preprocess.json``, for a file that does not say so itself."""

    path: str
    labels: str | tuple[str, ...] | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class Promise:
    """What a fit is asked to certify: the ``coverage`` of prediction sets, ``None`` for nothing,
    and whether each class is to have it for itself."""

    coverage: float | None = None
    by_class: bool = False


@dataclass(frozen=True)
class JobLauncher:
    """Who runs the jobs of a run that is alone: the option ``name`` of ``hydra/launcher``, with its
    ``options``. ``queue`` is ``None`` for slots of this machine; otherwise it gives the queue for
    jobs with these overrides, or says why there is none."""

    name: str
    options: Plain
    queue: Callable[[Sequence[Sequence[str]]], Any] | None = None


@dataclass(frozen=True)
class Specs:
    """One run as asked for: the built config groups, and what the command line said itself.

    ``data`` is ``None`` when no stage needs it; ``make`` builds the spec of a group from such facts
    as ``facts`` holds; ``overrides`` is what was typed, ``explicit`` the keys and groups in it, and
    ``config_dirs`` the user's folders of options; ``config`` is the resolved configuration as it
    was asked for; ``metrics`` are the user's, ``callbacks`` make the callbacks of a
    fit; ``compose`` gives that of other overrides, and ``variant`` their specs; ``choices`` are the
    options by group, but for ``export``, which has several; ``launcher`` runs the jobs of a run
    that is no job itself; ``chosen`` is what is known of the choice that this run makes the winner
    of; ``begun`` are devices, nodes and strategy of a run that goes on with others.
    """

    experiment: str
    seed: int
    stages: tuple[str, ...]
    run_dir: str | None
    predict_input: tuple[str, ...]
    task: protocols.LabelTask
    data: protocols.Data | None
    augment: protocols.Augment
    backbone: protocols.Backbone
    source: protocols.Source
    head: protocols.Head
    freeze: protocols.Freeze
    loss: protocols.Loss
    optim: protocols.Optim
    schedule: protocols.Schedule
    trainer: TrainerOptions
    checkpoint: CheckpointPolicy
    features: settings.Features
    export: Exports
    logger: protocols.Logger
    sweep: SweepSpec
    choose: NoChoice | Choice
    make: Callable[[str, Plain], Any]
    explicit: frozenset[str] = frozenset()
    config: Plain = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    predict_with: ModelFile | None = None
    compare_runs: tuple[str, ...] = ()
    metrics: Mapping[str, protocols.CustomMetric] = field(default_factory=dict)
    callbacks: Sequence[Callable[[], Any]] = ()
    tta: Tta = "none"
    calibration: Calibrating = "auto"
    certificate: Promise = Promise()
    embed: Embedding = field(default_factory=Embedding)
    packing: Packing = field(default_factory=Packing)
    report_maps: int = 24
    predict_maps: int = 0
    predict_format: Literal["csv", "parquet"] = "csv"
    compose: Callable[[Sequence[str]], Plain] | None = None
    launcher: JobLauncher | None = None
    variant: Callable[[Sequence[str]], Specs] | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    chosen: Plain | None = None
    begun: Plain | None = None

    @property
    def begun_ranks(self) -> int:
        """How many processes the run has begun with: its batches, rates and steps are theirs."""
        return self.begun["devices"] * self.begun["nodes"] if self.begun else self.trainer.ranks

    @cached_property
    def facts(self) -> Mapping[str, Plain]:
        """``_target_`` and the plain arguments of each group, whatever has been decided about it
        since it was asked for."""
        specs = {group: getattr(self, group) for group in GROUPS if group != "export"}
        return {
            group: schema.facts(spec, self.config[group])
            for group, spec in specs.items()
            if spec is not None and group != "experiment"
        }

    @property
    def command(self) -> str:
        """The command that makes this run again, in a folder of its own."""
        folders = [f"--config-dir={folder}" for folder in self.config_dirs]
        allow = [f"--allow={package}" for package in allowed_packages()]
        return shell([*folders, *allow, *repeatable(self.overrides)])

    @property
    def redraws(self) -> bool:
        """Whether the card of a finished run is drawn anew, if that is what is resumed."""
        return self.stages == ("report",) and self.checkpoint.resume not in (None, "auto")

    @property
    def trains(self) -> bool:
        """Whether a stage needs a model to train, or the images that one is trained on."""
        return bool({"fit", "lr_find", "audit", "worth"} & set(self.stages))

    @property
    def answers(self) -> bool:
        """Whether a stage needs a model that has been trained elsewhere."""
        return "fit" not in self.stages and bool(
            {"evaluate", "predict", "export"} & set(self.stages)
        )

    @property
    def calibrates(self) -> bool:
        """Whether an exported file needs training images."""
        approximate = any(getattr(w, "trial", "") == "score" for w in self.export.writers)
        return "export" in self.stages and approximate


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
        embeds = {"embed"} if inputs else set()
        needs_data = not stages or set(STAGES) & set(stages) - _WITHOUT_DATA - embeds
        # The card of a run that is named shows its images.
        if stages == ("report",) and schema.value_at(self.plain, "checkpoint.resume"):
            needs_data = True
        built = {g: self._group(g) for g in _SPEC_GROUPS if g != "data" or needs_data}
        general = {
            "seed": self._value("seed"),
            "tta": self._value("tta"),
            "calibration": self._value("calibration"),
            "run_dir": self._value("run.dir"),
            "certificate": Promise(
                self._value("certificate.coverage"), bool(self._value("certificate.by_class"))
            ),
            "export": self._exports(),
            "predict_with": self._model_file(),
            "compare_runs": self._value("compare.runs") or (),
            "embed": Embedding(*(self._value(f"embed.{k}") for k in vars(Embedding()))),
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
            *self._worse_end(built, general.get("metrics") or {}),
            *contradictions(asked),
        ]
        raise_all(self.attempt.errors)
        return Specs(
            experiment=experiment,
            stages=stages,
            predict_input=(inputs,) if isinstance(inputs, str) else tuple(inputs or ()),
            make=schema.build,
            explicit=asked.typed,
            config={**self.plain, **self.facts},  # with every default spelt out
            overrides=tuple(typed),
            **general,
            **{"data": None, **built},
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
                        fix = other_tools.for_key(key, GROUPS, schema.value_at(self.plain, key))
                        yield schema.unknown(key, known, self.where, fix)

    def _worse_end(self, built: Plain, metrics: Plain) -> Iterator[XferError]:
        """A metric whose best is looked for at its worse end."""
        task, policy = built["task"], built["checkpoint"]
        for row in task.rows(metrics) if task and policy else ():
            watched = row.name == policy.monitor.partition("_")[2]
            if watched and policy.mode not in ("auto", row.better):
                what = f"is {policy.mode}, but the best {policy.monitor} is its {row.better}imum"
                fix = f"type checkpoint.mode={row.better}"
                yield ConfigError("checkpoint.mode", what, fix, 72)

    def _impossible_paths(self) -> Iterator[XferError]:
        """Names that no file can have: each call to the file system would fail in its own way."""
        for key, text in ((key, schema.value_at(self.plain, key)) for key in _PATHS):
            if isinstance(text, str) and (problem := path_problem(text)):
                said = f"'{text[:80]}' {problem}"
                yield ConfigError(self.where(key), said, "write the path out", 99)
