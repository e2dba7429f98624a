"""Files that would run code: each attack is real, as its control proves, and none comes through."""

from __future__ import annotations

import copyreg
import ctypes
import importlib
import io
import marshal
import multiprocessing.util
import operator
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import time
import timeit
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_files import GOOD, header, legacy, npz_bytes, state, torch_bytes, torch_zip, zip_of

from xfer.core.errors import SafetyError, WeightsError
from xfer.weights.formats.detect import kind_of
from xfer.weights.formats.read import read

EXTENSION = 240


class Call:
    """Pickled, it is the call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        raise AssertionError("only a pickle calls this")


def touch(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


def module_beside(mark: Path) -> str:
    name = f"planted_{abs(hash(str(mark)))}"
    (mark.parent / f"{name}.py").write_text(touch(mark))
    return name


def hub_beside(mark: Path) -> str:
    code = f"def evil():\n    {touch(mark)}\n"
    (mark.parent / "hubconf.py").write_text(code)
    return str(mark.parent)


def shell(mark: Path) -> bytes:
    return b"touch " + bytes(mark)


def compiled(mark: Path) -> bytes:
    return marshal.dumps(compile(touch(mark), "", "exec"))


def text_of(mark: Path) -> bytes:
    return f"S'touch {mark}'\n".encode()


def dumped(make: Callable[[Path], Any], protocol: int = 2) -> Callable[[Path], bytes]:
    return lambda mark: pickle.dumps(make(mark), protocol)


# How each pickle touches a file, and the name that the refusal must give.
FAMILIES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (dumped(lambda m: Call(os.system, f"touch {m}")), "posix.system"),
    "eval": (dumped(lambda m: Call(eval, touch(m))), "builtins.eval"),
    "exec": (dumped(lambda m: Call(exec, touch(m))), "builtins.exec"),
    "subprocess": (
        dumped(lambda m: Call(subprocess.check_call, ["touch", str(m)])),
        "subprocess.check_call",
    ),
    "open": (dumped(lambda m: Call(open, str(m), "w")), "io.open|builtins.open"),
    "runpy": (dumped(lambda m: Call(runpy._run_code, touch(m), {})), "runpy._run_code"),
    "torch.storage": (
        dumped(
            lambda m: Call(
                torch.storage._load_from_bytes,
                torch_bytes(Call(exec, touch(m)), legacy=True),
            )
        ),
        "torch.storage._load_from_bytes",
    ),
    "torch.hub": (
        dumped(lambda m: Call(torch.hub._load_local, hub_beside(m), "evil")),
        "torch.hub._load_local",
    ),
    "importlib": (
        dumped(lambda m: Call(importlib.import_module, module_beside(m))),
        "importlib.import_module",
    ),
    "ctypes": (
        dumped(lambda m: Call(Call(getattr, Call(ctypes.CDLL, None), "system"), shell(m))),
        "ctypes.CDLL",
    ),
    "marshal": (
        dumped(lambda m: Call(exec, Call(marshal.loads, compiled(m)))),
        "marshal.loads",
    ),
    "multiprocessing": (
        dumped(
            lambda m: Call(
                multiprocessing.util.spawnv_passfds,
                os.fsencode(str(shutil.which("touch"))), [b"touch", os.fsencode(m)], (),
            )
        ),
        "multiprocessing.util.spawnv_passfds",
    ),
    "methodcaller": (
        dumped(lambda m: Call(Call(operator.methodcaller, "touch"), m)),
        "operator.methodcaller",
    ),
    "getattr chain": (
        dumped(lambda m: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {m}")),
        "builtins.getattr, builtins.__import__",
    ),
    "timeit": (
        dumped(lambda m: Call(timeit.timeit, touch(m), "pass", time.time, 1)), "timeit.timeit"
    ),
    "INST": (lambda m: b"(" + text_of(m) + b"ios\nsystem\n.", "os.system"),
    "OBJ": (lambda m: b"(cos\nsystem\n" + text_of(m) + b"o.", "os.system"),
    "EXT": (
        lambda m: b"\x80\x02\x82" + bytes([EXTENSION]) + text_of(m) + b"\x85R.",
        f"the registry of extensions .code {EXTENSION}",
    ),
    "protocol 4": (dumped(lambda m: Call(os.system, f"touch {m}"), 4), "posix.system"),
    "protocol 0": (dumped(lambda m: Call(os.system, f"touch {m}"), 0), "posix.system"),
    "computed name": (
        lambda m: (
            b"\x80\x04cbuiltins\nstr\n\x8c\x02os\x85R\x8c\x06system\x93" + text_of(m) + b"\x85R."
        ),
        "builtins.str",
    ),
}  # fmt: skip


def in_a_dictionary(pickled: bytes) -> bytes:
    """A pickle of ``{"pytorch-lightning_version": ..., "state_dict": ..., "callbacks": evil}``."""
    protocol, body = (pickled[:2], pickled[2:]) if pickled[:1] == b"\x80" else (b"", pickled)
    before = b"}(V" + b"pytorch-lightning_version\nV2.6.1\nVstate_dict\n}Vcallbacks\n"
    return protocol + before + body[:-1] + b"u."


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {
    "zip": torch_zip,
    "legacy": legacy,
    "Lightning zip": lambda pickled: torch_zip(in_a_dictionary(pickled)),
    "Lightning legacy": lambda pickled: legacy(in_a_dictionary(pickled)),
    "pickle": lambda pickled: pickled,
    "legacy, keys of its data": lambda pickled: legacy(b"\x80\x02}.", pickled),
    "legacy, first": lambda pickled: legacy(b"\x80\x02}.")[:15] + pickled,
}


@pytest.fixture
def registered() -> Iterator[None]:
    """os.system in the registry that EXT opcodes look names up in."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_malicious_pickle_is_refused_by_the_name_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, layout: str
) -> None:
    make, name = FAMILIES[family]
    mark, path = tmp_path / "canary", tmp_path / "model.pt"
    monkeypatch.syspath_prepend(tmp_path)
    pickled = make(mark)
    path.write_bytes(LAYOUTS[layout](pickled))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        SafetyError, match=rf"model\.pt.*asks for more than tensors: .*{name}"
    ) as told:
        read(path)
    text = str(told.value)
    assert told.value.exit == 6 and text.isprintable() and len(text) < 600
    assert "weights_only" not in text and "safe_globals" not in text
    time.sleep(0.02 if family == "multiprocessing" else 0)
    assert not mark.exists() and sorted(tmp_path.rglob("*")) == before


