"""One run as asked for: the built config groups, before any fact is derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from xfer.config import schema
from xfer.config.help import GROUPS
from xfer.config.verbs import repeatable, shell
from xfer.core.custom_parts import allowed_packages
from xfer.core.types import Calibrating, Plain, Tta

if TYPE_CHECKING:
    from xfer.core import protocols, settings

STAGES = (
    *("audit", "lr_find", "fit", "evaluate", "predict", "export", "benchmark", "report"),
    *("leaderboard", "compare", "worth", "embed", "pack", "soup"),
)


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
class Embedding:
    """What the stage embed writes: the ``format`` of its file, and the ``k`` images nearest to the
    image ``neighbours``, if one is named."""

    format: Literal["npz", "parquet"] = "npz"
    neighbours: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Packing:
    """Where the stage pack writes the images of a folder, and the megabytes (1e6 bytes) of a
    shard."""

    out: str = ""
    mb: int = 256


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
    of.
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
    trainer: settings.Trainer
    checkpoint: settings.Checkpoint
    features: settings.Features
    export: Exports
    logger: protocols.Logger
    sweep: settings.Sweep
    choose: settings.Choose
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
    embed: Embedding = Embedding()
    packing: Packing = Packing()
    report_maps: int = 24
    predict_maps: int = 0
    predict_format: Literal["csv", "parquet"] = "csv"
    compose: Callable[[Sequence[str]], Plain] | None = None
    launcher: JobLauncher | None = None
    variant: Callable[[Sequence[str]], Specs] | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    chosen: Plain | None = None

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
