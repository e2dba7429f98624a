"""The store of features: what is kept, who may write, and what is never trusted."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_files import Malice

from xfer.core.errors import ConfigError, DataError, OutputError
from xfer.core.log import log
from xfer.training.features.feature_parts import assisted, shared
from xfer.training.features.store import FeatureEntry, Store, digest, rows

KEY = {
    "weights": "5c1f", "cut": "fc", "input": {"size": [224, 224], "mean": [0.5, 0.5, 0.5]},
    "augment": None, "seed": 1, "view": 0, "precision": "32-true", "chunk": 24, "pad": True,
}  # fmt: skip
DATA = torch.arange(3000.0).reshape(30, 100)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def in_chunks(data: torch.Tensor, size: int = 7) -> Callable[[], Iterator[torch.Tensor]]:
    return lambda: iter(data.split(size))


def never() -> Iterator[torch.Tensor]:
    raise AssertionError("what is there should have been used")


def put(
    folder: Path, key: Any = KEY, data: torch.Tensor = DATA, max_gb: float = 1.0
) -> FeatureEntry:
    return Store(folder, max_gb).entry(key, len(data), in_chunks(data))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(*keys: Any) -> set[str]:
    return {f"{digest(key)}.{kind}" for key in keys for kind in ("npy", "json", "lock")}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What xfer says, each line once, whether or not a test before this one opened its log."""
    lines: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, level = Heard(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)


# What is kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (64,), (3, 5, 2)])
def test_an_entry_is_computed_once_and_is_the_same_bit_for_bit(tmp_path, dtype, shape, said):
    width = torch.finfo(dtype).bits // 8
    # Every pattern of bits, NaN and its payloads too.
    raw = torch.randint(0, 256, (41, math.prod(shape) * width), dtype=torch.uint8)
    data = raw.view(dtype).reshape(41, *shape)
    built = put(tmp_path, data=data)
    again = Store(tmp_path, 1.0).entry(KEY, 41, never)
    order = torch.randperm(41)
    for entry, hit in ((built, False), (again, True)):
        assert entry.hit is hit and entry.array.shape == (41, *shape)
        assert entry.dtype == str(dtype).removeprefix("torch.")
        for indices in (order, order.numpy(), order.tolist()):
            found = rows(entry, indices)
            assert found.dtype == dtype and torch.equal(bits(found), bits(data[order]))
    assert names(tmp_path) == whole(KEY) and said == []


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_rows_are_copies_and_indices_outside_are_refused(tmp_path):
    entry = put(tmp_path)
    rows(entry, [3]).zero_()
    assert torch.equal(rows(entry, [3, 3, 0]), DATA[[3, 3, 0]])
    assert rows(entry, []).shape == (0, 100)
    for outside in (-1, 30):
        with pytest.raises(IndexError):
            rows(entry, [outside])


def test_changing_the_array_in_memory_changes_no_file(tmp_path):
    put(tmp_path).array[:] = 7
    assert torch.equal(rows(Store(tmp_path, 1.0).entry(KEY, 30, never), range(30)), DATA)


@pytest.mark.parametrize("chunks", [[], [torch.empty(0, 4, 2, dtype=torch.bfloat16)]])
def test_a_split_without_images_is_an_entry_without_rows(tmp_path, chunks):
    built = Store(tmp_path, 1.0).entry(KEY, 0, lambda: chunks)
    again = Store(tmp_path, 1.0).entry(KEY, 0, never)
    shape, dtype = ((0, 4, 2), torch.bfloat16) if chunks else ((0,), torch.float32)
    for entry in (built, again):
        found = rows(entry, [])
        assert (tuple(found.shape), found.dtype) == (shape, dtype)


def test_tensors_of_a_graph_and_of_any_strides_are_kept(tmp_path):
    data = DATA.clone().requires_grad_().reshape(5, 6, 10, 10)[:, :, ::2].transpose(0, 1)
    assert torch.equal(rows(put(tmp_path, data=data), range(6)), data)


