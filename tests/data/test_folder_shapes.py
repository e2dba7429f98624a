"""Folders as people have them: each is read rightly, or refused in one line that names it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from pictures import picture

from xfer.config.hydra import compose_specs
from xfer.core.errors import DataError
from xfer.data import Folder, Manifest
from xfer.evaluation.predict import find

IMAGES = {f"{c}/{i}.jpg": "image" for c in ("cat", "dog") for i in range(4)}
SPLIT = {
    f"{s}/{c}/{i}.jpg": "image" for s in ("train", "val") for c in ("cat", "dog") for i in (0, 1)
}
# Entries, then the classes that are found, or what the refusal says.
SHAPES: dict[str, tuple[dict[str, str], tuple[str, ...] | str]] = {
    "class folders": (IMAGES, ("cat", "dog")),
    "split folders": (SPLIT, ("cat", "dog")),
    "images beside the class folders": ({**IMAGES, "x.jpg": "image"}, ("cat", "dog")),
    "images beside the split folders": ({**SPLIT, "x.jpg": "image"}, ("cat", "dog")),
    "a class of one empty file": ({**IMAGES, "ant/0.jpg": "text:"}, "'ant'"),
    "a class without images": ({**IMAGES, "ant/notes.txt": "text:x"}, "ant"),
    "an empty class": ({**IMAGES, "ant": "folder"}, "ant"),
    "an empty val": ({**{f"train/{n}": k for n, k in IMAGES.items()}, "val": "folder"}, "val"),
    "an empty train": ({**{f"val/{n}": k for n, k in IMAGES.items()}, "train": "folder"}, "train"),
    "a file for a root": ({"": "text:x"}, "root"),
    "nothing": ({"": "folder"}, "root"),
    "images alone": ({f"{i}.jpg": "image" for i in range(4)}, "class"),
    "one class": ({f"cat/{i}.jpg": "image" for i in range(4)}, "one class"),
    "a file named as a class": ({**IMAGES, "ant": "text:x"}, ("cat", "dog")),
    "a class in val only": ({**SPLIT, "val/ant/0.jpg": "image"}, "'ant'"),
    "a class in train only": ({**SPLIT, "train/ant/0.jpg": "image"}, "'ant'"),
    "classes that differ in case between splits": (
        {n.replace("val/cat", "val/Cat"): k for n, k in SPLIT.items()},
        "'Cat'",
    ),
    "classes that differ in case": (
        {**IMAGES, **{f"Cat/{i}.jpg": "image" for i in range(4)}},
        ("Cat", "cat", "dog"),
    ),
    "a name in two normal forms": (
        {
            **{f"caf\u00e9/{i}.jpg": "image" for i in range(4)},
            **{f"cafe\u0301/{i + 4}.jpg": "image" for i in range(4)},
            **{f"dog/{i}.jpg": "image" for i in range(4)},
        },
        ("caf\u00e9", "dog"),
    ),
    "another normal form in val": (
        {
            n.replace("cat", "cafe\u0301" if n[0] == "v" else "caf\u00e9"): k
            for n, k in SPLIT.items()
        },
        ("caf\u00e9", "dog"),
    ),
    "data sets in a folder": (
        {f"{d}/{n}": k for d in ("pets", "birds") for n, k in SPLIT.items()},
        "E371: ",
    ),
    "data sets of one split each": (
        {f"{d}/train/{n}": k for d in ("pets", "birds") for n, k in IMAGES.items()},
        "E371: ",
    ),
    "a class train among others": (
        {**IMAGES, "cat/train/0.jpg": "image", "cat/bus/0.jpg": "image"},
        ("cat", "dog"),
    ),
    "a test without classes": ({**SPLIT, "test/0.jpg": "image"}, ("cat", "dog")),
    "photographs of a telephone": (
        {**IMAGES, "ant/0.HEIC": "text:x", "ant/1.heic": "text:x"},
        "convert them, as with: magick mogrify -format png",
    ),
    "numbers": (
        {f"{c}/{i}.jpg": "image" for c in ("2", "10") for i in range(4)},
        ("10", "2"),
    ),
    "deep below the class": (
        {f"{c}/a/b/c/d/{i}.jpg": "image" for c in ("cat", "dog") for i in range(4)},
        ("cat", "dog"),
    ),
    "the longest name": (
        {f"{c * 255}/{i}.jpg": "image" for c in "ab" for i in range(4)},
        ("a" * 255, "b" * 255),
    ),
    "spaces, quotes and a dash": (
        {f"{c}/{i}.jpg": "image" for c in ("-rf *", "a 'b' \"c\"") for i in range(4)},
        ("-rf *", "a 'b' \"c\""),
    ),
    "checkpoints of notebooks": (
        {**IMAGES, ".ipynb_checkpoints/0.jpg": "image", "cat/.ipynb_checkpoints/0.jpg": "image"},
        ("cat", "dog"),
    ),
    "what a Mac leaves": (
        {**IMAGES, "__MACOSX/cat/._0.jpg": "text:x", "cat/._0.jpg": "text:x", ".DS_Store": "text:"},
        ("cat", "dog"),
    ),
    "what Windows leaves": (
        {**IMAGES, "cat/Thumbs.db": "text:x", "dog/desktop.ini": "text:x"},
        ("cat", "dog"),
    ),
    "a link to nothing": ({**IMAGES, "cat/x.jpg": "link:gone"}, "x.jpg"),
    "a link to itself": ({**IMAGES, "cat/x.jpg": "link:x.jpg"}, "x.jpg"),
    "a class that links to its parent": ({**IMAGES, "loop": "link:."}, ("cat", "dog")),
    "a pipe": ({**IMAGES, "cat/x.jpg": "pipe"}, "x.jpg"),
    "a text in a photograph's name": ({**IMAGES, "cat/x.jpg": "text:<html>"}, "x.jpg"),
    "a new line in a class": (
        {f"{c}/{i}.jpg": "image" for c in ("a\nb", "c") for i in range(4)},
        ("a\nb", "c"),
    ),
}


def build(root: Path, entries: dict[str, str]) -> None:
    for seed, (name, kind) in enumerate(entries.items()):
        path = root / name if name else root
        path.parent.mkdir(parents=True, exist_ok=True)
        what, _, text = kind.partition(":")
        if what == "image":
            picture(seed).save(path)
        elif what == "text":
            path.write_text(text)
        elif what == "folder":
            path.mkdir(parents=True)
        elif what == "link":
            path.symlink_to(text)
        else:
            os.mkfifo(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_is_read_or_refused(tmp_path: Path, shape: str):
    entries, expected = SHAPES[shape]
    root = tmp_path / "root"
    build(root, entries)
    if isinstance(expected, tuple):
        found = Folder(root=str(root), workers=0).dataset(True)
        assert found.classes == expected
        images = sum(kind == "image" for name, kind in entries.items() if "." not in name[:1])
        left_out = sum(
            "ipynb" in name or name in ("x.jpg", "test/0.jpg") for name in entries if name[0] != "."
        )
        assert sum(len(s) for s in found.splits.values()) == images - left_out
    else:
        with pytest.raises(DataError) as told:
            Folder(root=str(root), workers=0).dataset(True)
        assert expected in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_split_of_a_data_set_is_no_root_and_the_advice_works(tmp_path: Path, split: str):
    build(tmp_path / "it's a set", SPLIT)
    with pytest.raises(DataError, match=r"E372: .*is one split of a data set") as told:
        Folder(root=str(tmp_path / "it's a set" / split)).dataset(True)
    data = compose_specs(shlex.split(told.value.fix.removeprefix("type "))).data
    assert set(data.dataset(True).splits) == {"train", "val"}


def test_a_folder_of_data_sets_names_one_that_works(tmp_path: Path):
    build(tmp_path, {f"{d}/{n}": k for d in ("my pets", "birds") for n, k in SPLIT.items()})
    (tmp_path / "birds").rename(tmp_path / "our birds")
    with pytest.raises(DataError, match="E371") as told:
        Folder(root=str(tmp_path)).dataset(True)
    (typed,) = shlex.split(told.value.fix.removeprefix("did you mean ").removesuffix("?"))
    assert compose_specs([typed]).data.dataset(True).classes == ("cat", "dog")


def test_photographs_of_a_telephone_are_read_when_they_are_converted_as_told(tmp_path: Path):
    build(tmp_path / "a b", {**IMAGES, "ant/0.HEIC": "text:x", "ant/1.heic": "text:x"})
    with pytest.raises(DataError, match="E307") as told:
        Folder(root=str(tmp_path / "a b")).dataset(True)
    command = told.value.fix.removeprefix("convert them, as with: ")
    # What ImageMagick does with `-format png`: it writes a file beside each that it is given.
    (tmp_path / "magick").write_text('#!/bin/sh\nshift 3\nfor f; do cp "$PNG" "${f%.*}.png"; done')
    (tmp_path / "magick").chmod(0o700)
    picture(7).save(tmp_path / "x.png")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PNG": str(tmp_path / "x.png")}
    subprocess.run(command, shell=True, check=True, env=path)
    found = Folder(root=str(tmp_path / "a b"), leakage="ignore").dataset(True)
    assert found.classes == ("ant", "cat", "dog")


def test_an_unlabelled_test_split_is_told(tmp_path: Path):
    build(tmp_path, {**SPLIT, "test/0.jpg": "image"})
    remarks = Folder(root=str(tmp_path)).dataset(True).remarks
    assert any("without classes; give them to predict.input): 'test'" in line for line in remarks)
    assert find([str(tmp_path / "test")]).names == (str(tmp_path / "test" / "0.jpg"),)


@pytest.mark.parametrize("below", ["", "images"])
def test_images_beside_a_list_say_what_reads_it(tmp_path: Path, below: str) -> None:
    root = tmp_path / "of mine"
    (root / below).mkdir(parents=True)
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(8)]
    for i in range(8):
        picture(i).save(root / below / f"{i}.png")
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(DataError, match=r"E30[25]") as caught:
        Folder(str(root)).dataset(True)
    words = shlex.split(caught.value.fix.removeprefix("type ").removesuffix(" to read a list"))
    assert words[0] == "data=csv"
    file = words[1].removeprefix("data.file=").strip("'")
    assert len(Manifest(file, root=str(root / below)).dataset(True).classes) == 2


PUBLISHED = {f"Train_Data/{name}": kind for name, kind in IMAGES.items()}
BESIDE = {"Checkpoints/model.h5": "text:x", "notebooks/a.ipynb": "text:{}"}


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {f"Test_Data/{i}.jpg": "image" for i in range(3)},
        {f"Test_Data/{c}/{i}.jpg": "image" for c in ("Cat", "Dog") for i in (0, 1)},
    ],
    ids=["train alone", "a test without classes", "a test of other classes"],
)
def test_a_folder_as_it_is_published_says_what_reads_it(tmp_path: Path, entries: dict[str, str]):
    build(tmp_path / "my pets", {**PUBLISHED, **BESIDE, **entries})
    with pytest.raises(DataError, match=r"E307: .*Checkpoints") as told:
        Folder(root=str(tmp_path / "my pets")).dataset(True)
    typed = told.value.fix.removeprefix("type ").removesuffix(" to read its class folders")
    data = compose_specs(shlex.split(typed)).data
    assert data.root.endswith("Train_Data") and data.dataset(True).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "entries",
    [
        {**IMAGES, "Checkpoints/model.h5": "text:x"},
        {**SPLIT, "val/ant/notes.txt": "text:x"},
        {"cat/a/0.jpg": "image", "cat/b/0.jpg": "image", "dog/0.jpg": "image", "ant": "folder"},
        {f"{d}/{n}": k for d in ("a", "b") for n, k in IMAGES.items()} | {"ant": "folder"},
    ],
    ids=["classes", "a class of a split", "folders below one class", "two that may be meant"],
)
def test_no_folder_is_proposed_where_none_is_meant(tmp_path: Path, entries: dict[str, str]):
    build(tmp_path, entries)
    with pytest.raises(DataError, match=r"E307: .*Fix: add images or remove the folder"):
        Folder(root=str(tmp_path)).dataset(True)
