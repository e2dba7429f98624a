"""The door: Hydra composes, this module checks, and plain specs go in. Hydra ends here."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.types import HydraContext, RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xfer.config import allowed_below_hydra, other_tools
from xfer.config.help import GROUPS, config_dir
from xfer.config.provenance import Places, override_key
from xfer.config.schema import value_at
from xfer.config.specs import Builder, JobLauncher, Specs
from xfer.config.verbs import override, quoted
from xfer.core.bounded_yaml import is_deep, read_yaml
from xfer.core.errors import CombinationError, ConfigError, FoldError, closest
from xfer.core.types import Plain

BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
"""For whoever starts Hydra: 1.3 wants it, 1.4 warns about it."""


def run_name(experiment: str, data: str, *places: Any) -> str:
    """The name of a run's folder below ``outputs``: the experiment's, else that of the folder or
    file that ``places`` has first, of a pattern the folder above it; else the option of ``data``.
    """
    if experiment != "default":
        return experiment
    named = [place for place in places if isinstance(place, str) and place not in ("", "???")]
    place = Path(named[0] if named else data)
    while any(sign in place.name for sign in "*?[") and not place.exists():
        place = place.parent
    place = place.expanduser().resolve()
    name = place.stem if place.suffix in (".csv", ".json", ".npz", ".parquet") else place.name
    # Those of sweeps lie below that name.
    return name if name not in ("", "multirun") else data


# OmegaConf 2.4 calls it register_resolver, which in 2.3 is an older one without a cache.
_register: Any = OmegaConf.register_resolver
if "use_cache" not in signature(_register).parameters:
    _register = OmegaConf.register_new_resolver
_register("xfer.unique", lambda: secrets.token_hex(3), use_cache=True, replace=True)
_register("xfer.run_name", run_name, replace=True)


_load_any_config = ConfigRepository.load_config


def _load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Hydra's reader of YAML files, with limits and a short list for those that are not ours.

    Here, where each file is read, none is missed: not what a job of a sweep chooses, nor a folder
    that is named in another way.
    """
    source = next((s for s in self.get_sources() if s.is_config(config_path)), None)
    if source is None or (source.scheme() != "file" and source.provider != "hydra"):
        return _load_any_config(self, config_path)
    name = config_path.removesuffix(".yaml")
    file = Path(source.path) / f"{name}.yaml"
    if source.provider == "hydra":
        return _read_once(self, config_path, 0)
    if Path(source.path) == Path(config_dir()):
        return _read_once(self, config_path, file.stat().st_mtime_ns)
    try:
        content = read_yaml(file)
    except (OSError, ValueError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(file, what, "mend that file", 7) from error
    result = _load_any_config(self, config_path)
    if result is not None:
        group, _, option = name.rpartition("/")
        package = result.header.get("package")
        allowed_below_hydra.check(str(file), group, option, package, content)
    return result


_read: dict[tuple[str, int], ConfigResult | None] = {}


def _read_once(self: ConfigRepository, config_path: str, changed: int) -> ConfigResult | None:
    """A file of Hydra or of ours. To read the thirty of one composition takes a third of its time,
    and a process may compose many: a copy takes a sixth of that."""
    key = config_path, changed
    if key not in _read:
        _read[key] = _load_any_config(self, config_path)
    return deepcopy(_read[key])


ConfigRepository.load_config = _load_config  # type: ignore[method-assign]


_choices_so_far: Any = getattr(defaults_list, "_create_interpolation_map", None)


def _choices_where_read(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
    """The choices that an option such as ``${data}`` of a defaults list names. Hydra collects them
    for each of thirty lists, a third of all its work, where no list of ours reads one."""
    if any(not default.is_self() and default.is_interpolation() for default in defaults):
        return cast("DictConfig", _choices_so_far(overrides, defaults, self_added))
    return DictConfig({})


if _choices_so_far is not None:  # Hydra 1.4 has them collected where they are read
    defaults_list._create_interpolation_map = _choices_where_read  # type: ignore[assignment]


_composed_mode = Hydra.get_mode


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """Whether one run or several are asked for. Hydra composes everything to learn that, and then
    once more; but no file may say it, and hardly a command line does."""
    named = {"hydra", "hydra.mode"} & set(map(override_key, overrides))
    return _composed_mode(self, config_name, overrides) if named else None


Hydra.get_mode = _mode  # type: ignore[method-assign]

_TASK = ("experiment", "data", "data.root", "data.file", "checkpoint.path", "predict.model")
QUICK_START = "experiment=digits_freeze"


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """The command line as Hydra needs it.

    Without a task the quick start is chosen. A plain ``key=value`` may set any field of a spec,
    also one that no file mentions; fields that do not exist are refused after composition, so
    ``+key=value`` and ``++key=value`` gain nothing. Raises ConfigError for what is no override.
    """
    overrides = [_quoted(text) for text in overrides]
    for text in overrides:
        _check_override(text)
    keys = [override_key(text) for text in overrides]
    # Images that are embedded are a task; those that are predicted need a model named as well.
    embeds = "predict.input" in keys and any(
        key == "stages" and "embed" in text for key, text in zip(keys, overrides, strict=True)
    )
    quick = [] if embeds or any(key in _TASK for key in keys) else [QUICK_START]
    return quick + [_forced(text, key) for text, key in zip(overrides, keys, strict=True)]


# Up to the next sign of Hydra's grammar, without the spaces around it.
_BEYOND_ASCII = re.compile(
    r"""(?![\s])(?=[^][{},:=$"']*[^\x00-\x7f])[^][{},:=$"']*[^][{},:=$"'\s]"""
)


def _quoted(text: str) -> str:
    """``text`` with quotes around each value that has letters beyond ASCII, as Hydra's grammar
    wants them; as it is where that is no override either."""
    key, sign, value = text.partition("=")
    if value.isascii() or set(value) & set("\"'"):
        return text
    quoted = key + sign + _BEYOND_ASCII.sub(r'"\g<0>"', value)
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return text
    return quoted


def _forced(text: str, key: str) -> str:
    if text.startswith("~") or key.startswith("hydra") or "/" in key:
        # Hydra refuses keys inside an empty dictionary, such as additional_parameters.
        return f"++{text}" if key == "hydra.launcher.additional_parameters" else text
    return text.lstrip("+") if key in GROUPS else f"++{text.lstrip('+')}"


def _check_override(text: str) -> None:
    try:
        if is_deep(text):
            raise HydraException("nested too deeply")  # Hydra's parser would take minutes
        parsed = OverridesParser.create().parse_override(text)
        if not parsed.key_or_group:
            raise HydraException("no key")
    except HydraException as error:
        fix = "write key=value; put values with spaces or *?[]{}, in quotes: 'key=\"a b\"'"
        if re.search(r"[^\x00-\x7f][^{},]*:", text):
            fix += "; put names that are not ASCII before a colon into an experiment file"
        what = f"'{text[:200]}' is not understood"
        raise ConfigError("command line", what, fix, 7) from error
    key, value = parsed.key_or_group, parsed.value()
    no_option = isinstance(value, bool | int | float | dict) or value is None
    if key in GROUPS and no_option and not parsed.is_delete():
        fix = other_tools.for_option(key, json.dumps(value)) or f"type {key}=OPTION; see --help"
        raise ConfigError("command line", f"'{text}' names no option", fix, 4)


def job_row(overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides of a job of several, whose run folder is ``folder``, as Hydra's launchers take
    them."""
    place = [override("hydra.sweep.dir", str(folder.parent)), f"hydra.sweep.subdir={folder.name}"]
    several = ["hydra.mode=MULTIRUN", *place, "++checkpoint.resume=auto"]
    return [*prepare_overrides(overrides), *several]


def compose_specs(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Specs:
    """Specs from overrides, without a command line; ``config_dirs`` are searched as well."""
    return build(_composed(overrides, config_dirs))


def with_places(text: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> str:
    """What ``--cfg job`` shows, each value with a comment that says where it was set."""
    return _places(_composed(overrides, config_dirs).hydra)[0].annotated(text)


def _composed(overrides: Sequence[str], config_dirs: Sequence[str]) -> DictConfig:
    folders = ",".join(f"'file://{Path(d).resolve()}'" for d in config_dirs)
    search = [f"hydra.searchpath=[{folders}]"] if config_dirs else []
    wanted = prepare_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=config_dir(), job_name="xfer", **BASE):
            return compose("config", [*wanted, *search], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise as_config_error(error) from error


def _places(hydra: DictConfig) -> tuple[Places, list[str]]:
    """Where keys were set, and the overrides that were typed."""
    # Not resolved: an override may hold an interpolation of its own.
    raw = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    typed = [str(text).lstrip("+") for text in raw]  # type: ignore[union-attr]
    folders = [source.path for source in hydra.runtime.config_sources]
    return Places(dict(hydra.runtime.choices), typed, folders), typed


_SAYS = (
    # What Hydra says, what it means, the remedy, and the number.
    (r"Could not override '([^']+)'", "there is no group '{}'", "", 1),
    (r"Could not delete '([^']+)'", "'~{}' cannot be removed", "choose another option of it", 5),
    (r"Could not delete from config. '([^']+)'", "there is no key '{}'", "drop '~{}'", 1),
    (r"Environment variable '([^']+)' not found", "the variable {} is not set", "set {}=VALUE", 7),
    (r"Interpolation key '([^']+)' not found", "'${{{}}}' names no key", "mend the name", 7),
)


def as_config_error(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf says, in xfer's words."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        missing = error.missing_cfg_file.removesuffix(".yaml")
        group, _, option = missing.rpartition("/")
        # A path has more slashes than the one after the group.
        top, _, rest = missing.partition("/")
        fix = other_tools.for_option(top, rest)
        if fix and top in GROUPS:
            return ConfigError(top, f"there is no option '{rest}'", fix, 4)
        fix = closest(option, error.options or [])
        if top == "data" and ("/" in rest or not fix.startswith("did you mean")):
            fix = f"for a folder of images type {quoted(override('data.root', rest))}"
            return ConfigError(top, f"there is no option '{rest}'", fix, 4)
        return ConfigError(group or "config", f"there is no option '{option}'", fix, 4)
    if said := re.search(r"Could not override '(hydra\.launcher\.[^']+)'", str(error)):
        what = f"this launcher has no key '{said[1]}'"
        return ConfigError("command line", what, _launcher_fix(said[1]), 1)
    if said := re.search(r"Ambiguous value for argument '([^']+)'", str(error)):
        what = f"'{said[1].lstrip('+')}' is several values"
        return CombinationError("command line", what, "add -m for several runs", 5)
    for pattern, what, fix, number in _SAYS:
        if said := re.search(pattern, str(error)):
            key = said[1].split("@")[0]
            nearest = f"type {key}=OPTION" if key in GROUPS else closest(key, GROUPS)
            where = "configuration" if "$" in what or "variable" in what else "command line"
            what = what.format(said[1].lstrip("+"))
            return ConfigError(where, what, fix.format(said[1]) or nearest, number)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = "; ".join(lines[:2]) or type(error).__name__
    return ConfigError("configuration", what, "mend that file or override; see xfer --help", 7)


def _launcher_fix(key: str) -> str:
    """Which launcher has that key, else the nearest of all."""
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    known = {file.removesuffix(".yaml"): list(node.node) for file, node in stored.items()}
    name = key.rpartition(".")[2]
    if owners := [launcher for launcher, names in known.items() if name in names]:
        return f"choose hydra/launcher={' or '.join(owners)}, which has it"
    ours = dict.fromkeys(n for names in known.values() for n in names if not n.startswith("_"))
    return closest(name, ours)


def _launcher(cfg: DictConfig) -> JobLauncher | None:
    """The launcher of a run that is no job of a sweep."""
    if cfg.hydra.mode is RunMode.MULTIRUN:
        return None
    options: Plain = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)  # type: ignore[assignment]
    name = str(cfg.hydra.runtime.choices["hydra/launcher"])
    return JobLauncher(name, options, None if "slots" in options else partial(_queue, cfg, name))


def _queue(cfg: DictConfig, name: str, rows: Sequence[Sequence[str]]) -> Any:
    """The queue of the launcher of that ``name``, once its cluster could take jobs with these
    overrides. Raises FoldError for a launcher that has none, ConfigError for what could never run.
    """
    sources = ConfigSearchPathImpl()
    for source in cfg.hydra.runtime.config_sources:
        sources.append(source.provider, f"{source.schema}://{source.path}")
    launcher: Any = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(ConfigLoaderImpl(sources), Callbacks()),
        # By its name, since the command is above everything here: a job is what it would do.
        task_function=get_method("xfer.__main__._job"),
        config=cfg,
    )
    if not hasattr(launcher, "queue"):
        what = f"'{name}' cannot run folds, which are jobs of slots or of Slurm"
        fix = "type hydra/launcher=slots, or hydra/launcher=slurm_cpu"
        raise FoldError("hydra/launcher", what, fix, 0)
    launcher.check(rows)
    return launcher.queue()


def build(cfg: DictConfig) -> Specs:
    """The specs of a composed configuration with Hydra's own part. Raises all problems together."""
    hydra = cfg.hydra
    choices = dict(hydra.runtime.choices)
    places, typed = _places(hydra)
    for group in GROUPS:
        if group != "export" and not isinstance(choices.get(group), str):
            raise ConfigError(places(group), "must be one option", f"type {group}=OPTION", 5)
    try:
        groups = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        if hydra.mode is RunMode.MULTIRUN:
            if "run.dir" in map(override_key, typed):
                fix = "type hydra.sweep.dir=DIR in its place"
                raise ConfigError("run.dir", "names one folder for several runs", fix, 19)
            job = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
            OmegaConf.update(groups, "run.dir", str(job), force_add=True)
        plain: Plain = OmegaConf.to_container(groups, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise as_config_error(error) from error
    node = plain.get("data") or {}
    places_of_data = [node.get(key) for key in ("root", "file")] if isinstance(node, dict) else []
    # Where there are no data, what is predicted gives its name.
    inputs = value_at(plain, "predict.input")
    places_of_data += inputs if isinstance(inputs, list) else [inputs]
    name = run_name(choices["experiment"], choices["data"], *places_of_data)
    specs = Builder(plain, places).specs(name, typed)
    folders = [str(s.path) for s in hydra.runtime.config_sources if s.provider == "command-line"]
    return replace(
        specs,
        compose=lambda overrides: compose_specs(overrides, folders).config,
        launcher=_launcher(cfg),
        variant=lambda overrides: compose_specs(overrides, folders),
        choices={group: choices[group] for group in GROUPS if group != "export"},
        config_dirs=tuple(str(Path(folder).resolve()) for folder in folders),
    )