def test_every_field_of_the_key_is_another_entry_and_the_order_is_none(tmp_path):
    other = [{**KEY, name: "other"} for name in KEY] + [{**KEY, "more": 1}]
    other += [{**KEY, "view": 0.0}, {**KEY, "view": False}, {**KEY, "chunk": "24"}]
    assert len({digest(key) for key in [KEY, *other]}) == 1 + len(other)
    same = dict(reversed(KEY.items())) | {"input": {"mean": (0.5, 0.5, 0.5), "size": (224, 224)}}
    assert digest(same) == digest(KEY) and re.fullmatch("[0-9a-f]{64}", digest(KEY))
    put(tmp_path)
    assert Store(tmp_path, 1.0).entry(same, 30, never).hit
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": math.nan})


@pytest.mark.parametrize("max_gb", [0, -1.0, math.nan])
def test_a_limit_that_holds_nothing_is_refused(tmp_path, max_gb):
    with pytest.raises(ConfigError, match=r"E254.*max_gb"):
        Store(tmp_path, max_gb)


# What does not fit


def endless() -> Iterator[torch.Tensor]:
    while True:
        yield DATA


@pytest.mark.parametrize(
    "number, chunks, says",
    [
        (360, [DATA[:29]], "29 rows for 30 images"),
        (360, [], "0 rows for 30 images"),
        (360, endless(), "over 30 rows for 30 images"),
        (361, [DATA[:7], DATA[7:].half()], r"float16 \[100\] follow float32 \[100\]"),
        (361, [DATA[:7], DATA[7:, :99]], r"float32 \[99\] follow float32 \[100\]"),
        (362, [DATA.double()], "float64 tensor of 2 dimensions"),
        (362, [torch.tensor(1.0)], "float32 tensor of 0 dimensions"),
    ],
)
def test_features_that_do_not_fit_the_images_leave_nothing(tmp_path, number, chunks, says):
    with pytest.raises(DataError, match=says) as told:
        Store(tmp_path / "new", 1.0).entry(KEY, 30, lambda: chunks)
    assert told.value.number == number and names(tmp_path / "new") == set()


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no picture"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1])
def test_what_stops_the_computation_comes_out_as_it_is_and_leaves_nothing(tmp_path, error, after):
    def compute() -> Iterator[torch.Tensor]:
        yield from [DATA[:7]] * after
        raise error

    with pytest.raises(type(error)) as told:
        Store(tmp_path, 1.0).entry(KEY, 30, compute)
    assert told.value is error and names(tmp_path) == set()
    assert not put(tmp_path).hit


# What is not trusted

Tamper = Callable[[Path, Path], object]


def edited(change: Callable[[dict[str, Any]], object]) -> Tamper:
    def tamper(array: Path, manifest: Path) -> None:
        facts = json.loads(manifest.read_text())
        change(facts)
        manifest.write_text(json.dumps(facts))

    return tamper


def rewritten(data: bytes) -> Tamper:
    """Other bytes in the array's file, and a manifest that vouches for them."""

    def tamper(array: Path, manifest: Path) -> None:
        array.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        edited(lambda facts: facts.update(sha256=sha256))(array, manifest)

    return tamper


