from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from weights_files import NO_TORCH_FILES, Malice

from xfer.core.errors import HomeError, OutputError, SafetyError, WeightsError
from xfer.core.files import (
    atomic_folder,
    atomic_write,
    cache_dir,
    tree_sha256,
    write_json,
    write_text,
)
from xfer.core.torch_file import load_tensors, save_tensors

SLOW_WRITE = """
import sys, time
from pathlib import Path
from xfer.core.files import atomic_write

def write(part):
    with part.open("wb") as stream:
        stream.write(b"new" * 1000)
        stream.flush()
        print("half", flush=True)
        time.sleep(600)

atomic_write(Path(sys.argv[1]), write)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    command = [sys.executable, "-c", SLOW_WRITE, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"


def test_who_reads_the_old_file_while_it_is_replaced_reads_all_of_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with target.open() as reader:
        write_text(target, "new")
        assert reader.read() == "old" and target.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        atomic_write(target, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and target.read_text() == "old"


def test_a_written_file_is_whole_alone_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file"
    before = os.umask(0o027)
    try:
        write_text(target, "text")
    finally:
        os.umask(before)
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("of", [stat.S_IFDIR, stat.S_IFREG])
def test_a_share_that_syncs_no_folder_and_has_no_modes_is_written_to_and_no_other(
    of: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        if stat.S_IFMT(os.fstat(handle).st_mode) == of:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "chmod", chmod)
    if of == stat.S_IFREG:
        with pytest.raises(OutputError, match="Invalid argument"):
            write_text(tmp_path / "file", "text")
        return
    write_text(tmp_path / "file", "text")
    atomic_folder(tmp_path / "folder", lambda part: write_text(part / "inside", "more"))
    assert (tmp_path / "file").read_text() + (tmp_path / "folder/inside").read_text() == "textmore"


def test_a_user_without_a_home_is_told_and_helped_by_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XFER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HomeError, match=r"E708: HOME: is not set.* Fix: type export HOME=DIR"):
        cache_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "xfer"


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as told:
        write_text(tmp_path / "file" / "below", "text")
    assert told.value.exit == 9


def test_json_keeps_every_name_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", {"\udcff": "ü"})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"\udcff": "ü"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "facts.json", {"a": float("nan")})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"\udcff": "ü"}


def malicious(path: Path, mark: Path, form: str) -> None:
    if form == "pickle":
        path.write_bytes(pickle.dumps({"a": Malice(mark)}))
    elif form == "text":
        path.write_bytes(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
    else:
        torch.save({"a": Malice(mark)}, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "text"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_none(
    tmp_path: Path, form: str
) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "mark"
    malicious(path, mark, form)
    with pytest.raises(SafetyError, match=r"model\.pt.*more than tensors") as told:
        load_tensors(path)
    assert told.value.exit == 6 and not mark.exists() and "\n" not in str(told.value)


def test_the_guard_holds_for_libraries_that_load_carelessly(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "mark"
    malicious(path, mark, "zip")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not mark.exists()


def saved(tmp_path: Path, legacy: bool = False) -> bytes:
    path = tmp_path / "good.pt"
    torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


@pytest.mark.parametrize("name", NO_TORCH_FILES)
def test_a_file_that_is_no_torch_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.pt").write_bytes(NO_TORCH_FILES[name])
    with pytest.raises(WeightsError, match=r"model\.pt.*download is complete") as told:
        load_tensors(tmp_path / "model.pt")
    assert told.value.exit == 4 and "\n" not in str(told.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_never_a_bug(tmp_path: Path, legacy: bool) -> None:
    good, path = saved(tmp_path, legacy), tmp_path / "model.pt"
    for length in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:length])
        with pytest.raises((WeightsError, SafetyError)):
            load_tensors(path)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        damaged = bytearray(good)
        for place in torch.randint(min(700, len(good)), (4,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(damaged)
        try:
            load_tensors(path)
        except (WeightsError, SafetyError):
            continue


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    facts = {"a": torch.arange(3), "b": {"c": 1.5}}
    save_tensors(tmp_path / "x.ckpt", facts)
    found = load_tensors(tmp_path / "x.ckpt")
    assert torch.equal(found["a"], facts["a"]) and found["b"] == facts["b"]
    assert zipfile.is_zipfile(tmp_path / "x.ckpt")


def test_a_folder_is_written_whole_and_takes_the_place_of_the_one_there(tmp_path: Path) -> None:
    def fill(part: Path, text: str) -> None:
        (part / "a.txt").write_text(text)
        (part / "below").mkdir()
        (part / "below" / "b.txt").write_text(text)

    place = tmp_path / "folder"
    for text in ("one", "two"):
        atomic_folder(place, lambda part, text=text: fill(part, text))  # type: ignore[misc]
        assert (place / "below" / "b.txt").read_text() == text
    before = tree_sha256(place)

    def fails(part: Path) -> None:
        fill(part, "three")
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        atomic_folder(place, fails)
    assert tree_sha256(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    (place / "below" / "b.txt").write_text("other")
    assert tree_sha256(place) != before
