"""Tar files in place of folders: the same images, names and splits, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, folders

from xfer.core.errors import DataError
from xfer.core.types import Dataset
from xfer.data import Folder, Shards
from xfer.data.shards import key_of, name_of

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(labels: str, suffix: str = "cls", start: int = 0) -> Members:
    """An image and its label, in turn, as WebDataset's ShardWriter puts them."""
    members: Members = []
    for i, label in enumerate(labels, start):
        text = json.dumps({"label": label}) if suffix == "json" else label
        members += [(f"{i:06d}.jpg", encoded("JPEG", i)), (f"{i:06d}.{suffix}", text.encode())]
    return members


def packed_by_hand(root: Path, out: Path) -> Path:
    """The images of a folder of splits in one tar file a split, in the order of their names."""
    for split in sorted(root.iterdir()):
        members: Members = []
        for path in sorted(split.rglob("*.jpg")):
            key = path.relative_to(split).with_suffix("").as_posix()
            members += [(f"{key}.jpg", path.read_bytes()), (f"{key}.cls", key[:1].encode())]
        write_tar(out / split.name / "000000.tar", members)
    return out


def split_facts(dataset: Dataset) -> dict[str, object]:
    return {k: (s.names, s.labels.tolist(), s.sha256) for k, s in dataset.splits.items()}


def refused(root: Path, number: int, match: str = "") -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        Shards(str(root)).dataset(training=True)
    assert caught.value.number == number, caught.value
    assert len(str(caught.value).splitlines()) == 1 and caught.value.exit == 3
    return caught.value


# What is read


def test_shards_have_the_names_labels_and_pixels_of_the_folder(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", {f"{s}/{c}": 3 for s in ("train", "val") for c in "ab"})
    out = packed_by_hand(root, tmp_path / "out")
    one, two = Folder(str(root)).dataset(True), Shards(str(out)).dataset(True)
    assert split_facts(one) == split_facts(two) and one.classes == two.classes
    for split, images in ((s, d.images) for s, d in two.splits.items()):
        for i in reversed(range(len(images))):
            assert np.array_equal(images[i], one.splits[split].images[i])
    again = Shards(str(out)).dataset(True)  # from the cache
    assert split_facts(again) == split_facts(two)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_plain_tars_of_every_format_are_split_as_folders_are(
    tmp_path: Path, form: int, suffix: str
) -> None:
    write_tar(tmp_path / "a.tar", samples("01" * 5, suffix), form)
    write_tar(tmp_path / "b.tar", samples("10" * 5, suffix, 10), form)
    found = Shards(str(tmp_path), split_seed=3).dataset(True)
    assert found.classes == ("0", "1") and len(found.splits["val"]) == 4
    assert found.splits["train"].names[0].endswith(".jpg")
    assert Shards(str(tmp_path), split_seed=3).dataset(False).splits["val"].names == (
        found.splits["val"].names
    )


def test_a_label_is_a_position_in_classes_txt_or_a_name_of_it(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("z\u00e9bre\r\ncat\r\n".encode())
    write_tar(tmp_path / "x.tar", samples("0101"))
    cat = [("n.png", encoded("PNG", 9)), ("n.json", b'{"label": 1, "more": [2]}')]
    named = [("m.JPG", encoded("JPEG", 8)), ("m.cls", b"cat\n")]
    write_tar(tmp_path / "y.tar", cat + named)
    found = Shards(str(tmp_path), val_fraction=0.4).dataset(True)
    assert found.classes == ("cat", "z\u00e9bre")
    by_name = {
        name: found.classes[label]
        for s in found.splits.values()
        for name, label in zip(s.names, s.labels.tolist(), strict=True)
    }
    assert by_name["000000.jpg"] == "z\u00e9bre" and by_name["n.png"] == by_name["m.JPG"] == "cat"


def test_what_gnu_tar_writes_is_read_and_the_rest_is_left_out_with_a_remark(tmp_path: Path) -> None:
    for name, data in [*samples("abab"), ("000000.txt", b"caption"), (".hidden.jpg", b"")]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "out").mkdir()
    command = ["tar", "-cf", str(tmp_path / "out" / "x.tar"), "-C", str(tmp_path / "in"), "."]
    subprocess.run(command, check=True)
    found = Shards(str(tmp_path / "out"), val_fraction=0.5).dataset(True)
    assert {n for s in found.splits.values() for n in s.names} == {
        f"00000{i}.jpg" for i in range(4)
    }
    assert "left out (neither an image nor a label): 'x.tar/000000.txt'" in found.remarks
    assert "left out (hidden): 'x.tar/.hidden.jpg'" in found.remarks


@given(
    st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(lambda t: t[0] != "."),
    st.sampled_from(["jpg", "JPG", "png"]),
    st.booleans(),
    st.sampled_from(["", "train", "val"]),
)
def test_a_key_is_a_name_without_dots_and_back(
    stem: str, suffix: str, shared: bool, split: str
) -> None:
    name = f"cat.s/{stem}.{suffix}"
    key = key_of(name, shared)
    assert "." not in key.rpartition("/")[2]
    assert name_of(split, key, suffix) == f"{split}/{name}".removeprefix("/")
    assert key_of(name, True) != key_of(name, False)


def test_a_shard_that_is_replaced_during_a_run_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples("abab"))
    images = Shards(str(tmp_path), val_fraction=0.5).dataset(True).splits["train"].images
    images[0]
    os.utime(path, (1, 1))
    images[0]  # touched, and the same bytes
    data = path.read_bytes()
    at = data.index(b"\xff\xd9") - 40
    path.write_bytes(data[:at] + bytes(b ^ 1 for b in data[at : at + 4]) + data[at + 4 :])
    with pytest.raises(DataError, match=r"E373: .*x\.tar/.* has changed since it was scanned"):
        [images[i] for i in range(len(images))]


