"""A disk that is full or may not be written costs a run its next file, never the last good one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import xfer
from xfer import workflow
from xfer.config.hydra import compose_specs
from xfer.core.checksum import checksum_holds
from xfer.core.errors import OutputError
from xfer.core.files import file_sha256
from xfer.core.run_folder import LAST
from xfer.plan import preflight
from xfer.plan.preflight import check_folder, refuse_taken

OPTIONS = ["trainer.max_epochs=2", "export=safetensors", "data.digits=[5,6]", "data.workers=0"]


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue


# In the order in which a run writes them.
WRITERS = [
    *("plan.json", "config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "freeze_proof.json"),
    *("predictions_val.csv", "model.safetensors", "parity.json", "curves.png", "report.html"),
    *("result.json", "status.json"),
]


def full_at(name: str, disk: Path, patch: pytest.MonkeyPatch) -> None:
    """Fill the disk at the moment when the file is begun; for some the second time."""
    original, seen = tempfile.mkstemp, []

    def mkstemp(prefix, **options):
        if prefix.startswith((f".{name}.", name)):
            seen.append(name)
            if len(seen) == (2 if name in ("last.ckpt", "status.json") else 1):
                fill(disk)
        return original(prefix=prefix, **options)

    patch.setattr(tempfile, "mkstemp", mkstemp)


def test_a_folder_that_holds_a_run_is_resumed_by_what_is_told(tmp_path):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "plan.json").touch()
    with pytest.raises(OutputError, match="already holds files") as told:
        refuse_taken(compose_specs(["experiment=digits_sgd", f"run.dir={tmp_path / 'my run'}"]))
    (typed,) = shlex.split(told.value.fix.rpartition(", or ")[2])
    assert compose_specs(["experiment=digits_sgd", typed]).checkpoint.resume == f"{tmp_path}/my run"


def begin_or_resume(run: Path) -> None:
    again = [f"checkpoint.resume={run}"] if (run / "plan.json").exists() else []
    if not again:  # nothing had begun
        shutil.rmtree(run, ignore_errors=True)
    xfer.run("digits_sgd", [f"run.dir={run}", *again, *OPTIONS])


# Before, in, at the end of and after the fit; what is written twice and what is written last.
FEW = ["plan.json", "best.ckpt", "last.ckpt", "predictions_val.csv", "report.html", "status.json"]


@pytest.mark.parametrize("writers", [FEW, pytest.param(WRITERS, marks=pytest.mark.slow)], ids=len)
def test_a_full_disk_is_reported_and_the_run_resumes_when_there_is_room(writers, disk, monkeypatch):
    """One run, whose disk is filled at one file after the other, and which resumes each time."""
    run = disk / "run"
    for name in writers:
        with monkeypatch.context() as patch:
            full_at(name, disk, patch)
            with pytest.raises(OutputError, match="No space left") as caught:
                begin_or_resume(run)
        assert caught.value.exit == 9, name
        assert list(run.rglob(".*.part")) == [], name
        checkpoints = list(run.glob("checkpoints/*"))
        assert all(checksum_holds(file) for file in checkpoints), name
        if name not in ("plan.json", "config.yaml", "best.ckpt"):
            assert (run / "checkpoints" / LAST) in checkpoints, name
        (disk / "filler").unlink()
    begin_or_resume(run)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert all(file_sha256(run / file) == digest for file, digest in status["files"].items())


def test_a_disk_without_room_is_refused_before_the_first_step(disk):
    with (disk / "filler").open("wb") as stream:
        stream.write(b"x" * (6 << 20))
    with pytest.raises(OutputError, match=r"E914: .*bytes are free, the run needs about"):
        xfer.run("digits_sgd", [f"run.dir={disk / 'run'}", *OPTIONS])
    assert not (disk / "run" / "plan.json").exists()


def test_a_read_only_disk_is_refused_before_planning(disk, monkeypatch):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    monkeypatch.setattr(workflow, "make_plan", lambda specs: pytest.fail("planned"))
    with pytest.raises(OutputError, match=r"E915: .*cannot be written"):
        xfer.run("digits_sgd", [f"run.dir={disk / 'a' / 'run'}"])


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        check_folder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match="name too long"):
        check_folder(tmp_path / ("x" * 300))
    check_folder(tmp_path / "a" / "b")


def test_sixty_four_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # So few endings that almost all collide.
    monkeypatch.setattr(preflight.secrets, "token_hex", lambda _: os.urandom(1).hex())

    class Specs:
        run_dir, experiment = None, "many"

    with ThreadPoolExecutor(64) as pool:
        folders = list(pool.map(lambda _: preflight.make_folder(Specs()), range(64)))
    assert len(set(folders)) == 64 and all(folder.is_dir() for folder in folders)