def npy(array: np.ndarray[Any, Any], folder: Path) -> bytes:
    np.save(folder / "made.npy", array)
    data = (folder / "made.npy").read_bytes()
    (folder / "made.npy").unlink()
    return data


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut_to(size: int) -> Tamper:
    return lambda array, manifest: os.truncate(array, size if size >= 0 else 12128 + size)


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "empty": (cut_to(0), "0 bytes, not 12128"),
    "header only": (cut_to(128), "128 bytes, not 12128"),
    "half": (cut_to(6000), "6000 bytes, not 12128"),
    "last byte gone": (cut_to(-1), "12127 bytes, not 12128"),
    "a byte more": (cut_to(12129), "12129 bytes, not 12128"),
    "no manifest": (lambda a, m: m.unlink(), "no manifest"),
    "no array": (lambda a, m: a.unlink(), "No such file"),
    "array a link": (lambda a, m: as_link(a), "symbolic link"),
    "array a pipe": (lambda a, m: as_pipe(a), "not a regular file"),
    "manifest a link": (lambda a, m: as_link(m), "symbolic link"),
    "manifest a pipe": (lambda a, m: as_pipe(m), "not a regular file"),
    "manifest empty": (lambda a, m: m.write_bytes(b""), "not what xfer writes"),
    "manifest half": (lambda a, m: os.truncate(m, 100), "not what xfer writes"),
    "manifest deep": (lambda a, m: m.write_bytes(b"[" * 500_000), "not what xfer writes"),
    "manifest no text": (lambda a, m: m.write_bytes(b"\xff\xfe\x00"), "not what xfer writes"),
    "manifest huge": (lambda a, m: m.write_bytes(b" " * (1 << 20) + b"{}"), "not what xfer writes"),
    "manifest a list": (lambda a, m: m.write_bytes(b"[]"), "not what xfer writes"),
    "another format": (edited(lambda f: f.update(format=2)), "not what xfer writes"),
    "no key": (edited(lambda f: f.pop("key")), "not what xfer writes (key"),
    "key a list": (edited(lambda f: f.update(key=[1])), "not what xfer writes (key"),
    "field changed": (edited(lambda f: f["key"].update(view=1)), "another key (view)"),
    "field of another type": (edited(lambda f: f["key"].update(pad=1)), "another key (pad)"),
    "field missing": (edited(lambda f: f["key"].pop("cut")), "another key (cut)"),
    "field more": (edited(lambda f: f["key"].update({"\x1b[31m": 1})), r"another key (\x1b[31m)"),
    "field no number": (edited(lambda f: f["key"].update(seed=math.nan)), "JSON"),
    "no sha256": (edited(lambda f: f.pop("sha256")), "not what xfer writes (sha256"),
    "dtype a list": (edited(lambda f: f.update(dtype=["float32"])), "not what xfer writes (dtype"),
    "dtype of numpy": (edited(lambda f: f.update(dtype="|O")), "not what xfer writes (dtype"),
    "another dtype": (edited(lambda f: f.update(dtype="float16")), "12128 bytes, not 6128"),
    "shape none": (edited(lambda f: f.update(shape=[])), "writes (shape"),
    "shape negative": (edited(lambda f: f.update(shape=[30, -100])), "writes (shape"),
    "shape fractions": (edited(lambda f: f.update(shape=[30, 100.0])), "writes (shape"),
    "shape of many": (edited(lambda f: f.update(shape=[30, 100] + [1] * 40)), "writes (shape"),
    "shape vast": (edited(lambda f: f.update(shape=[30, 10**4000])), "bytes, not"),
    "shape too vast": (edited(lambda f: f.update(shape=[30] + [10**4200] * 15)), ""),
    "other rows": (edited(lambda f: f.update(shape=[60, 50])), "60 rows, not 30"),
    "other columns": (edited(lambda f: f.update(shape=[30, 10, 10])), "its header is not"),
}  # fmt: skip


def recomputed(folder: Path, said: list[str], why: str) -> None:
    """The entry is computed again, once, with one warning, and is sound afterwards."""
    said.clear()
    entry = put(folder)
    assert not entry.hit and torch.equal(rows(entry, range(30)), DATA)
    (line,) = said
    assert str(entry.path) in line and why in line and line.endswith("computing it again")
    assert line.isprintable()
    assert Store(folder, 1.0).entry(KEY, 30, never).hit
    assert whole(KEY) <= names(folder) <= whole(KEY) | {"elsewhere"}


