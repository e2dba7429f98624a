"""--cfg job says of every value where it was set, and stays YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xfer.__main__ import _main


def shown(capsys: pytest.CaptureFixture[str], *typed: str) -> list[str]:
    assert _main([*typed, "--cfg", "job"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def test_each_value_says_which_file_or_that_it_was_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown(capsys, "experiment=digits_sgd", "optim.lr=0.3", "data.digits=[5,6]")
    for line in (
        "seed: 0  # config.yaml",
        "  lr: 0.3  # command line",
        "  digits:  # command line",
        "  opset: 20  # export/onnx.yaml".replace("  ", "    ", 1),
        "  momentum: 0.9  # optim/sgd.yaml",
    ):
        assert line in lines, line
    assert any(line.endswith("# experiment/digits_sgd.yaml") for line in lines)
    facts = yaml.safe_load("\n".join(lines))
    assert (facts["optim"]["lr"], facts["data"]["digits"]) == (0.3, [5, 6])


def test_a_file_of_ones_own_is_named_by_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optim").mkdir()
    mine = tmp_path / "optim" / "mine.yaml"
    mine.write_text("_target_: xfer.training.optim.Sgd\nlr: 0.7\nmomentum: 0.5\n")
    lines = shown(capsys, "data=digits", "optim=mine", "--config-dir", str(tmp_path))
    assert f"  momentum: 0.5  # {mine}" in lines
    # From where one works, as one would type it.
    monkeypatch.chdir(tmp_path.parent)
    lines = shown(capsys, "data=digits", "optim=mine", "--config-dir", tmp_path.name)
    assert f"  momentum: 0.5  # {tmp_path.name}/optim/mine.yaml" in lines


def test_a_part_of_it_is_shown_as_hydra_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "data=digits", "-p", "seed")
    assert lines and not [line for line in lines if "#" in line]
