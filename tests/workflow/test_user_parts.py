"""The parts that docs/howto/extend.md shows: each trains, is saved, reopened and evaluated."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_docs import ROOT, named_files

from xfer.config import schema
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError
from xfer.core.torch_file import load_tensors
from xfer.core.types import InputSpec
from xfer.data.augment import Plain
from xfer.workflow import run

PAGE = ROOT / "docs" / "howto" / "extend.md"


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(name).read_text().splitlines()))


def test_the_first_part_on_the_page_is_ten_lines(tmp_path: Path) -> None:
    named_files(PAGE, tmp_path)
    files = (tmp_path / "my_loss.py", tmp_path / "my_conf" / "loss" / "margin.yaml")
    assert sum(bool(line) for f in files for line in f.read_text().splitlines()) == 10
    assert PAGE.read_text().index("`my_loss.py`:") < 400


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Five digits, which are in five.npz beside the files of the page."""
    named_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("my_parts", "my_loss"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("XFER_ALLOW", "my_parts,my_loss")
    digits = load_digits()
    chosen = digits.target > 4
    pictures = (digits.images[chosen] * 15).astype("uint8")
    np.savez("five.npz", images=pictures, labels=digits.target[chosen])
    return pictures


def test_a_part_in_every_other_group_trains_and_is_reopened(pictures: np.ndarray) -> None:
    groups = {
        "data": "npz", "augment": "noise", "loss": "margin", "optim": "rmsprop",
        "schedule": "sawtooth", "freeze": "last_stages", "logger": "csvs",
    }  # fmt: skip
    parts = [f"{group}={option}" for group, option in groups.items()]
    parts += ["data.file=five.npz", "data.workers=0", "backbone=digits_resnet"]
    more = ["source=digits_0_4", "trainer.max_epochs=2", "checkpoint.monitor=val_recall"]
    more += ["trainer.metrics={recall: {_target_: my_parts.MeanRecall}}", "trainer=cpu"]
    more += ["trainer.callbacks=[{_target_: my_parts.Seen, say: false}]", "run.dir=done"]
    done = run(compose_specs([*parts, *more, "stages=[fit,evaluate,report]"], ["my_conf"]))
    assert done.facts is not None
    score, images = done.facts["scores"]["val"], done.plan["splits"]["train"]["n"]
    rows = table("done/metrics.csv")
    # Each of them has left its mark.
    assert images + score["n"] == len(pictures) and done.plan["classes"] == list("56789")
    assert all(0 < float(row["train_loss"]) < 1 for row in rows)  # a margin, of at most 1
    last = load_tensors(Path("done/checkpoints/last.ckpt"))
    moments = last["optimizer_states"][0]["state"].values()
    assert all("square_avg" in moment and "exp_avg" not in moment for moment in moments)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.001, 0.001])  # up again
    trained = {row["stage"] for row in done.plan["parameters"] if not row["frozen"]}
    assert len(trained - {None}) == 1 and done.facts["freeze"]["proved"]
    assert last["callbacks"]["Seen"] == {"images": 2 * images}
    logged = table("done/lightning/metrics.csv")
    assert [row["val_recall"] for row in logged] == [row["val_recall"] for row in rows]
    files = Path("done/lightning/files.txt").read_text()
    assert "checkpoints/best.ckpt" in files and "figures/confusion_matrix.png" in files
    recalls = [row["recall"] for row in score["per_class"].values()]
    assert score["recall"] == pytest.approx(sum(recalls) / 5) != pytest.approx(score["acc"])
    noisy = compose_specs([*parts, *more], ["my_conf"]).augment
    spec = InputSpec.from_plain(done.plan["input"])
    plain = Plain().transform(spec)(image := Image.fromarray(pictures[0]).convert("RGB"))
    assert 0.05 < np.std(noisy.transform(spec)(image) - plain) < 0.15
    # The checkpoint is opened with the data alone.
    again = ["data=npz", "data.file=five.npz", "checkpoint.path=done", "stages=[evaluate]"]
    opened = run(compose_specs([*again, "run.dir=again"], ["my_conf"])).facts
    assert opened is not None and opened["scores"]["val"]["acc"] == score["acc"]
    without = {name: value for name, value in score.items() if name != "recall"}
    assert opened["scores"]["val"] == without


@pytest.mark.parametrize("group", sorted(schema._PARTS))
def test_a_method_that_a_part_lacks_is_named(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, base = schema._PARTS[group]
    monkeypatch.setenv("XFER_ALLOW", "empty")
    monkeypatch.setitem(sys.modules, "empty", types.ModuleType("empty"))
    monkeypatch.setattr("empty.Part", type("Part", (), {"__module__": "empty"}), raising=False)
    with pytest.raises(ConfigError) as raised:
        schema.build(group, {"_target_": "empty.Part"})
    for name, value in vars(protocol).items():
        if not name.startswith("_"):
            kind = "" if isinstance(value, property) else "method "
            assert f"no {kind}{name}" in raised.value.what
    assert base in raised.value.fix