@pytest.mark.parametrize("case", TAMPERED)
def test_an_unsound_entry_is_told_removed_and_computed_again(tmp_path, said, case):
    tamper, why = TAMPERED[case]
    path = put(tmp_path).path
    tamper(path, path.with_suffix(".json"))
    recomputed(tmp_path, said, why)


def test_a_file_that_its_manifest_vouches_for_must_still_be_of_its_kind(tmp_path, said):
    path, mark = put(tmp_path).path, tmp_path / "mark"
    whole_file, other = path.read_bytes(), DATA.numpy().copy()
    malice = npy(np.array([Malice(mark)], dtype=object), tmp_path)
    assert b"touch" in malice and str(mark.name).encode() in malice  # np.load would run it
    padded = malice + bytes(len(whole_file) - len(malice))
    for data in (
        padded,
        npy(other.astype(">f4"), tmp_path),
        npy(np.asfortranarray(other), tmp_path),
        npy(other.view(np.int32), tmp_path),
        bytes(len(whole_file)),
    ):
        assert len(data) == len(whole_file)
        rewritten(data)(path, path.with_suffix(".json"))
        recomputed(tmp_path, said, "its header is not")
    assert not mark.exists()


def test_a_hundred_flipped_bits_are_all_noticed(tmp_path, said):
    path, draw = put(tmp_path).path, random.Random(0)
    kept = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    places = [draw.randrange(128) for _ in range(20)]
    places += [draw.randrange(128, len(kept[path])) for _ in range(80)]
    for place in places:
        data = bytearray(kept[path])
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        said.clear()
        with pytest.raises(AssertionError, match="should have been used"):
            Store(tmp_path, 1.0).entry(KEY, 30, never)
        assert len(said) == 1 and ("sha256" in said[0] or "header" in said[0])
        assert names(tmp_path) == set()
        for file, content in kept.items():
            file.write_bytes(content)
    assert Store(tmp_path, 1.0).entry(KEY, 30, never).hit


def test_a_flipped_bit_in_a_manifest_never_makes_another_array(tmp_path):
    manifest, draw = put(tmp_path).path.with_suffix(".json"), random.Random(1)
    before, noticed = manifest.read_bytes(), 0
    for _ in range(60):
        data = bytearray(before)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        manifest.write_bytes(data)
        entry = put(tmp_path)
        noticed += not entry.hit
        assert entry.dtype == "float32" and torch.equal(rows(entry, range(30)), DATA)
        assert put(tmp_path).hit
    assert noticed > 40  # some bits only move white space


def test_entries_whose_files_were_swapped_are_both_computed_again(tmp_path, said):
    other = {**KEY, "view": 1}

    def swap(kind: str) -> None:
        paths = [tmp_path / f"{digest(key)}.{kind}" for key in (KEY, other)]
        first, second = (path.read_bytes() for path in paths)
        paths[0].write_bytes(second)
        paths[1].write_bytes(first)

    for kinds, why in ((["npy"], "sha256"), (["json"], "(view)"), (["npy", "json"], "(view)")):
        put(tmp_path), put(tmp_path, other, -DATA)
        for kind in kinds:
            swap(kind)
        said.clear()
        for key, data in ((KEY, DATA), (other, -DATA)):
            entry = put(tmp_path, key, data)
            assert not entry.hit and torch.equal(rows(entry, range(30)), data)
        assert len(said) == 2 and all(why in line for line in said)


def test_an_entry_that_changed_while_it_was_written_is_an_error(tmp_path):
    def compute() -> Iterator[torch.Tensor]:
        yield DATA
        (part,) = tmp_path.glob(".*.part")
        with part.open("r+b") as stream:
            stream.seek(500)
            stream.write(b"x")

    with pytest.raises(OutputError, match=r"E913.*is not what was written.*sha256"):
        Store(tmp_path, 1.0).entry(KEY, 30, compute)
    assert names(tmp_path) == set()


# Several processes

