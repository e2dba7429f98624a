from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import xfer
from xfer.core.errors import ConfigError
from xfer.training import logger
from xfer.training.logger import Csv, Mlflow, TensorBoard, Wandb


def test_csv_needs_no_further_logger(tmp_path: Path) -> None:
    assert Csv().build(tmp_path, "e") is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [TensorBoard, Mlflow, Wandb], ids=lambda kind: kind.__name__)
def test_a_logger_whose_package_is_missing_says_what_to_install(
    kind: type[TensorBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf'pip install "xfer-vision\[{kind.__name__.lower()}\]"'):
        kind()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_its_events_into_the_run_folder(tmp_path: Path) -> None:
    made = TensorBoard().build(tmp_path, "e")
    assert made is not None
    made.log_metrics({"val_acc": 0.5}, step=1)
    made.finalize("success")
    assert [p.parent for p in tmp_path.rglob("events.out.*")] == [tmp_path / "tensorboard"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_solved_head_gives_each_strength_to_its_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    folder = xfer.run("digits_freeze", ["logger=tensorboard", "stages=[fit]"]).folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(events.Scalars("cv_loss")) == len(rows) - 1
