"""``xfer pack``: a folder as shards that read as the folder does, whole after any kill."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, folders, picture

import xfer
from xfer.config.hydra import compose_specs
from xfer.config.verbs import override, shell, spelt_out
from xfer.core import locks
from xfer.core.errors import CombinationError, CommandError, DataError, OutputError, XferError
from xfer.core.types import Dataset
from xfer.data import ArrayFiles, Digits, Folder, Manifest, Shards
from xfer.data import pack as pack_module
from xfer.data.pack import pack
from xfer.data.unlabelled import in_source
from xfer.report.comparison.thumbnails import thumbnail

FULL = {f"{split}/{c}": 4 for split in ("train", "val", "test") for c in ("cat", "dog")}
MODEL = ["backbone=digits_resnet", "source=digits_0_4", "data.batch_size=8", "data.workers=0"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders(tmp_path / "in", FULL)


def facts(dataset: Dataset) -> dict[str, object]:
    return {k: (s.names, s.labels.tolist(), s.sha256) for k, s in dataset.splits.items()}


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(kind: type[XferError], number: int, root: Path, out: Path, match: str = "") -> str:
    with pytest.raises(kind, match=match) as caught:
        pack(Folder(str(root)), str(out), 1)
    assert caught.value.number == number and len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# The same data


def test_a_pack_reads_as_its_folder(root: Path, tmp_path: Path) -> None:
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    one, two = Folder(str(root)).dataset(True), Shards(str(out)).dataset(True)
    assert facts(one) == facts(two) and one.classes == two.classes == ("cat", "dog")
    assert facts(Folder(str(root)).dataset(False)) == facts(Shards(str(out)).dataset(False))
    with tarfile.open(out / "train" / "train-000000.tar") as tar:  # by another reader
        tar.extractall(tmp_path / "unpacked", filter="data")
    for path in (root / "train").rglob("*.jpg"):
        again = tmp_path / "unpacked" / path.relative_to(root / "train")
        assert again.read_bytes() == path.read_bytes()
        assert again.with_suffix(".cls").read_text() == str(int(path.parent.name == "dog"))


def test_splits_that_are_called_otherwise_are_packed_and_read_under_their_names(
    tmp_path: Path,
) -> None:
    splits = ("Training", "validation", "Testing")
    root = folders(tmp_path / "in", {f"{s}/{c}": 4 for s in splits for c in ("cat", "dog")})
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    one, two = Folder(str(root)).dataset(True), Shards(str(out)).dataset(True)
    assert facts(one) == facts(two) and {*one.splits} == {"train", "val", "test"}
    assert one.splits["val"].names[0] == "validation/cat/00.jpg"
    assert set(one.remarks) <= set(two.remarks)
    assert (out / "validation" / "validation-000000.tar").is_file()


ODD = [
    *("a.b-c/x.y.z.jpg", "a.b-c/x.jpg", "a.b-c/x.png", "a.b-c/50%.JPG", "a.b-c/%2E.png"),
    *("a.b-c/in.ner/deep/\u00e9\u4e2d.jpg", f"a.b-c/{'long' * 50}.jpg", "a.b-c/x%7Epng.png"),
    *("a/x.jpg", "a/-y z'\".jpg", "a/\udcff.jpg", "a/line\nbreak.jpg"),
    *("cafe\u0301/1.jpg", "cafe\u0301/2.jpg", "cafe\u0301/3.jpg"),
]


def test_odd_names_read_as_they_were(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i, name in enumerate(ODD):
        path = root / os.fsdecode(os.fsencode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("PNG" if name.lower().endswith("png") else "JPEG", i))
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    for spec in ({"val_fraction": 0.5}, {"split_seed": 7, "test_fraction": 0.2}):
        one = Folder(str(root), **spec).dataset(True)
        assert facts(one) == facts(Shards(str(out), **spec).dataset(True))
    grouped = {"folds": 2, "group": "FOLDER"}
    for folder in (root / c / "g" for c in ("a", "cafe\u0301")):
        folder.mkdir()
        (folder / "g.jpg").write_bytes(encoded("JPEG", len(str(folder))))
    out = pack(Folder(str(root)), str(tmp_path / "more"), 1)
    one, two = (
        kind.dataset(True) for kind in (Folder(str(root), **grouped), Shards(str(out), **grouped))
    )
    assert one.splits["train"].groups == two.splits["train"].groups
    assert one.splits["train"].folds.tolist() == two.splits["train"].folds.tolist()


def test_real_photographs_answer_the_same(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: training, cached features and predictions, on the split that is made."""
    monkeypatch.chdir(tmp_path)
    for label in ("dogs", "wolves"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for path in sorted((assets / "Canidae" / "train" / label).iterdir())[:20]:
            shutil.copy(path, tmp_path / "in" / label)
    packing = xfer.run(overrides=["stages=[pack]", "data.root=in", "pack.out=out", "pack.mb=1"])
    assert len(list(packing.folder.glob("*.tar"))) > 1
    left = []
    for words in (["data.root=in"], ["data=shards", "data.root=out"]):
        done = xfer.run(overrides=[*words, *MODEL, "stages=[fit,evaluate]"])
        plan = json.loads((done.folder / "plan.json").read_text())
        table = (done.folder / "predictions_val.csv").read_bytes()
        left.append((table, plan["classes"], [s["sha256"] for s in plan["splits"].values()]))
    assert left[0] == left[1] and b"wolves" in left[0][0]


def test_a_comparison_shows_the_images_of_shards(root: Path, tmp_path: Path) -> None:
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    shown = thumbnail(out, "val/cat/00.jpg")
    assert shown == thumbnail(root, "val/cat/00.jpg") != thumbnail(out, "val/cat/01.jpg") != ""
    assert thumbnail(out, "val/cat/99.jpg") == ""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.tar").symlink_to(out / "val" / "val-000000.tar")
    assert thumbnail(tmp_path / "links", "cat/00.jpg") == ""


@pytest.mark.parametrize("cats", ["train/cat", "cat"])
def test_shards_that_are_read_as_a_folder_have_a_remedy(tmp_path: Path, cats: str) -> None:
    folders(tmp_path / "in", {cats: 2, cats.replace("cat", "dog"): 2})
    out = pack(Folder(str(tmp_path / "in")), str(tmp_path / "out"), 1)
    with pytest.raises(DataError, match=r"E30[27].*Fix: type data=shards to read its "):
        Folder(str(out)).dataset(True)


def test_shards_that_were_not_copied_with_their_pack_json_are_named(tmp_path: Path) -> None:
    folders(tmp_path / "in", {"cat": 2, "dog": 2})
    out = pack(Folder(str(tmp_path / "in")), str(tmp_path / "out"), 1)
    for path in out.rglob("images-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"E302.*Fix: type data=shards to read its pack.json files"):
        Folder(str(out)).dataset(True)
    assert "data=shards" in spelt_out(["train", str(out)])
    for read in (Shards(str(out)).dataset, lambda _: in_source(out)):
        with pytest.raises(DataError, match=r"E383: .*'images-000000.tar', and it is not there"):
            read(True)


# The shards


def test_equal_folders_make_equal_bytes_of_at_most_the_size(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(20):
            data = encoded("BMP", i, "RGB")  # 18 kB
            (root / label / f"{i}.bmp").write_bytes(data + bytes(10_000 * i))
    (root / "a" / "huge.bmp").write_bytes(encoded("BMP", 99) + bytes(1_500_000))
    one = pack(Folder(str(root)), str(tmp_path / "one"), 1)
    for path in root.rglob("*.bmp"):
        os.utime(path, (5, 5))
        path.chmod(0o600)
    assert content(one) == content(pack(Folder(str(root)), str(tmp_path / "two"), 1))
    sizes = sorted(path.stat().st_size for path in one.glob("*.tar"))
    assert len(sizes) == 7 and sizes[-2] <= 1_000_000 < 1_500_000 < sizes[-1]
    for path in one.glob("*.tar"):
        subprocess.run(["tar", "-tf", path], check=True, capture_output=True)  # GNU tar, no remark


def test_a_kill_at_any_moment_leaves_what_the_same_command_finishes(
    root: Path, tmp_path: Path
) -> None:
    expected = content(pack(Folder(str(root)), str(tmp_path / "whole"), 1))
    out, kills, refusals = tmp_path / "out", 0, 0
    for step in range(1, 100):
        shutil.rmtree(out, ignore_errors=True)
        if not killed_at(step, root, out):
            break
        kills += 1
        there = {name: data for name, data in content(out).items() if name.endswith(".tar")}
        assert there.items() <= expected.items(), "a shard that has its name is whole"
        if (out / "pack.json").is_file() and "true" not in (out / "pack.json").read_text():
            with pytest.raises(DataError, match=r"E383|E377"):
                Shards(str(out)).dataset(True)
            refusals += 1
        stamps = {name: (out / name).stat().st_mtime_ns for name in there if indexed(out / name)}
        assert content(pack(Folder(str(root)), str(out), 1)) == expected
        assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    assert refusals >= 12
    assert kills == 18, "two a file, for three shards, their indexes and three other files"


def indexed(shard: Path) -> bool:
    return shard.with_suffix(".index.json").is_file()


def killed_at(step: int, root: Path, out: Path) -> bool:
    """Whether a process of its own was killed at the so-manieth fsync of its pack."""
    child = os.fork()
    if not child:
        calls = iter(range(1, step))
        sync = os.fsync

        def fsync(handle: int) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)

        os.fsync = fsync  # type: ignore[assignment]
        try:
            pack(Folder(str(root)), str(out), 1)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_pack_waits_for_another_of_the_same_and_removes_nothing_of_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (began, begins), (goes_on, go_on), fill = os.pipe(), os.pipe(), pack_module._fill

    def paused(part: Path, *given: object) -> object:
        facts = fill(part, *given)  # type: ignore[arg-type]
        os.write(begins, b"1")
        os.read(goes_on, 1)
        return facts

    child = os.fork()
    if not child:
        try:
            pack_module._fill = paused  # type: ignore[assignment]
            pack(Folder(str(root)), str(tmp_path / "out"), 1)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(began, 1)
    monkeypatch.setattr(locks, "_PATIENCE", 0)
    monkeypatch.setattr(locks, "owner", lambda handle: os.write(go_on, b"123") and "another")
    pack(Folder(str(root)), str(tmp_path / "out"), 1)
    os.write(go_on, b"123")
    assert os.waitpid(child, 0)[1] == 0


def test_what_was_damaged_or_replaced_is_written_again(root: Path, tmp_path: Path) -> None:
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    expected = content(out)
    shard = out / "val" / "val-000000.tar"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    shard.with_name("val-000000.index.json").write_text("{}")
    (out / "train" / "train-000000.tar").unlink()
    (out / "test" / ".test-000000.tar.abc.part").touch()  # of a kill
    assert content(pack(Folder(str(root)), str(out), 1)) == expected
    path = root / "val" / "cat" / "00.jpg"
    size = path.stat().st_size
    path.write_bytes(b"\1" * size)  # another picture of the same size
    pack(Folder(str(root)), str(out), 1)
    assert b"\1" * size in content(out)["val/val-000000.tar"]


# What is refused


def test_out_must_be_new_or_of_the_same_pack(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(CommandError, 79, root, out, "holds something else, 'notes.txt'")
    (out / "pack.json").write_text("{}")
    refused(CommandError, 79, root, out, "is not what xfer pack writes")
    assert (out / "notes.txt").read_text() == "mine"
    refused(CommandError, 79, root, out / "notes.txt", "is no folder")
    refused(CommandError, 80, root, root / "shards", "lie in each other")
    refused(CommandError, 80, root, tmp_path, "lie in each other")
    out = pack(Folder(str(root)), str(tmp_path / "new"), 1)
    (out / "val" / "notes.txt").touch()
    refused(CommandError, 79, root, out, "'val/notes.txt'")
    (out / "val" / "notes.txt").unlink()
    before = content(out)
    picture(5).save(root / "val" / "cat" / "more.jpg")
    refused(CommandError, 81, root, out, "a pack of other images")
    assert content(out) == before


def test_images_that_cannot_be_packed_are_named(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "val" / "cat" / "pipe.jpg")
    refused(DataError, 384, root, tmp_path / "out", r"pipe\.jpg: cannot be packed \(it is not a")
    (root / "val" / "cat" / "pipe.jpg").unlink()
    for split in ("train", "val", "test"):
        (root / split / "cat").rename(root / split / "c\nt")
    refused(DataError, 384, root, tmp_path / "new", "cannot be a line of classes.txt")
    with pytest.raises(CombinationError, match="E049"):
        pack(Digits(digits=(0, 1)), str(tmp_path / "new"), 1)
    with pytest.raises(DataError, match="E301"):
        pack(Folder(str(tmp_path / "nowhere")), str(tmp_path / "new"), 1)


def write_list(path: Path, names: dict[str, str]) -> Path:
    """A CSV file of images and their groups; the class is the name of the folder."""
    lines = [f"{name},{Path(name).parent.name},{group}" for name, group in names.items()]
    path.write_text("\n".join(["path,label,film", *lines]) + "\n")
    return path


def test_a_list_is_packed_under_the_names_that_it_has(root: Path, tmp_path: Path) -> None:
    names = [f"train/{c}/0{i}.jpg" for c in ("cat", "dog") for i in range(4)]
    path = write_list(root / "list.csv", dict.fromkeys(names, "x"))
    command = spelt_out(["pack", str(path), str(tmp_path / "out")])
    columns = "data.columns=[path,label]"
    xfer.run(None, [*command, columns])
    given = Manifest(file=str(path), columns=("path", "label")).dataset(True)
    assert facts(given) == facts(Shards(str(tmp_path / "out")).dataset(True))
    # What shards cannot hold is refused, and what is said to be typed works.
    far = write_list(root / "val/far.csv", {str(root / name): "x" for name in names})
    with pytest.raises(
        DataError, match=r"E384: .*lies outside of .*let paths be absolute"
    ) as error:
        pack(Manifest(file=str(far), columns=("path", "label")), str(tmp_path / "far"), 1)
    typed = error.value.fix.rpartition("data.root=")[2]
    far = Manifest(file=str(far), root=typed, columns=("path", "label"))
    out = pack(far, str(tmp_path / "far"), 1)
    assert len(Shards(str(out)).dataset(True).splits["train"]) == 6


@pytest.mark.parametrize("several", [False, True])
def test_groups_by_a_column_are_those_of_the_shards(
    root: Path, tmp_path: Path, several: bool
) -> None:
    names = {f"train/{c}/0{i}.jpg": f"film {i // 2}" for c in ("cat", "dog") for i in range(4)}
    how: dict[str, Any] = {"columns": ("path", "label"), "group": "film"}
    given = Manifest(file=str(write_list(root / "list.csv", names)), **how)
    out, read = tmp_path / "out", "labelled" if several else "dataset"
    pack(given, str(out), 1, several)
    before = content(out)
    index = out / "images-000000.index.json"
    held = json.loads(index.read_text())
    # What does not say all groups is written again.
    index.write_text(json.dumps(held | {"groups": held["groups"][::-1]}))
    pack(given, str(out), 1, several)
    assert content(out) == before
    for more in ({"val_fraction": 0.5}, {"folds": 2, "repeats": 2}):
        found = [
            getattr(source, read)(True).splits
            for source in (replace(given, **more), Shards(str(out), group="film", **more))
        ]
        for split in found[0].keys() | found[1].keys():
            one, two = (each[split] for each in found)
            assert (one.names, one.groups, one.sha256) == (two.names, two.groups, two.sha256)
            assert len(set(one.groups)) in (1, 2) and np.array_equal(one.folds, two.folds)
    with pytest.raises(DataError, match=r"E392: .*groups by 'films': it has 'film'") as error:
        getattr(Shards(str(out), group="films"), read)(True)
    typed = error.value.fix.rpartition("data.group=")[2]
    assert getattr(Shards(str(out), group=typed, folds=2), read)(True).splits["train"].groups
    plain = pack(replace(given, group=None), str(tmp_path / "plain"), 1, several)
    with pytest.raises(DataError, match=r"E392: .*Fix: type xfer pack .* data\.group=film;"):
        getattr(Shards(str(plain), group="film"), read)(True)


def test_a_column_that_is_called_as_folders_are_is_not_packed(root: Path, tmp_path: Path) -> None:
    path = write_list(root / "list.csv", {"train/cat/00.jpg": "x", "train/dog/00.jpg": "y"})
    path.write_text(path.read_text().replace("film", "FOLDER"))
    with pytest.raises(CombinationError, match=r"E049: data\.group: is the column 'FOLDER'"):
        pack(Manifest(file=str(path), group="FOLDER"), str(tmp_path / "out"), 1)


def test_arrays_are_trained_on_as_they_are(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    pixels[:, 0, 0, 0] = range(4)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array(["a", "b"] * 2))
    with pytest.raises(CombinationError, match="E049: data: is arrays") as error:
        pack(ArrayFiles(root=str(tmp_path / "a.npz")), str(tmp_path / "out"), 1)
    typed = shlex.split(error.value.fix.partition("python -m xfer ")[2])
    specs = compose_specs([*typed, "stages=[]", "data.leakage=ignore"])
    assert specs.data is not None and len(specs.data.dataset(True).classes) == 2


def test_a_full_disk_is_one_sentence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(OutputError, 900, root, tmp_path / "file" / "out", "what is finished stays")


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda out: (out / name).write_text(change((out / name).read_text()))


SHARD = "val/val-000000"
TAMPERED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "an offset": (
        edit(f"{SHARD}.index.json", lambda t: t.replace(",512,", ",9,")),
        383,
        "describe",
    ),
    "no index": (edit(f"{SHARD}.index.json", lambda t: "[]"), 383, "is not what xfer pack writes"),
    "no pack": (edit("pack.json", lambda t: "5"), 383, "is not what xfer pack writes"),
    "unfinished": (edit("pack.json", lambda t: t.replace("true", "false")), 383, "not ended"),
    "a shard gone": (lambda out: (out / f"{SHARD}.tar").unlink(), 377, "val: holds no tar files"),
    "a shard more": (
        lambda out: shutil.copy(out / f"{SHARD}.tar", out / "val" / "more.tar"),
        383,
        "does not name the shard 'val/more.tar'",
    ),
    "a shard renamed": (
        lambda out: (out / f"{SHARD}.tar").rename(out / "val" / "z.tar"),
        383,
        "names the shard 'val/val-000000.tar', and it is not there",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_shards_that_are_not_what_was_packed_are_refused(
    root: Path, tmp_path: Path, case: str
) -> None:
    tamper, number, match = TAMPERED[case]
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    tamper(out)
    with pytest.raises(DataError, match=match) as caught:
        Shards(str(out)).dataset(True)
    assert caught.value.number == number and len(str(caught.value).splitlines()) == 1


def test_a_flipped_bit_in_an_image_is_named(root: Path, tmp_path: Path) -> None:
    out = pack(Folder(str(root)), str(tmp_path / "out"), 1)
    Shards(str(out)).dataset(True)
    shard = out / f"{SHARD}.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd9") - 20] ^= 1  # still an image
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"E310: .*cat/00\.jpg.*not those that were packed"):
        Shards(str(out)).dataset(True)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["stages=[pack,fit]", "pack.out=out"], 47),
        (["pack.out=out"], 47),
        (["pack.mb=5"], 47),
        (["stages=[pack]"], 48),
        (["stages=[pack]", "pack.out=out", "pack.mb=0"], 202),
        (["stages=[pack]", "pack.out='~nobody-of-this-name'"], 299),
    ],
)
def test_keys_of_the_stage_are_checked(root: Path, words: list[str], number: int) -> None:
    with pytest.raises(XferError) as caught:
        xfer.run(overrides=[f"data.root={root}", *words])
    assert caught.value.number == number, caught.value


def test_the_command_packs_and_says_what_to_type_next(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "my out"
    command = [sys.executable, "-m", "xfer", "pack", "in", out.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *_, last = (done.stdout + done.stderr).splitlines()
    spelt = ["stages=[pack]", "data.root=in", "pack.out='my out'"]
    assert first == f"$ {shell(spelt)}"
    assert last == f"to train on them: {shell(['data=shards', override('data.root', str(out))])}"
    assert not (tmp_path / "outputs").exists()