# Rows does what the store asks of a tensor, without the seconds that torch takes to import.
SCRIPT = """
import fcntl, hashlib, json, logging, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from xfer.core.errors import XferError
from xfer.training.features.store import Store, digest
from xfer.core.log import log

class Rows:
    dtype = "torch.float32"
    def __init__(self, array):
        self.array, self.shape = array, array.shape
    def detach(self):
        return self
    cpu = contiguous = detach
    def numpy(self):
        return self.array

def tell(text):
    # One write a line, so that lines of several processes stay whole.
    os.write(1, f"{text}\\n".encode())

class Heard(logging.Handler):
    def emit(self, record):
        tell(record.getMessage())

def forked(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        tell(repr(error))
    os._exit(1)

log.addHandler(Heard())
log.setLevel(logging.INFO)
FOLDER, KEY = Path(sys.argv[1]), json.loads(sys.argv[2])
DATA = np.arange(3000, dtype=np.float32).reshape(30, 100)
chunks = lambda data=DATA: (Rows(data[i : i + 7]) for i in range(0, 30, 7))
entry = lambda compute=chunks, key=KEY, gb=1.0: Store(FOLDER, gb).entry(key, 30, compute)

def never():
    raise AssertionError("what is there should have been used")

def refused(compute=chunks, key=KEY):
    try:
        entry(compute, key)
    except XferError as error:
        tell(error)
    tell(sorted(p.name for p in FOLDER.iterdir()))
"""


def command(folder: Path, script: str) -> list[str]:
    text = SCRIPT + textwrap.dedent(script)
    return [sys.executable, "-c", text, str(folder), json.dumps(KEY)]


