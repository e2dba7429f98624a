"""The door: Hydra composes, this module checks, and plain specs go in. Hydra ends here."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xfer import schema
from xfer.errors import ConfigError, XferError, closest, raise_all
from xfer.help import GROUPS, config_dir
from xfer.plan import STAGES, Exports, Specs
from xfer.types import Plain

OmegaConf.register_new_resolver(
    "xfer.unique", lambda: secrets.token_hex(3), use_cache=True, replace=True
)

_TASK = ("experiment", "data", "data.root", "data.file", "checkpoint.path", "checkpoint.resume")
QUICK_START = "experiment=digits_freeze"


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """The command line as Hydra needs it.

    Without a task the quick start is chosen. A plain ``key=value`` may set any field of a spec,
    also one that no file mentions; fields that do not exist are refused after composition.
    """
    keys = [override_key(text) for text in overrides]
    quick = [] if any(key in _TASK for key in keys) else [QUICK_START]
    forced = [
        f"++{text}" if re.match(r"[a-z]", text) and _is_field(key) else text
        for text, key in zip(overrides, keys, strict=True)
    ]
    return quick + forced


def override_key(text: str) -> str:
    """``optim.lr`` of ``++optim.lr=0.1``."""
    return text.partition("=")[0].lstrip("+~").split("@")[0]


def _is_field(key: str) -> bool:
    return key not in GROUPS and not key.startswith("hydra") and "/" not in key


def compose_specs(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Specs:
    """Specs from overrides, without a command line; ``config_dirs`` are searched as well."""
    search = [
        f"hydra.searchpath=[{','.join('file://' + str(Path(d).resolve()) for d in config_dirs)}]"
    ]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=config_dir(), version_base="1.3", job_name="xfer"):
            cfg = compose(
                "config",
                [*prepare_overrides(overrides), *(search if config_dirs else [])],
                return_hydra_config=True,
            )
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise told(error) from error
    return build(cfg, cfg.hydra)


def told(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf says, in xfer's words."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        return ConfigError(
            group or "config",
            f"there is no option '{option}'",
            closest(option, error.options or []),
            4,
        )
    found = re.search(r"Could not override '([^']+)'", str(error))
    if found:
        key = found[1].split("@")[0]
        return ConfigError("command line", f"there is no group '{key}'", closest(key, GROUPS), 1)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ConfigError(
        "configuration", "; ".join(lines[:2]) or type(error).__name__, "see xfer --help", 7
    )


def build(cfg: DictConfig, hydra: DictConfig) -> Specs:
    """The specs of a composed configuration. Raises all problems together."""
    choices = dict(hydra.runtime.choices)
    typed = [text.lstrip("+") for text in hydra.overrides.task]
    sources = _Sources(choices, typed, [s.path for s in hydra.runtime.config_sources])
    try:
        groups = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        plain: Plain = OmegaConf.to_container(groups, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise told(error) from error
    if hydra.mode is RunMode.MULTIRUN:
        plain["run"]["dir"] = str(Path(hydra.sweep.dir) / str(hydra.job.num))
    return _Builder(plain, sources).specs(str(choices["experiment"]), typed)


class _Builder:
    """Builds every group and keeps the errors, so that all are told together."""

    def __init__(self, plain: Plain, where: _Sources) -> None:
        self.plain, self.where = plain, where
        self.problems: list[XferError] = []
        self.facts: dict[str, Plain] = {}

    def specs(self, experiment: str, typed: Sequence[str]) -> Specs:
        known: Plain = dict.fromkeys((*GROUPS, "seed", "stages"))
        known |= {"run": {"dir": None}, "predict": {"input": None}}
        self.problems += schema.check_keys(self.plain, known, self.where)
        stages = self.value("stages", tuple[str, ...]) or ()
        needs_data = not stages or {"fit", "evaluate", "export"} & set(stages)
        built = {
            group: self.group(group)
            for group in (*_SPEC_GROUPS, "features")
            if group != "data" or needs_data
        }
        inputs = self.value("predict.input", str | tuple[str, ...] | None)
        general = {
            "seed": self.value("seed", int),
            "run_dir": self.value("run.dir", str | None),
            "export": self.exports(),
        }
        self.contradictions(stages, inputs)
        raise_all(self.problems)
        built.setdefault("data", None)
        built.pop("features")
        return Specs(
            experiment=experiment,
            stages=stages,
            predict_input=(inputs,) if isinstance(inputs, str) else tuple(inputs or ()),
            facts=self.facts,
            make=schema.build,
            explicit=frozenset(override_key(text) for text in typed),
            config=self.resolved(),
            command=shlex.join(["python", "-m", "xfer", *typed]),
            **general,
            **built,
        )

    def group(self, name: str) -> Any:
        try:
            spec = schema.build(name, self.plain.get(name), self.where)
        except XferError as error:
            self.problems += getattr(error, "errors", [error])
            return None
        self.facts[name] = schema.facts(name, spec, self.plain[name])
        return spec

    def value(self, key: str, hint: Any) -> Any:
        node: Any = self.plain
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        try:
            return schema.convert(key, node, hint, self.where)
        except XferError as error:
            self.problems.append(error)
            return None

    def exports(self) -> Exports | None:
        """The export group is a list of writers by name beside the gate's own two keys."""
        node = self.plain.get("export") or {}
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
        key = f"export.{name}"
        try:
            return schema.build("export", node, lambda k: self.where(k.replace("export", key, 1)))
        except XferError as error:
            self.problems += getattr(error, "errors", [error])
            return None

    def contradictions(self, stages: tuple[str, ...], inputs: Any) -> None:
        for stage in stages:
            if stage not in STAGES:
                self.problems.append(
                    ConfigError("stages", f"there is no stage '{stage}'", closest(stage, STAGES), 8)
                )
        if "predict" in stages and not inputs:
            self.problems.append(schema.missing("predict.input"))
        if inputs and "predict" not in stages:
            self.problems.append(
                ConfigError(
                    "predict.input",
                    "is given but stages has no 'predict'",
                    "type stages=[predict]",
                    9,
                )
            )
        trainer = self.facts.get("trainer", {})
        if trainer.get("precision") == "16-mixed" and trainer.get("accelerator") == "cpu":
            self.problems.append(
                ConfigError(
                    "trainer.precision",
                    "16-mixed needs a GPU, trainer.accelerator is cpu",
                    "use bf16-mixed",
                    10,
                )
            )

    def resolved(self) -> Plain:
        """The configuration with every default spelt out."""
        return {**self.plain, **self.facts}