def test_a_shard_that_is_cut_off_during_a_run_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples("abab"))
    images = Shards(str(tmp_path), val_fraction=0.5).dataset(True).splits["train"].images
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"E310: .*x\.tar/.* \(its file ends before it does\)"):
        [images[i] for i in range(len(images))]


def test_a_broken_image_in_a_shard_is_named_or_skipped(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [*samples("ababab"), ("bad.jpg", b"no image"), ("bad.cls", b"a")])
    refused(tmp_path, 310, r"x\.tar/bad\.jpg: cannot be read as an image \(it is not an image\)")
    found = Shards(str(tmp_path), on_bad="skip", val_fraction=0.5).dataset(True)
    assert any("skipped 1 broken file ('bad.jpg'" in line for line in found.remarks)


# What is refused


def with_member(change: Callable[[tarfile.TarInfo], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_tar(path, samples("abab"))
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("odd.jpg")
            change(info)
            tar.addfile(info, io.BytesIO(b"\0" * info.size))

    return write


def kind(of: bytes) -> Callable[[Path], None]:
    return with_member(lambda info: setattr(info, "type", of))


def called(name: str) -> Callable[[Path], None]:
    return with_member(lambda info: setattr(info, "name", name))


def members(*more: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda path: write_tar(path, [*samples("abab"), *more])


def written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def cut(count: int) -> Callable[[Path], None]:
    """Without the zeros at the end, and without so many blocks before them."""

    def write(path: Path) -> None:
        data = write_tar(path, samples("abab")).read_bytes()
        blocks = -(-len(data.rstrip(b"\0")) // 512) - count
        path.write_bytes(data[: blocks * 512])

    return write


def edited(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = bytearray(write_tar(path, samples("abab")).read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def scribbled(data: bytearray) -> None:
    at = data.index(b"000002.jpg")
    data[at : at + 4] = b"junk"


def sized(size: bytes) -> Callable[[bytearray], object]:
    """The second header says another size, with its checksum right."""

    def change(data: bytearray) -> None:
        at = data.index(b"000000.cls")
        data[at + 124 : at + 136] = size
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])

    return change


def sparse(path: Path) -> None:
    (path.parent / "in").mkdir()
    with (path.parent / "in" / "a.jpg").open("wb") as stream:
        stream.truncate(1 << 20)
    subprocess.run(["tar", "-cSf", path, "-C", path.parent / "in", "a.jpg"], check=True)


HOSTILE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a link": (kind(tarfile.SYMTYPE), 380, "'odd.jpg' is refused: a link"),
    "a hard link": (kind(tarfile.LNKTYPE), 380, "a link"),
    "a device": (kind(tarfile.CHRTYPE), 380, "a device or a pipe"),
    "a pipe": (kind(tarfile.FIFOTYPE), 380, "a device or a pipe"),
    "a name that leads out": (called("../odd.jpg"), 380, "leads out of its folder"),
    "an absolute name": (called("/odd.jpg"), 380, "leads out of its folder"),
    "one name twice": (members(("000001.jpg", b"")), 380, "two members '000001.jpg'"),
    "a sparse member": (sparse, 380, "'a.jpg' is refused: a sparse file"),
    "an image without a label": (members(("x.jpg", b"")), 381, "'x.jpg' has no label"),
    "a label without an image": (members(("x.cls", b"a")), 381, "'x.cls' has no image"),
    "a key with two images": (members(("000001.png", b"")), 381, "has two images"),
    "an empty label": (members(("x.jpg", b""), ("x.cls", b"\n")), 381, "'x.cls' is no label"),
    "a label of two lines": (members(("x.jpg", b""), ("x.cls", b"a\nb")), 381, "no label"),
    "a label too long": (members(("x.jpg", b""), ("x.cls", b"a" * 99999)), 381, "longer"),
    "a json of no label": (members(("x.jpg", b""), ("x.json", b"{}")), 381, "'label' is neither"),
    "a json that is none": (members(("x.jpg", b""), ("x.json", b"{")), 381, "no label"),
    "a json too deep": (members(("x.jpg", b""), ("x.json", b"[" * 60000)), 381, "deep"),
    "cut in its images": (cut(4), 379, "unexpected end of data"),
    "cut after its last byte": (cut(0), 379, "cut off at byte"),
    "a damaged header": (edited(scribbled), 379, "damaged"),
    "a header that leads back": (edited(sized(b"\xff" * 10 + b"\xfc\0")), 379, "lead backwards"),
    "a size of 8 GB": (edited(sized(b"77777777777\0")), 380, "more than"),
    "two tars in one": (edited(lambda d: d.extend(bytes(d))), 379, "second tar file begins"),
    "no tar at all": (written(b"x" * 5000), 379, "tar file"),
    "an empty file": (lambda p: p.touch(), 379, "empty file"),
    "a pipe in its place": (os.mkfifo, 379, "not a regular file"),
    "a folder in its place": (lambda p: p.mkdir(), 379, "tar file"),
    "gzip in its place": (
        lambda p: str(p.write_bytes(gzip.compress(b"x"))) and None,
        378,
        "gunzip",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tars_are_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    write, number, match = HOSTILE[case]
    write(tmp_path / "x.tar")
    error = refused(tmp_path, number, match)
    assert "x.tar" in str(error.where)


def test_a_header_takes_no_more_memory_than_a_header_needs(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    with (tmp_path / "x.tar").open("wb") as stream:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        stream.truncate(1 << 33)  # takes no disk
    refused(tmp_path, 379, "a header of more than 1048576 bytes")


def test_a_member_larger_than_an_image_may_be_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("bomb.jpg")
    info.size = (1 << 30) + 1
    with (tmp_path / "x.tar").open("wb") as stream:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        stream.truncate(1 << 31)
    refused(tmp_path, 380, "1073741825 bytes; more than 1073741824")


def test_a_compressed_tar_is_made_plain_by_what_the_error_says(tmp_path: Path) -> None:
    (tmp_path := tmp_path / "it's mine").mkdir()
    plain = write_tar(tmp_path / "x.tar", samples("abab"))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    command = refused(tmp_path, 378, r"x\.tar\.gz: is compressed").fix.removeprefix("type ")
    subprocess.run(command, shell=True, check=True)
    assert len(Shards(str(tmp_path), val_fraction=0.5).dataset(True).classes) == 2
    (tmp_path / "x.tar").write_bytes(gzip.compress(plain.read_bytes()))  # under the same name
    command = refused(tmp_path, 378, r"x\.tar: is compressed").fix.removeprefix("type ")
    subprocess.run(command, shell=True, check=True)
    assert len(Shards(str(tmp_path), val_fraction=0.5).dataset(True).classes) == 2


def test_folders_that_hold_no_shards_or_those_of_another_split_are_refused(tmp_path: Path) -> None:
    (tmp_path := tmp_path / "it's mine").mkdir()
    refused(tmp_path, 377, "holds no tar files")
    tar = write_tar(tmp_path / "validation" / "x.tar", samples("abab"))
    error = refused(tmp_path, 385, "did you mean 'val'")
    subprocess.run(error.fix.removeprefix("type "), shell=True, check=True)
    write_tar(tmp_path / "train" / "x.tar", samples("abab", start=4))
    assert set(Shards(str(tmp_path)).dataset(True).splits) == {"train", "val"}
    (tmp_path / "test").mkdir()
    refused(tmp_path, 377, "test: holds no tar files")
    tar = write_tar(tmp_path / "flat" / "in-train-0.tar", samples("ab"))
    tar.with_name("in-val-0.tar").write_bytes(tar.read_bytes())
    refused(tmp_path / "flat", 385, "several splits by their names, such as 'in-val-0.tar'")


def test_one_name_in_two_shards_and_a_class_that_val_alone_has_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "x.tar", samples("abab"))
    write_tar(tmp_path / "val" / "x.tar", samples("abc"))
    refused(tmp_path, 306, "val has the class 'c'")
    write_tar(tmp_path / "val" / "x.tar", samples("ab"))
    write_tar(tmp_path / "val" / "y.tar", samples("ab"))
    refused(tmp_path, 381, r"y\.tar: the image 'val/000000.jpg' is in .*x\.tar too")


@pytest.mark.parametrize(
    ("text", "match"),
    [(b"a\n", "the label '1'"), (b"a\n\nb\n", "empty line"), (b"a\na\n", "twice"), (b"", "empty")],
)
def test_classes_txt_is_held_to_the_labels(tmp_path: Path, text: bytes, match: str) -> None:
    write_tar(tmp_path / "x.tar", samples("0101"))
    (tmp_path / "classes.txt").write_bytes(text)
    refused(tmp_path, 382, re.escape(match))