def ran(folder: Path, script: str, *before: str) -> list[str]:
    """The lines that the script tells."""
    done = subprocess.run(
        [*before, *command(folder, script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    return done.stdout.splitlines()


ONE = """
def slowly():
    tell("computing")
    sys.stdin.readline()
    yield from chunks()

found = entry(slowly)
assert np.array_equal(found.array, DATA)
tell(f"hit {found.hit}")
"""


class Child:
    """A process whose lines are read as they come."""

    def __init__(self, folder: Path, script: str) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command(folder, script), text=True, **pipes)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """Let it go on; what else it tells."""
        told, _ = self.process.communicate("\n", timeout=600)
        return str(told).splitlines()


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_computes_and_the_other_waits_or_takes_over(tmp_path, killed):
    first = Child(tmp_path, ONE)
    assert first.line() == "computing"
    second = Child(tmp_path, ONE)
    path = tmp_path / f"{digest(KEY)}.npy"
    said = second.line()
    assert said.startswith(f"waiting for process {first.process.pid} (")
    assert said.endswith(f"), which works on {path}")
    if killed:
        first.process.send_signal(signal.SIGKILL)
        assert first.end() == [] and second.end() == ["computing", "hit False"]
    else:
        assert first.end() == ["hit False"] and second.end() == ["hit True"]
    assert names(tmp_path) == whole(KEY)
    assert torch.equal(rows(Store(tmp_path, 1.0).entry(KEY, 30, never), range(30)), DATA)


CROWD = """
def compute():
    tell("computing")
    for chunk in chunks():
        time.sleep(0.02)
        yield chunk

def work():
    os.close(start[1])
    os.read(start[0], 1)
    found = entry(compute)
    assert np.array_equal(found.array, DATA)
    tell(f"hit {found.hit}")

start = os.pipe()
children = [forked(work) for _ in range(16)]
os.close(start[1])
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("poisoned", [False, True])
def test_of_sixteen_processes_at_once_one_computes(tmp_path, poisoned):
    if poisoned:
        put(tmp_path).array.flush()
        with (tmp_path / f"{digest(KEY)}.npy").open("r+b") as stream:
            stream.seek(5000)
            stream.write(b"poison")
    told = ran(tmp_path, CROWD)
    assert told.count("computing") == told.count("hit False") == 1
    assert told.count("hit True") == 15
    assert sum("computing it again" in line for line in told) == poisoned
    assert sum("waiting" in line for line in told) <= 16
    assert names(tmp_path) == whole(KEY)


RIVALS = """
def work():
    draw = random.Random(os.getpid())
    for _ in range(12):
        view = draw.randrange(4)
        found = entry(lambda: chunks(DATA + view), KEY | {"view": view}, gb=26e-6)
        assert np.array_equal(found.array, DATA + view)

children = [forked(work) for _ in range(4)]
for child in children:
    assert os.waitpid(child, 0)[1] == 0
entry(never if (FOLDER / f"{digest(KEY)}.npy").exists() else chunks, gb=26e-6)
"""


def test_processes_that_remove_each_others_entries_all_read_right_numbers(tmp_path):
    told = ran(tmp_path, RIVALS)
    assert not any("again" in line for line in told), told
    assert any("used least recently" in line for line in told)
    assert size_of(tmp_path) <= 26_000 and f"{digest(KEY)}.npy" in names(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json", ".lock"}


# The child is killed before its step number `at` that opens, locks, renames or removes a file.
STEPS = """
def child(at):
    steps = 0
    def count(event, args):
        nonlocal steps
        if event in ("open", "fcntl.flock", "os.rename", "os.remove", "os.chmod", "os.utime"):
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    entry()

found = {True: 0, False: 0}
for at in range(1, 1000):
    status = os.waitpid(forked(lambda: child(at)), 0)[1]
    assert status in (0, signal.SIGKILL), status
    if status == 0:
        break
    again = entry()
    assert np.array_equal(again.array, DATA)
    found[again.hit] += 1
    assert sorted(p.suffix for p in FOLDER.iterdir()) == [".json", ".lock", ".npy"], at
    shutil.rmtree(FOLDER)
tell(json.dumps([found[False], found[True]]))
"""


def test_a_kill_at_every_step_leaves_nothing_or_a_whole_entry(tmp_path):
    *told, counts = ran(tmp_path, STEPS)
    nothing, finished = json.loads(counts)
    assert nothing >= 8 and finished >= 3
    assert {line.split(": ")[1] for line in told} == {"it has no manifest"}


KILLS = """
started = time.perf_counter()
entry()
longest = 1.5 * (time.perf_counter() - started)
draw, landed, found = random.Random(0), 0, {True: 0, False: 0}
while landed < WANTED:
    shutil.rmtree(FOLDER)
    child = forked(entry)
    time.sleep(draw.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    landed += os.waitpid(child, 0)[1] == signal.SIGKILL
    again = entry()
    assert np.array_equal(again.array, DATA)
    found[again.hit] += 1
    assert sorted(p.suffix for p in FOLDER.iterdir()) == [".json", ".lock", ".npy"]
tell(json.dumps([landed, found[False], found[True]]))
"""


@pytest.mark.parametrize("kills", [8, pytest.param(25, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_nothing_or_a_whole_entry(tmp_path, kills):
    landed, nothing, finished = json.loads(ran(tmp_path, KILLS.replace("WANTED", str(kills)))[-1])
    assert landed == kills and nothing + finished >= kills and nothing > 0
    assert names(tmp_path) == whole(KEY)


def test_a_worker_that_outlives_the_computation_does_not_keep_the_lock(tmp_path):
    script = """
    def compute():
        global worker
        worker = forked(lambda: time.sleep(600))
        yield from chunks()

    entry(compute)
    with (FOLDER / f"{digest(KEY)}.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGKILL)
    """
    assert ran(tmp_path, script) == []


# Room


def aged(folder: Path, *keys: Any) -> None:
    """Make them used long ago, in that order."""
    for second, key in enumerate(keys):
        os.utime(folder / f"{digest(key)}.json", (second, second))


A, B, C, D, E = ({**KEY, "view": view} for view in "abcde")
THREE = 40e-6  # gigabytes that hold three entries of 12.5 kB


def test_the_least_recently_used_entries_make_room(tmp_path, said):
    maps = [put(tmp_path, key, max_gb=THREE) for key in (A, B, C)]
    aged(tmp_path, A, B, C)
    assert put(tmp_path, A, max_gb=THREE).hit  # which makes it the latest used
    put(tmp_path, D, max_gb=THREE)
    assert names(tmp_path) == whole(A, C, D)
    assert said == [f"{maps[1].path} was used least recently: removed"]
    put(tmp_path, E, max_gb=THREE)
    assert names(tmp_path) == whole(A, D, E) and size_of(tmp_path) <= THREE * 1e9
    assert all(torch.equal(rows(entry, range(30)), DATA) for entry in maps)


def test_entries_that_somebody_holds_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.npy").write_bytes(bytes(100_000))
    (tmp_path / f"{digest(A)}.txt").write_text("mine")
    mine = names(tmp_path)
    for key in (A, B, C):
        put(tmp_path, key, max_gb=THREE)
    aged(tmp_path, A, B, C)
    with (tmp_path / f"{digest(A)}.lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        put(tmp_path, D, max_gb=THREE)
    assert names(tmp_path) == whole(A, C, D) | mine


def test_a_limit_that_was_lowered_spares_the_entry_in_use(tmp_path):
    for key in (A, B, C):
        put(tmp_path, key)
    assert put(tmp_path, B, max_gb=1e-6).hit and names(tmp_path) == whole(B)


def test_an_entry_over_the_limit_is_told_before_anything_is_removed(tmp_path):
    put(tmp_path, A, max_gb=THREE)
    with pytest.raises(OutputError) as told:
        Store(tmp_path, 1e-5).entry(B, 30, in_chunks(DATA))
    assert str(told.value) == (
        f"xfer: error E910: {tmp_path}: the features take 1.21e-05 GB, more than "
        "features.max_gb=1e-05. Fix: features.max_gb=1, or features=never"
    )
    assert names(tmp_path) == whole(A)


def test_an_entry_that_no_disk_holds_is_told_after_its_first_rows(tmp_path):
    asked = []

    def compute() -> Iterable[torch.Tensor]:
        for chunk in (DATA[:1], DATA[1:2]):
            asked.append(chunk)
            yield chunk

    with pytest.raises(OutputError, match=r"E911.*the features take 4e\+07 GB, and .* GB are free"):
        Store(tmp_path, 1e9).entry(KEY, 10**14, compute)
    assert len(asked) == 1 and names(tmp_path) == set()


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    left = [f".{digest(A)}.x1_y.part", f".{digest(A)}.npy.zz.part", f"{digest(B)}.npy"]
    left += [f"{digest(C)}.json", f"{digest(C)}.lock"]
    alive = [f".{digest(D)}.x1.part", f"{digest(D)}.npy", f"{digest(D)}.lock"]
    for name in left + alive:
        (tmp_path / name).write_bytes(b"x")
    with (tmp_path / alive[-1]).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        put(tmp_path)
        assert names(tmp_path) == whole(KEY) | set(alive)
    put(tmp_path)
    assert names(tmp_path) == whole(KEY)


# Folders and disks that do not take it


def test_a_folder_that_cannot_be_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"E912.*cannot be written.*features\.dir=DIR"):
            Store(folder, 1.0).entry(KEY, 30, never)
        assert not folder.is_dir()


def test_a_folder_in_the_place_of_an_entry_is_told(tmp_path):
    (tmp_path / f"{digest(KEY)}.npy").mkdir()
    with pytest.raises(OutputError, match=r"E912.*Is a directory"):
        Store(tmp_path, 1.0).entry(KEY, 30, never)


def test_a_file_that_may_not_grow_is_told_and_leaves_nothing(tmp_path):
    script = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    refused()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert not entry().hit and entry(never).hit
    """
    error, left = ran(tmp_path, script)
    assert error.startswith("xfer: error E912") and "cannot be written (File too large)" in error
    assert left == "[]"


def apart(*options: str) -> list[str]:
    """The start of a command whose mounts and rights are its own."""
    start = ["unshare", "--user", *options]
    if not shutil.which("unshare") or subprocess.run([*start, "true"], check=False).returncode:
        pytest.skip("this machine does not let a process have mounts or users of its own")
    return start


def mounted(mount: str) -> list[str]:
    return [*apart("--map-root-user", "--mount"), "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    script = """
    big = np.zeros((30, 30_000), np.float32)
    refused(lambda: chunks(big), KEY | {"cut": "big"})

    def crowded():
        for i, chunk in enumerate(chunks()):
            yield chunk
            if i == 1:
                with (FOLDER / "other").open("wb", buffering=0) as stream:
                    while stream.write(bytes(4096)) == 4096:
                        pass

    def quietly():
        try:
            yield from crowded()
        except OSError:  # the disk is full, which was the purpose
            yield from list(chunks())[2:]

    refused(quietly)
    (FOLDER / "other").unlink()
    assert not entry().hit and entry(never).hit
    """
    disk = mounted(f"mount -t tmpfs -o size=1m none '{tmp_path}'")
    small, nothing, full, other = ran(tmp_path, script, *disk)
    assert re.search(r"E911: .*the features take 0\.0036 GB, and 0\.001\d* GB are free", small)
    assert re.search(r"E912: .*cannot be written \(No space left on device\)", full)
    assert (nothing, other) == ("[]", "['other']")


READ_ONLY = """
found = entry(never)
assert found.hit and np.array_equal(found.array, DATA)
refused(never, KEY | {"view": 5})
refused(never, KEY | {"view": "poisoned"})
"""


@pytest.mark.parametrize("why", ["Read-only file system", "Permission denied"])
@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_that_may_only_be_read_is_read(tmp_path, why, locks):
    folder = tmp_path / "folder"
    put(folder)
    put(folder, {**KEY, "view": "poisoned"}).path.write_bytes(b"poison")
    if not locks:
        for path in folder.glob("*.lock"):
            path.unlink()
    before = names(folder)
    if why == "Permission denied":
        start = apart()
        folder.chmod(0o555)
    else:
        start = mounted(
            f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
        )
    try:
        missing, left, *warned, poisoned, still = ran(folder, READ_ONLY, *start)
    finally:
        folder.chmod(0o755)
    for error in (missing, poisoned):
        assert "E912" in error and f"cannot be written ({why})" in error
    assert left == still == str(sorted(before)) and names(folder) == before
    assert len(warned) <= 1


class _Pair:
    """One of two ranks that meet within this process."""

    sent: queue.Queue[Any] = queue.Queue()
    met = threading.Barrier(2, timeout=600)

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self.sent.put(value)
        return value if self.rank == 0 else self.sent.get(timeout=600)

    def all_gather(self, value: Any) -> list[Any]:
        self.met.wait()
        return [value] * 2


def test_what_rank_zero_has_made_is_read_by_the_others_before_another_takes_its_room(
    tmp_path: Path,
) -> None:
    goes_on, found = threading.Event(), []

    class Late(Store):
        def entry(self, *given: Any) -> FeatureEntry:
            goes_on.wait(0.3)  # as long as rank 0 may take to its next entry
            return super().entry(*given)

    def second() -> None:
        with suppress(OutputError):
            found.append(assisted(Late(tmp_path, 1), _Pair(1), 1, lambda: []))  # type: ignore[arg-type]

    store, thread = Store(tmp_path, 1), threading.Thread(target=second)
    store.entry(A, 1, lambda: [torch.ones(1, 2)])
    thread.start()
    shared(_Pair(0), A)  # type: ignore[arg-type]
    store.forget(A, "")  # to make room
    goes_on.set()
    thread.join()
    assert len(found) == 1 and found[0].array.tolist() == [[1, 1]]