_SPEC_GROUPS = tuple(g for g in GROUPS if g not in ("experiment", "sweep", "export", "features"))


class _Sources:
    """Names the place where a key was set: the command line, or the file that holds it."""

    def __init__(
        self, choices: dict[str, Any], typed: Sequence[str], folders: Sequence[str]
    ) -> None:
        self.choices = choices
        self.typed = {override_key(text) for text in typed}
        self.roots = [Path(folder) for folder in folders if folder and Path(folder).is_dir()]

    def __call__(self, key: str) -> str:
        if key in self.typed or any(
            key.startswith(f"{t}.") and t not in GROUPS for t in self.typed
        ):
            return f"command line: {key}"
        for file in self._files(key.split(".")[0]):
            if _holds(file, key):
                return f"{file}: {key}"
        return key

    def _files(self, group: str) -> list[Path]:
        names = [f"experiment/{self.choices.get('experiment')}", "config"]
        chosen = self.choices.get(group)
        names[1:1] = [f"{group}/{o}" for o in (chosen if isinstance(chosen, list) else [chosen])]
        return [f for root in self.roots for n in names if (f := root / f"{n}.yaml").is_file()]


def _holds(file: Path, key: str) -> bool:
    node = yaml.safe_load(file.read_text()) or {}
    parts = key.split(".")
    # A group's own file starts below the group; an experiment starts at the top.
    for start in (parts, parts[1:]):
        inner: Any = node
        for part in start:
            inner = inner.get(part, ...) if isinstance(inner, dict) else ...
        if start and inner is not ...:
            return True
    return False


def parse(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that is no ``key=value``."""
    for text in overrides:
        try:
            OverridesParser.create().parse_override(text)
        except HydraException as error:
            fix = "write key=value; put values with spaces or *?[]{}, in quotes: 'key=\"a b\"'"
            raise ConfigError("command line", f"'{text}' is not understood", fix, 7) from error
