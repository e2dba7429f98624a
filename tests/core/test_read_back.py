"""What is read back from the disk may be anything: links, pipes, and facts that nobody wrote."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import io
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shipped import SHIPPED

import xfer
from xfer.core.errors import ResumeError, SafetyError, WeightsError, XferError
from xfer.core.log import close_log, open_log
from xfer.core.run_folder import is_live, lock
from xfer.core.run_status import recorded
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.data import Manifest, scan
from xfer.evaluation.onnx_predict import _classes, _recipe
from xfer.sweep.leaderboard.read_sweep import read
from xfer.sweep.ledger import Ledger
from xfer.sweep.objective import Objective, values
from xfer.sweep.space import Job
from xfer.training.features.extract import _stored
from xfer.training.oom import batch_sizes
from xfer.weights.formats.checkpoint_format import read_snapshot
from xfer.weights.source.match_rules import _listed


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """What waits for the other end of a pipe is ended, and fails."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("name", [".lock", "run.log", "export", "checkpoints/best.ckpt"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    if name == "export":
        outside.mkdir()
    else:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    with pytest.raises(SafetyError, match=r"E631: .*leads out of the folder"), recorded(run, True):
        pass
    assert outside.is_dir() or outside.read_text() == "mine"


def test_lock_and_log_follow_no_link_at_all(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    for name in (".lock", "run.log"):
        (tmp_path / name).symlink_to(tmp_path / "plan.json")
    with pytest.raises(OSError, match="link"):
        lock(tmp_path)
    with pytest.raises(SafetyError, match="E633"):
        is_live(tmp_path)
    with pytest.raises(OSError, match="link"):
        open_log(tmp_path)
    close_log()
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_a_job_whose_folder_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    (home / "letter").write_text("mine")
    (sweep := tmp_path / "sweep").mkdir()
    (sweep / "0").symlink_to(home)
    with pytest.raises(SafetyError, match="E631"):
        Ledger(sweep).prepare(Job(0, (), {}))
    assert [p.name for p in home.iterdir()] == ["letter"]


def test_a_job_that_holds_a_link_to_a_folder_loses_the_link_alone(tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    (home / "letter").write_text("mine")
    (job := tmp_path / "sweep" / "0").mkdir(parents=True)
    (job / "export").symlink_to(home)
    Ledger(tmp_path / "sweep").prepare(Job(0, (), {}))
    assert (home / "letter").exists() and not (job / "export").is_symlink()


@pytest.mark.parametrize("name", [".lock", "run.log", "a"])
def test_a_pipe_in_a_run_folder_is_told(tmp_path: Path, name: str) -> None:
    pipe(tmp_path / name)
    with pytest.raises(SafetyError, match=r"E632: .*pipe"), recorded(tmp_path, True):
        pass


@pytest.mark.parametrize("name", ["plan.json", "status.json", ".lock"])
def test_a_run_whose_facts_are_a_pipe_is_not_gone_on_with(tmp_path: Path, name: str) -> None:
    from xfer.plan.resume import choose, fingerprint

    config = {"stages": ["fit"]}
    facts = {"fingerprint": fingerprint(config), "config": config}
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    pipe(tmp_path / name)
    with pytest.raises((ResumeError, SafetyError)):
        choose(str(tmp_path), config, tmp_path)


def test_no_other_file_is_waited_for(tmp_path: Path) -> None:
    odd = pipe(tmp_path / "odd")
    for ask in (
        lambda: _classes(odd, str(odd), {}),
        lambda: _recipe(odd, str(odd), {}),
        lambda: _listed(odd),
        lambda: Manifest(str(odd)).dataset(True),
        lambda: load_tensors(odd),
        lambda: batch_sizes(pipe(tmp_path / "memory.json").parent),
        lambda: read(pipe(tmp_path / "s" / "sweep.json").parent),
    ):
        with pytest.raises(XferError) as error:
            ask()
        assert "\n" not in str(error.value)
    for name in ("result.json", "metrics.csv", "benchmark.json"):
        pipe(tmp_path / name)
    assert values(tmp_path, [Objective("val_acc", "maximize")]) is None
    for name in ("job.json", "status.json", "plan.json", "output.log"):
        pipe(tmp_path / "l" / "0" / name)
    assert not list(Ledger(tmp_path / "l").jobs()) and Ledger(tmp_path / "l").state(0) == "missing"


JUNK = ["[]", "1", "{", "null", "[" * 3000, '{"version": 1, "files": 3}', '{"\\ud800": NaN}']


@pytest.mark.parametrize("text", [*JUNK, None])
def test_caches_are_made_again(tmp_path: Path, text: str | None, own_cache: Path) -> None:
    from pictures import picture

    (folder := tmp_path / "data").mkdir()
    picture(1).save(folder / "a.png")
    whole = scan.examine([folder / "a.png"], folder)
    (cache,) = (own_cache / "scan").iterdir()
    written = columns_of(cache)
    contents = [text.encode()] if text is not None else list(_odd_caches(cache))
    for content in contents:
        cache.write_bytes(content)
        assert scan.examine([folder / "a.png"], folder) == whole
        assert columns_of(cache) == written  # made again, as it was
        assert _stored(cache, {}) is None
    pipe(cache)
    assert scan.examine([folder / "a.png"], folder) == whole


def columns_of(cache: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(cache) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _odd_caches(cache: Path) -> Iterator[bytes]:
    """Archives that are cut off, damaged, packed, or of another form."""
    written = cache.read_bytes()
    yield from (written[:-1], written[: len(written) // 2])
    columns = columns_of(cache)
    at = written.index(columns["digests"])
    yield written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :]
    version, rows, _ = json.loads(columns["facts.json"])
    reaches = ([], 3, ["16-bit"], [0, 1, 2, 3], [0, "16-bit", 1, "2"], [7, "16-bit", 1, 2])
    odd = [[version, rows, [reach]] for reach in reaches]
    odd += [[version, n, []] for n in (-1, 2, 1 << 40, "1", None)] + [[version, rows], {}, 5]
    changed = [{"facts.json": json.dumps(facts).encode()} for facts in odd]
    changed += [{name: b""} for name in columns if name != "names"] + [
        {"sizes": columns["sizes"] * 2}
    ]
    for change in changed:
        yield _zipped({**columns, **change})
    yield _zipped({name: data for name, data in columns.items() if name != "keys"})
    yield _zipped(columns, zipfile.ZIP_DEFLATED)


def _zipped(columns: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, data in columns.items():
            archive.writestr(name, data)
    return stream.getvalue()


def card_with(tmp_path: Path, key: str, value: object) -> Path:
    content = copy.deepcopy(load_tensors(SHIPPED))
    node = content["xfer"]
    *parts, last = key.split(".")
    for part in parts:
        node = node[part]
    node[last] = value
    save_tensors(tmp_path / "a.ckpt", content)
    return tmp_path / "a.ckpt"


CARDS = {
    "card": [None, [], "a", 3],
    "format": ["2", 0, None, 2.5],
    "progress": [None, [], {"epoch": "a"}],
    "frozen": [3, []],
    "run": [3, []],
    "card.classes": ["abc", [], [1, 2], ["a", "a"], ["\ud800"], None, {"a": 1}, [["a"]]],
    "card.input": [None, [], {}],
    "card.input.size": [[60_000, 60_000], [0, 32], ["a", 1], 32, [32], [1.5, 2], [-1, 3]],
    "card.input.resize": ["a", 10**9, 0],
    "card.input.interpolation": ["odd", 3],
    "card.input.mean": [[1, 2], "abc", [float("nan")] * 3, [1e300] * 3],
    "card.input.std": [[0, 0, 0], [1, 1, -1], None],
    "card.input.range": [None, 3, "abc", [], [1], [1, 2, 3], [5, 5], [2, 1], ["a", 1], [0, 1e300]],
    "card.input.other": [1],
    "card.other": [1],
    "card.backbone": [None, {}, [], {"_target_": 3}],
    "card.backbone.name": ["no_such_network", 3, None, ["a"], {}],
    "card.backbone.args": [3, {"layers": "a"}, {"layers": None}, {"odd": 1}],
    "card.backbone.image_size": ["a", -3],
    "card.head": [None, {}, "a", {"_target_": []}],
    "card.head.p": ["a"],
    "card.source": [None, [], {"rows": 3}, {"classes": "a"}, {"classes": -1}, {"kept": 3}],
    "card.compat": [3, {"odd": 1}, {"same": 3}, {"batch_norm": [3]}, {"batch_norm": [{}]}],
    "card.adapters": [3, {"rank": "a"}, {"rank": 2}],
    "card.splits": [3, {"val": 3}],
}


@pytest.mark.parametrize("key", CARDS)
def test_a_card_that_xfer_never_wrote_is_one_line(tmp_path: Path, key: str) -> None:
    for value in CARDS[key]:
        with pytest.raises(XferError) as error:
            xfer.load(card_with(tmp_path, key, value))
        assert error.value.exit in (4, 6), (value, error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 900
        assert error.value.__class__ is not XferError


def test_a_range_of_pixels_is_read_back(tmp_path: Path) -> None:
    found = xfer.load(card_with(tmp_path, "card.input.range", [-1024, 3071.5])).card.input
    assert found.range == (-1024, 3071.5)
    text = json.dumps(found.to_plain())
    assert _recipe(tmp_path, None, {"preprocess": text}).range == (-1024, 3071.5)
    assert _recipe(tmp_path, None, {"preprocess": json.dumps(RECIPE)}).range is None
    (tmp_path / "a.json").write_text(json.dumps({**RECIPE, "range": [4095, 0]}))
    with pytest.raises(XferError, match=r"range is \[4095, 0\]: .*first number must be below"):
        _recipe(tmp_path, str(tmp_path / "a.json"), {})


@pytest.mark.parametrize("state", [None, 3, [], {"a": 1}, {1: torch.ones(1)}, {}])
def test_a_state_that_is_none_is_one_line(tmp_path: Path, state: object) -> None:
    content = load_tensors(SHIPPED)
    content["state_dict"] = state
    save_tensors(tmp_path / "a.ckpt", content)
    with pytest.raises(WeightsError):
        xfer.load(tmp_path / "a.ckpt")


RECIPE = read_snapshot(SHIPPED).card.input.to_plain()
RECIPES = [
    *("[]", "3", "{", "null", "[" * 3000, '{"size": NaN}', "{}"),
    *(
        json.dumps({**RECIPE, key: value})
        for key, value in [
            *(("size", [60_000, 60_000]), ("size", "a"), ("size", [1]), ("std", [0, 0, 0])),
            *(("mean", ["a"] * 3), ("interpolation", 3), ("resize", "a"), ("other", 1)),
            *(("range", [4095, 0]), ("range", [1]), ("range", "a")),
        ]
    ),
]


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(XferError) as said:
        _recipe(tmp_path, None, {"preprocess": text})
    with pytest.raises(XferError) as asked:
        _recipe(tmp_path, str(tmp_path / "a.json"), {})
    assert (said.value.exit, asked.value.exit) == (4, 2)
    assert "\n" not in f"{said.value}{asked.value}"


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', "[1, 2]", "[null]", '"abc"', "[", "[" * 3000, '["\\ud800"]', '[["a"]]', "[]"],
)
def test_class_names_that_are_none_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(XferError) as said:
        _classes(tmp_path, None, {"classes": text})
    with pytest.raises(XferError) as asked:
        _classes(tmp_path, str(tmp_path / "a.json"), {})
    assert (said.value.exit, asked.value.exit) == (4, 2)
    assert "\n" not in f"{said.value}{asked.value}"


def test_class_names_a_line_each_are_still_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat \n7\n\n[dog\n")
    with contextlib.suppress(XferError):
        assert _classes(tmp_path, str(tmp_path / "a.txt"), {}) == ("cat", "7", "[dog")


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{", "[" * 3000, '{"batch_size": 1}'),
        json.dumps(dict.fromkeys(("batch_size", "accumulate", "eval_batch_size", "asked"), "a")),
        json.dumps({"batch_size": 0, "accumulate": 1, "eval_batch_size": 1, "asked": {}}),
    ],
)
def test_memory_that_no_run_writes_is_exit_5(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    with pytest.raises(ResumeError, match="E527"):
        batch_sizes(tmp_path)


def test_help_waits_for_no_option_that_is_a_pipe(tmp_path: Path) -> None:
    from xfer.config.help import options

    pipe(tmp_path / "head" / "wide.yaml")
    (tmp_path / "head" / "deep.yaml").write_text("# @package _global_\n# A deep one.\nx: 1\n")
    assert options("head", [str(tmp_path)]) == {"deep": "A deep one.", "wide": "cannot be read"}


def test_an_exported_file_that_is_a_pipe_is_not_measured(tmp_path: Path) -> None:
    from xfer.export.benchmark import _files

    pipe(tmp_path / "model.pt2")
    with pytest.raises(XferError, match=r"E957: .*model\.pt2: is not a regular file"):
        _files([tmp_path])


@pytest.mark.parametrize("flags", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_the_lock_of_kept_features_is_a_plain_file(tmp_path: Path, flags: int) -> None:
    from xfer.training.features.feature_dir import EntryFiles, locked

    slot = EntryFiles(tmp_path, "a" * 64)
    pipe(slot.lock)
    with pytest.raises(XferError, match="not a regular file"), locked(slot, flags):
        pass
    slot.lock.unlink()
    slot.lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(XferError, match="symbolic link"), locked(slot, flags):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_journal_of_a_sweep_is_a_plain_file(tmp_path: Path) -> None:
    from xfer.sweep.study import open_storage

    with pytest.raises(OSError, match="not a regular file"):
        open_storage(str(pipe(tmp_path / "a.journal")))
    (tmp_path / "b.journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        open_storage(str(tmp_path / "b.journal"))
    open_storage(str(tmp_path / "c.journal"))
    assert not (tmp_path / "elsewhere").exists() and (tmp_path / "c.journal").is_file()
