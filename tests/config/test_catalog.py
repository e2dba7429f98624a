"""The catalog of keys, and the help that is made of it: every key, at any width."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from key_tables import with_tables
from omegaconf import OmegaConf

from xfer.__main__ import _main
from xfer.config import schema
from xfer.config.catalog import Key, keys, options
from xfer.config.help import GROUPS, config_dir
from xfer.config.help_topic import topic
from xfer.config.verbs import VERBS

FOLDERS = (config_dir(),)
DOCS = Path(__file__).parents[2] / "docs" / "groups"
KEYS = keys(FOLDERS)
ROWS = [row for rows in KEYS.values() for row in rows]


@pytest.mark.parametrize("key", ROWS, ids=[f"{row.name} of {row.option}" for row in ROWS])
def test_the_example_of_a_key_is_a_value_that_it_takes(key: Key) -> None:
    override = OverridesParser.create().parse_override(key.example)
    value = OmegaConf.to_container(OmegaConf.create({"value": override.value()}))["value"]
    assert override.key_or_group == key.name
    schema.convert(key.name, value, key.hint, str)


def test_every_key_has_a_meaning() -> None:
    assert not {row.name for row in ROWS if not row.meaning}


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_every_topic_is_as_wide_as_the_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    pairs = [f"{group}.{option.name}" for group in GROUPS for option in options(group, FOLDERS)]
    for name in [*VERBS, *GROUPS, *pairs, *KEYS]:
        text = topic(name, FOLDERS)
        wide = [line.strip() for line in text.splitlines() if len(line) > int(width)]
        # One word, or a command, is not broken.
        assert not [x for x in wide if " " in x and not x.startswith("xfer --help ")], name
        assert name.rpartition(".")[2] in text


def test_a_key_says_type_range_default_meaning_and_an_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = topic("trainer.ema_decay", FOLDERS)
    assert "type     auto or float ≥ 0, < 1" in said
    assert "default  auto" in said
    assert "example  xfer trainer.ema_decay=0.01" in said
    lr = topic("optim.lr", FOLDERS)
    assert "default  0.01 (optim=sgd)" in lr and "default  auto (optim=auto, exact)" in lr
    # Which option says what, and no marks of docstrings.
    assert "    optim=auto\n        base learning rate; a number asks for AdamW" in lr
    assert "    optim=exact\n        there is none" in lr and "`" not in lr
    data = topic("data.digits", FOLDERS)
    assert "example  xfer 'data.digits=[5,6,7,8,9]'" in data or "[0,1,2,3,4]" in data


def test_an_option_of_ones_own_is_found_and_a_broken_one_says_why(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# Of my own.\n_target_: xfer.training.loss.Nil\n")
    said = topic("loss.mine", [*FOLDERS, str(tmp_path)])
    assert "Of my own." in said and "loss.Nil" in said


def test_the_command_line_answers_about_groups_options_keys_and_verbs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for typed, first in {
        "--help optim": "optim=OPTION",
        "--help optim.sgd": "optim=sgd",
        "-h optim.lr=0.1": "optim.lr",
        "train --help": "xfer train DATA",
        "--help": "xfer: transfer learning",
    }.items():
        assert _main(typed.split()) == 0
        assert capsys.readouterr().out.startswith(first), typed


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("optim.lrr", "did you mean 'optim.lr'?"),
        ("weight_decay", "type xfer --help optim.weight_decay"),
        ("backbon", "did you mean 'backbone'?"),
        ("epochs", "type xfer --help trainer.max_epochs"),
        ("lr", "type xfer --help optim.lr"),
        ("lr0", "type xfer --help optim.lr; to set it, type optim=adamw optim.lr=NUMBER"),
        ("gradcam", "type xfer --help report.maps; to set it, type report.maps=24"),
        ("pretrained", "type xfer --help source.hub; to set it, type source=hub"),
    ],
)
def test_a_misspelt_topic_has_a_remedy_that_works(
    word: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(["--help", word]) == 2
    said = capsys.readouterr().err
    assert "E057" in said and fix in said
    named = re.search(r"'([^']+)'\?|--help ([^\s;]+)", said.rpartition("Fix: ")[2].strip())
    assert named and _main(["--help", named[1] or named[2]]) == 0


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_page_of_a_group_has_its_keys_as_the_specs_say(page: Path) -> None:
    """Where this fails: python docs/key_tables.py."""
    text = page.read_text()
    assert with_tables(text, page.stem) == text
    assert ("made by docs/key_tables.py" in text) == (page.stem != "experiment")
