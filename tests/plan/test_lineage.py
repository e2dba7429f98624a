"""A run resumes from its own files alone and vouches for no other; equal runs write equals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import xfer
from xfer.core.errors import ResumeError, WeightsError
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.weights.formats.checkpoint_format import read_best

OPTIONS = ["trainer.max_epochs=2", "data.workers=0"]


def run(folder: Path, *options: str, stages: str = "fit") -> Path:
    again = [f"checkpoint.resume={folder}"] if folder.exists() else []
    overrides = [*OPTIONS, *options, f"stages=[{stages}]", f"run.dir={folder}", *again]
    return xfer.run("digits_sgd", overrides).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and another of another seed."""
    place = tmp_path_factory.mktemp("runs")
    return run(place / "own"), run(place / "other", "seed=1")


@pytest.fixture
def own(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def changed(name: str, change: Callable[[dict], object]) -> Callable[[Path, Path], None]:
    def do(own: Path, other: Path) -> None:
        content = load_tensors(own / "checkpoints" / name)
        change(content)
        save_tensors(own / "checkpoints" / name, content)

    return do


def taken(name: str) -> Callable[[Path, Path], None]:
    def do(own: Path, other: Path) -> None:
        shutil.copy(other / "checkpoints" / name, own / "checkpoints" / name)

    return do


def timeline(content: dict) -> dict:
    found: dict = content["callbacks"]["Timeline"]
    return found


def history(content: dict) -> dict:
    found: dict = timeline(content)["history"]
    return found


def net(content: dict) -> list:
    return [(k, v) for k, v in content["state_dict"].items() if k.startswith("net.")]


WRONG = {
    "another run's last file": (taken("last.ckpt"), "written by another run"),
    "another run's best file": (taken("best.ckpt"), "written by another run"),
    "no best file": (lambda own, _: (own / "checkpoints/best.ckpt").unlink(), "no such file"),
    "the best of another epoch": (
        changed("best.ckpt", lambda c: c["xfer"]["progress"].update(step=1)),
        "is of step 1",
    ),
    "no loops": (changed("last.ckpt", lambda c: c.pop("loops")), "it has no loops"),
    "no callbacks": (changed("last.ckpt", lambda c: c.pop("callbacks")), "not a resume file"),
    "no history": (
        changed("last.ckpt", lambda c: timeline(c).pop("history")),
        "history",
    ),
    "no optimizer": (changed("last.ckpt", lambda c: c.pop("optimizer_states")), "no optimizer_s"),
    "another optimizer": (
        changed("last.ckpt", lambda c: c.update(optimizer_states=[])),
        "0 optimizer_states",
    ),
    "tensors of another shape": (
        changed("last.ckpt", lambda c: c["state_dict"].update({k: v[:1] for k, v in net(c)})),
        "does not fit",
    ),
    "loops of a stranger": (changed("last.ckpt", lambda c: c.update(loops={})), "does not fit"),
    "no identity": (changed("last.ckpt", lambda c: c["xfer"].pop("run")), "not a resume file"),
    "rows of text": (changed("last.ckpt", lambda c: history(c).update(rows=["a"])), "rows.0"),
    "a copy outside": (
        changed("last.ckpt", lambda c: history(c).update(copies=["../../x"])),
        "not a valid file name",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_run_goes_on_from_its_own_files_alone(own, runs, name):
    change, what = WRONG[name]
    change(own, runs[1])
    with pytest.raises(ResumeError, match=what) as told:
        run(own, stages="fit,evaluate")
    assert told.value.exit == 5 and "\n" not in str(told.value)


def test_its_own_files_are_gone_on_from(own):
    run(own, stages="fit,evaluate")
    assert (own / "predictions_val.csv").is_file()


def test_a_run_folder_with_a_checkpoint_of_another_run_is_not_evaluated(own, runs):
    assert read_best(own).run
    taken("best.ckpt")(own, runs[1])
    with pytest.raises(WeightsError, match="another run than the one of this folder"):
        read_best(own)
    assert read_best(own / "checkpoints" / "best.ckpt").card.classes


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "metrics.csv", "result.json"])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_finished_means_that_every_file_is_there_also_the_second_time(own, name, change):
    run(own)
    change(own / name)
    with pytest.raises(ResumeError, match=f"has finished, but since then {name}") as told:
        run(own)
    assert told.value.exit == 5


@pytest.mark.parametrize("file", ["plan.json", "status.json"])
@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{", "1", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 3000, '{"a":' * 3000),
        *('{"files": {"../x": "0"}, "fingerprint": 1}', '{"state": 1, "config": []}'),
        *('{"files": [], "config": {"stages": 3}}', '{"state": "odd", "fingerprint": {}}'),
    ],
)
def test_what_no_run_writes_is_told_in_one_line(own, file, text):
    (own / file).write_text(text)
    with pytest.raises(ResumeError) as told:
        run(own)
    assert told.value.exit == 5 and "\n" not in str(told.value)


def test_equal_runs_write_equal_files(runs, tmp_path):
    twin = run(tmp_path / "twin")
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = ((r / "checkpoints" / name).read_bytes() for r in (twin, runs[0]))
        assert ours == theirs, name


def test_times_are_beside_the_resume_file_and_come_back(own):
    before = (own / "metrics.csv").read_text()
    run(own, stages="fit,evaluate")
    result = json.loads((own / "result.json").read_text())
    assert (own / "metrics.csv").read_text() == before
    assert all(seconds > 0 for seconds in result["timing"]["epoch_s"])
