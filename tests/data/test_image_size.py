"""Images that are sound and that resizing would make huge: named by the plan, or skipped by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import folders
from PIL import Image

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import DataError
from xfer.core.types import InputSpec
from xfer.data import Folder
from xfer.data.dataset import resizable
from xfer.plan.make import make_plan

SPEC = InputSpec((224, 224), 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
SPLITS = {f"{split}/{label}": 4 for split in ("train", "val") for label in "ab"}


def line(root: Path, name: str, size: tuple[int, int] = (60_000, 1)) -> str:
    """A sound image of that size, and the path of it."""
    Image.new("RGB", size, "red").save(root / name)
    return str(root / name)


def test_a_line_is_named_with_the_way_on_and_the_way_leads_on(tmp_path: Path) -> None:
    root = folders(tmp_path, SPLITS)
    data = Folder(str(root)).dataset(True)
    assert resizable(data, SPEC, "error") is data
    first, _ = line(root, "train/a/x.png"), line(root, "val/b/y.png", (1, 60_000))
    found = Folder(str(root)).dataset(True)
    with pytest.raises(DataError) as told:
        resizable(found, SPEC, "error")
    assert str(told.value) == (
        f"xfer: error E374: {first}: 60000 x 1 pixels are 15360000 x 256 after resizing; more than "
        "64000000 in all; 1 more file is like it. Fix: crop it, or remove it, or type "
        "data.on_bad=skip"
    )
    left = resizable(found, SPEC, "skip")
    for split in ("train", "val"):
        assert left.splits[split].names == data.splits[split].names
        assert left.splits[split].labels.tolist() == data.splits[split].labels.tolist()
        # So that a run without those files is a run on the same images.
        assert left.splits[split].sha256 == data.splits[split].sha256
        assert left.splits[split].images == data.splits[split].images
    assert left.remarks[-1].startswith("skipped 2 files ('train/a/x.png': 60000 x 1 pixels are")
    # What is squashed, or resized to little, is never huge.
    for spec in (replace(SPEC, resize=None), replace(SPEC, resize=32)):
        assert resizable(found, spec, "error") is found


def test_a_class_of_lines_is_not_skipped_and_a_leak_of_one_is_forgotten(tmp_path: Path) -> None:
    root = folders(tmp_path, SPLITS)
    for split in ("train", "val"):
        line(root, f"{split}/a/x.png")
    found = Folder(str(root)).dataset(True)
    assert ("val/a/x.png", "train/a/x.png", "same bytes") in found.leaks
    assert resizable(found, SPEC, "skip").leaks == ()
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    path = line(root, "val/b/y.png")
    with pytest.raises(DataError, match=r"E319.*class 'b' has no other image in val") as told:
        resizable(Folder(str(root)).dataset(True), SPEC, "skip")
    assert told.value.where == path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 60,000 x 1 pixels are for a network of 224 pixels, 4,000 x 1 for the digits' of 32."""
    monkeypatch.setattr("xfer.data.preprocess._MAX_PIXELS", 100_000)


NETWORK = ["backbone=digits_resnet", "source=digits_0_4", "data.workers=0"]


def test_a_fit_skips_it_and_every_later_stage_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_limit: None
) -> None:
    monkeypatch.chdir(tmp_path)
    root = folders(tmp_path / "images", SPLITS)
    line(root, "train/a/x.png", (4000, 1))
    path = line(root, "val/b/y.png", (4000, 1))
    typed = ["data.root=images", *NETWORK]
    with pytest.raises(DataError, match=r"E374: .*train/a/x\.png: 4000 x 1 pixels are .*on_bad"):
        xfer.run(overrides=[*typed, "stages=[fit]"])
    assert not Path("outputs").exists()  # the plan says so
    done = xfer.run(
        overrides=[*typed, "data.on_bad=skip", "stages=[fit,evaluate,export]", "export=onnx"]
    )
    plan = json.loads((done.folder / "plan.json").read_text())
    assert any("skipped 2 files ('train/a/x.png': 4000 x 1" in line for line in plan["remarks"])
    assert done.facts is not None and done.facts["scores"]["val"]["n"] == 8
    later = ["data.root=images", f"checkpoint.path={done.folder}", "data.workers=0"]
    for stage in ("evaluate", "export", "benchmark"):
        with pytest.raises(DataError, match="E374") as told:
            make_plan(compose_specs([f"stages=[{stage}]", *later, "export=onnx"]))
        assert told.value.where == path and "\n" not in str(told.value)
        skipped = compose_specs([f"stages=[{stage}]", *later, "export=onnx", "data.on_bad=skip"])
        found = make_plan(skipped).dataset
        assert found is not None and len(found.splits["val"]) == 8
    answers = xfer.load(done.folder).predict("images/val")
    assert len(answers) == 8 and path not in {answer.path for answer in answers}


def test_a_kept_head_and_its_classes_skip_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_limit: None
) -> None:
    root = folders(tmp_path, {f"val/{digit}": 3 for digit in "014"})
    line(root, "val/4/y.png", (4000, 1))
    typed = ["data=folder", f"data.root={root}", *NETWORK, "head=keep", "stages=[evaluate]"]
    with pytest.raises(DataError, match=r"E374: .*y\.png"):
        make_plan(compose_specs(typed))
    found = make_plan(compose_specs([*typed, "data.on_bad=skip"])).dataset
    assert found is not None and found.splits["val"].labels.tolist() == [0] * 3 + [1] * 3 + [4] * 3