CONTROL = """
import copyreg, os, pickle, sys, time
copyreg.add_extension("os", "system", 240)
for path in sys.argv[1:]:
    folder = os.path.dirname(path)
    sys.path.insert(0, folder)
    try:
        pickle.loads(open(path, "rb").read())
    except Exception as error:
        print(path, repr(error))
    end = time.time() + 100
    while not os.path.exists(folder + "/canary") and time.time() < end:
        time.sleep(0.01)
"""


def test_each_of_these_pickles_would_run_its_code(tmp_path: Path) -> None:
    """The control: Python's own reader falls for every one."""
    files = []
    for family, (make, _) in FAMILIES.items():
        folder = tmp_path / family.replace(" ", "_")
        folder.mkdir()
        (folder / "evil.pkl").write_bytes(make(folder / "canary"))
        files.append(folder / "evil.pkl")
    env = {k: v for k, v in os.environ.items() if k != "TORCH_FORCE_WEIGHTS_ONLY_LOAD"}
    command = [sys.executable, "-W", "ignore", "-c", CONTROL, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    harmless = [f.parent.name for f in files if not (f.parent / "canary").exists()]
    assert harmless == [], done.stdout + done.stderr


def evil(mark: Path) -> bytes:
    return pickle.dumps(Call(os.system, f"touch {mark}"), 2)


def swapped(mark: Path) -> bytes:
    """A harmless archive that Python's zipfile finds behind one that counts from the start."""
    bad, good = torch_zip(evil(mark)), torch_zip(b"\x80\x02}.")
    return bad + good


def two_pickles(mark: Path, second: str) -> bytes:
    parts = [("a/data.pkl", b"\x80\x02}."), ("a/version", b"3"), ("a/data.pkX", evil(mark))]
    return zip_of(*parts).replace(b"data.pkX", second.encode())


ARCHIVES: dict[str, Callable[[Path], bytes]] = {
    "two archives": swapped,
    "appended": lambda m: torch_zip(b"\x80\x02}.") + evil(m),
    "second pickle": lambda m: two_pickles(m, "data.pkl"),
    "second pickle in capitals": lambda m: two_pickles(m, "DATA.PKL"),
    "second folder": lambda m: zip_of(("b/data.pkl", evil(m)), ("a/data.pkl", b"\x80\x02}.")),
    "upwards": lambda m: zip_of(("a/data.pkl", b"\x80\x02}."), ("a/../../canary", b"")),
    "absolute": lambda m: zip_of(("a/data.pkl", b"\x80\x02}."), (str(m), b"")),
    "windows": lambda m: zip_of(("a/data.pkl", b"\x80\x02}."), ("a\\..\\..\\canary", b"")),
    "drive": lambda m: zip_of(("a/data.pkl", b"\x80\x02}."), ("C:/canary", b"")),
    "TorchScript": lambda m: zip_of(("a/data.pkl", evil(m)), ("a/constants.pkl", evil(m))),
    "a pickle in an array": lambda m: npz_bytes(
        a=np.array([Call(os.system, f"touch {m}")], dtype=object)
    ),
    "npz with a pickle beside": lambda m: zip_of(("a.npy", evil(m)), ("b.npy", evil(m))),
    "a pickle in a safetensors header": lambda m: header(b'{"a":' + evil(m) + b"}"),
    "a name upwards": lambda m: GOOD["safetensors"]({f"../../{m.name}": torch.ones(1)}),
    "an absolute name": lambda m: GOOD["torch checkpoint"]({str(m): torch.ones(1)}),
    "text": lambda m: f"import os\nos.system('touch {m}')\n".encode(),
    "a picture and a pickle": lambda m: b"\x89PNG\r\n\x1a\n" + evil(m),
    "a whole module": lambda m: torch_bytes(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_malicious_archive_is_refused(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "canary", tmp_path / "model.pt"
    path.write_bytes(ARCHIVES[name](mark))
    with pytest.raises((SafetyError, WeightsError)) as told:
        read(path)
    assert str(told.value).isprintable() and "weights_only" not in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert [p.name for p in tmp_path.parent.iterdir() if p.name == "canary"] == []


def test_no_answer_but_a_refusal_is_given_for_a_pickle_that_breaks_off_after_its_attack(
    tmp_path: Path,
) -> None:
    mark, path = tmp_path / "canary", tmp_path / "model.pt"
    for layout in ("zip", "legacy", "pickle"):
        path.write_bytes(LAYOUTS[layout](evil(mark)[:-1]))
        with pytest.raises(SafetyError, match=r"posix\.system"):
            read(path)
    assert not mark.exists()


def test_many_names_are_told_shortly(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    names = b"".join(b"cevil%d\n%s\n" % (i, b"x" * 5000) for i in range(100))
    path.write_bytes(torch_zip(b"\x80\x02](" + names + b"e."))
    with pytest.raises(SafetyError, match="and 17 more") as told:
        read(path)
    assert len(str(told.value)) < 800


def test_names_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_zip(b"\x80\x02cevil\x1b[2J\rxfer: ok\nname\n."))
    with pytest.raises(SafetyError) as told:
        read(path)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("kind", ["torch checkpoint", "torch legacy pickle"])
def test_torch_itself_is_never_asked_about_a_refused_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The guard does not rest on torch's: a torch whose own is broken is not reached."""
    reached = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: reached.append(1) or state())
    mark, path = tmp_path / "canary", tmp_path / "model.pt"
    path.write_bytes(LAYOUTS["zip" if kind == "torch checkpoint" else "legacy"](evil(mark)))
    assert kind_of(path) == kind
    with pytest.raises(SafetyError):
        read(path)
    assert reached == []
    path.write_bytes(GOOD[kind](state()))
    assert set(read(path).state) == set(state()) and reached == [1]


def test_a_torch_zip_is_judged_by_the_pickle_that_torch_reads(tmp_path: Path) -> None:
    """Members in any order, as long as there is one of each name."""
    data = torch_bytes(state())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        whole = {n: archive.read(n) for n in names}
    path = tmp_path / "model.pt"
    path.write_bytes(zip_of(*((n, whole[n]) for n in reversed(names))))
    assert set(read(path).state) == set(state())


def test_numpy_values_in_a_pickle_lead_to_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(2, np.float32)}
    mixed, bare = tmp_path / "a.pt", tmp_path / "b.pkl"
    torch.save({"state_dict": {"a": torch.ones(2)}, "best": np.float64(0.5)}, mixed)
    bare.write_bytes(pickle.dumps(arrays, 2))
    with pytest.raises(SafetyError, match=r"E620.*without numpy's values"):
        read(mixed)
    with pytest.raises(SafetyError, match="E620") as told:
        read(bare)
    (typed,) = re.findall(r"type (numpy\.savez\(.*?\))", told.value.fix)
    eval(typed, {"numpy": np, "arrays": arrays})
    shapes = {n: tuple(t.shape) for n, t in read(Path("weights.npz")).state.items()}
    assert shapes == {n: a.shape for n, a in arrays.items()}


def test_a_yolo_pickle_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "yolov8n.pt"
    path.write_bytes(torch_zip(b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n)\x81."))
    with pytest.raises(SafetyError, match=r"E620.*ultralytics.*YOLO network.*type source=hub"):
        read(path)


def test_a_function_of_numpys_that_runs_code_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02cnumpy.testing._private.utils\nrunstring\nX\x01\x00\x00\x00a}\x86R.")
    with pytest.raises(SafetyError, match=r"E620.*runstring") as told:
        read(path)
    assert "numpy.savez" not in told.value.fix
