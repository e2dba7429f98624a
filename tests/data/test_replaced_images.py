"""Images that are replaced while a run works: no result is of other images than the plan's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from pictures import folders, picture
from shipped import SHIPPED

import xfer
from xfer import workflow
from xfer.core.errors import DataError

OPTIONS = ["backbone=digits_resnet", "source=digits_0_4", "data.decoded_gb=0", "data.batch_size=8"]
STEPS = ["optim=sgd", "trainer.max_epochs=2"]
RUNS = {
    "a fit step by step": [*STEPS, "freeze=none", "augment=standard", "data.workers=0"],
    "with a worker": [*STEPS, "freeze=none", "augment=standard", "data.workers=1"],
    "on features": [*STEPS, "features=auto", "head=linear", "data.workers=0"],
    "on features with a worker": [*STEPS, "features=auto", "head=linear", "data.workers=1"],
    "a solved head": ["optim=exact", "data.workers=0"],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folders(tmp_path / "data", {f"{s}/{c}": 8 for s in ("train", "val") for c in "ab"})


def behind_the_plan(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once the plan stands, before any image is used."""
    write = workflow.write_plan

    def then(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        act()

    monkeypatch.setattr(workflow, "write_plan", then)


def replaced(path: Path) -> Callable[[], None]:
    def act() -> None:
        facts = path.stat()
        picture(99).save(path.with_name("new.jpg"))
        path.with_name("new.jpg").replace(path)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as rsync and unzip do

    return act


def refused(path: Path, overrides: list[str]) -> None:
    with pytest.raises(DataError, match=r"E373: .*has changed since it was scanned") as error:
        xfer.run(overrides=overrides)
    told = str(error.value)
    assert str(path) in told and "\n" not in told and error.value.exit == 3
    (run,) = (path.parents[3] / "outputs").glob("*/*")
    assert not (run / "result.json").exists() and not list(run.glob("predictions*"))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_fit_ends_and_names_the_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, split: str
) -> None:
    path = root / split / "a" / "03.jpg"
    behind_the_plan(monkeypatch, replaced(path))
    refused(path, [f"data.root={root}", *OPTIONS, *RUNS[kind], "stages=[fit,evaluate]"])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_ends_and_names_the_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    folders(root, {f"{split}/{c}": 3 for split in ("val", "test") for c in "01234"})
    for split, old in ((s, c) for s in ("train", "val") for c in "ab"):
        shutil.rmtree(root / split / old)
    (root / "train").rmdir()
    path = root / "val" / "1" / "02.jpg"
    behind_the_plan(monkeypatch, replaced(path))
    typed = [f"checkpoint.path={SHIPPED}", f"data.root={root}", f"data.workers={workers}"]
    refused(path, ["stages=[evaluate]", *typed])


# The command itself, with the image replaced behind the plan.
REPLACED = """
import xfer.__main__ as m
from xfer import workflow
from PIL import Image

write = workflow.write_plan

def then(*given):
    write(*given)
    Image.new("RGB", (24, 16)).save(PATH)

workflow.write_plan = then
m.main()
"""


def test_the_command_ends_with_exit_3_and_one_line(root: Path) -> None:
    path = root / "train" / "a" / "03.jpg"
    typed = [f"data.root={root}", *OPTIONS, *RUNS["with a worker"], "stages=[fit,evaluate]"]
    script = REPLACED.replace("PATH", repr(str(path)))
    process = warm.start(root.parent, *typed, script=script)
    said, _ = process.communicate()
    assert process.returncode == 3, said
    told = [line for line in said.splitlines() if "E373" in line]
    assert len(told) == 1 and str(path) in told[0]
    assert "Traceback" not in said
