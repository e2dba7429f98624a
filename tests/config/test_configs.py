"""Every option of every group composes and builds, alone and under every experiment."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from xfer.config import schema
from xfer.config.help import GROUPS, config_dir, options, page
from xfer.config.help_topic import topic
from xfer.config.hydra import compose_specs
from xfer.config.specs import Specs
from xfer.core.errors import ConfigError, Problems

CONF = Path(config_dir())
OURS = (p for p in CONF.rglob("*.yaml") if CONF / "hydra" not in p.parents)
FILES = sorted(p for p in OURS if p != CONF / "config.yaml")
OPTIONS = [(p.parent.relative_to(CONF).as_posix(), p.stem) for p in FILES]
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
# With data of its own, with a folder of the user, and with none; the others are as these.
SAMPLE = ("digits_freeze", "canidae_finetune", "default")
KEEPS_NOTHING = ("experiment", "sweep", "export")

# What an option leaves to the user (???).
GIVEN = {
    ("data", "folder"): "data.root=photos",
    ("data", "csv"): "data.file=photos.csv",
    ("data", "arrays"): "data.root=x.npz",
    ("data", "parquet"): "data.root=x.parquet",
    ("data", "shards"): "data.root=shards",
    ("backbone", "timm"): "backbone.name=resnet18",
    ("backbone", "torchvision"): "backbone.name=squeezenet1_0",
    ("source", "file"): "source.path=weights.pt",
    ("source", "mindspore"): "source.path=weights.ckpt",
    ("source", "run"): "source.path=run",
    ("source", "url"): f"source.url=https://example.org/a.pt source.sha256={'0' * 64}",
    ("freeze", "first_n"): "freeze.n=2",
    ("freeze", "up_to"): "freeze.stage=layer2",
    ("freeze", "rules"): "freeze.rules=[{match: head, lr: 1}, {match: backbone, lr: 0.1}]",
    ("loss", "distill"): "loss.teacher=run",
    ("optim", "timm"): "optim.name=lamb",
    ("optim", "torch"): "optim.name=RMSprop",
}


@pytest.fixture(autouse=True)
def every_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an optional logger is installed is no question of the config files."""
    monkeypatch.setattr("xfer.training.logger.find_spec", lambda name: object())


@cache
def content(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8")) or {}


@cache
def chosen_by(experiment: str) -> dict[str, str]:
    """Group to option, as ``config.yaml`` and then the experiment choose."""
    found: dict[str, str] = {}
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    for entry in [*defaults, *content("experiment", experiment).get("defaults", [])]:
        if isinstance(entry, dict):
            found |= {k.removeprefix("override ").lstrip("/"): v for k, v in entry.items()}
    return {group: option for group, option in found.items() if group in GROUPS}


def composed(experiment: str, chosen: dict[str, str]) -> Specs:
    """The specs of an experiment with those options, every open key filled."""
    final = chosen_by(experiment) | chosen
    texts = [text for (group, option), text in GIVEN.items() if final.get(group) == option]
    fill = [part for text in texts for part in _parts(text)]
    typed = [f"{group}={option}" for group, option in chosen.items()]
    return compose_specs([f"experiment={experiment}", *typed, *fill])


def _parts(text: str) -> list[str]:
    """The assignments of an option's open keys; values may hold blanks."""
    return re.split(r" (?=source\.)", text)


def test_every_option_is_found() -> None:
    assert len(OPTIONS) == 128
    assert {group for group, _ in OPTIONS} == set(GROUPS)


def test_the_table_of_open_keys_is_exact() -> None:
    open_keys = {
        (group, option): keys
        for group, option in OPTIONS
        if (keys := [k for k, value in content(group, option).items() if value == "???"])
    }
    assert open_keys == {
        place: [part.split("=")[0].split(".")[1] for part in _parts(text)]
        for place, text in GIVEN.items()
    }


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "export"])
def test_the_export_option_brings_its_writer_alone(option: str) -> None:
    writers = composed("digits_freeze", {"export": option}).export.writers
    names = [type(writer).__name__.lower() for writer in writers]
    shared = {"onnx_image": "onnx", "onnx_fp16": "half", "onnx_bf16": "half", "hub": "hubfolder"}
    assert names == [shared.get(option, option.replace("_", ""))] * (option != "none")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o in GIVEN])
def test_an_open_key_must_be_given(option: tuple[str, str]) -> None:
    key = GIVEN[option].split("=")[0]
    with pytest.raises((ConfigError, Problems)) as caught:
        compose_specs(["experiment=digits_freeze", "=".join(option)])
    assert f"error E203: {key}: must be given. Fix: type {key}=VALUE" in str(caught.value)


@pytest.mark.parametrize(
    "experiment",
    [
        name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow)
        for name in EXPERIMENTS
    ],
)
def test_every_option_of_every_group_goes_with_the_experiment(experiment: str) -> None:
    """Round i takes the i-th option of every group at once, so each pair of an experiment and an
    option is composed, and builds what it names; groups are built apart and their problems told
    together."""
    by_group: dict[str, list[str]] = {}
    for group, option in OPTIONS:
        if group != "experiment":
            by_group.setdefault(group, []).append(option)
    seen: set[tuple[str, str]] = set()
    for i in range(max(map(len, by_group.values()))):
        chosen = {group: found[i % len(found)] for group, found in by_group.items()}
        specs = composed(experiment, chosen)
        # Without an experiment the data's name stands in its place.
        assert specs.experiment == experiment or experiment == "default"
        for group, option in chosen.items():
            seen.add((group, option))
            if group in KEEPS_NOTHING or (group == "data" and specs.data is None):
                continue
            target = content(group, option)["_target_"]
            assert specs.facts[group]["_target_"] == target
            if group != "features":
                assert type(getattr(specs, group)).__name__ == target.rpartition(".")[2]
    assert seen == {o for o in OPTIONS if o[0] != "experiment"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_head_on_the_command_line_leaves_no_key_of_another(experiment: str) -> None:
    specs = composed(experiment, {"head": "linear"})
    assert specs.config["head"] == {"_target_": "xfer.models.head.Linear"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_sets_only_keys_that_all_options_of_the_group_share(experiment: str) -> None:
    shared = {"run", "predict", "seed", "stages", "defaults"}
    for group, node in content("experiment", experiment).items():
        if group in shared:
            continue
        for option in (o for g, o in OPTIONS if g == group):
            target = content(group, option)["_target_"]
            kind = schema.load_class(group, target, str)
            assert set(node) <= set(schema.signature(kind)), f"{group}={option}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_begins_with_what_it_shows_and_its_command(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    comments = [line for line in lines[1:] if line.startswith("#")]
    assert comments
    if experiment != "default":
        assert any("python -m xfer" in line for line in comments)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_the_help_says_what_the_option_is(
    group: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # where most lines are broken, and no word
    summary = options(group, [str(CONF)])[option]
    assert len(summary) > 5
    assert re.search(rf"\n{group}=[^=]*\b{option}\b", page([str(CONF)]))
    said = " ".join(topic(group, [str(CONF)]).split())
    assert f" {option} {' '.join(summary.split())}" in said


def test_an_option_of_the_user_stands_beside_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "wide.yaml").write_text(
        "# A wide one.\n_target_: xfer.models.head.Mlp\nhidden: 1024\n"
    )
    specs = compose_specs(["experiment=digits_freeze", "head=wide"], [str(tmp_path)])
    assert specs.facts["head"] == {
        "_target_": "xfer.models.head.Mlp",
        "hidden": 1024,
        "dropout": 0.2,
    }
    assert "wide" in page([str(CONF), str(tmp_path)])
