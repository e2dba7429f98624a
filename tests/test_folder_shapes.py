"""Folders as people have them: each is read rightly, or refused in one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pictures import picture

from xfer.data import Folder
from xfer.errors import DataError

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
            **{f"cafe\u0301/{i}.jpg": "image" for i in range(4)},
        },
        ("cafe\u0301", "caf\u00e9"),
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
        left_out = sum("ipynb" in name or name == "x.jpg" for name in entries if name[0] != ".")
        assert sum(len(s) for s in found.splits.values()) == images - left_out
    else:
        with pytest.raises(DataError) as told:
            Folder(root=str(root), workers=0).dataset(True)
        assert expected in str(told.value) and "\n" not in str(told.value)
