"""Images on both sides of a split are found, however saved anew; strangers are not."""

from __future__ import annotations

import io
import json
import shutil
import warnings

import numpy as np
import pytest
from pictures import encoded, folders, picture
from PIL import Image, ImageDraw, ImageOps

from xfer.core.errors import DataError
from xfer.data import Folder
from xfer.data.image import to_rgb
from xfer.data.image_hash import alike, look
from xfer.data.scan import examine

FULL = {"train/cat": 8, "train/dog": 8, "val/cat": 8, "val/dog": 8}
TWIN, HELD = "train/cat/01.jpg", "val/cat/copy.jpg"


def big(root):
    """One photograph that is large enough to be saved in many ways."""
    folders(root, FULL)
    (root / TWIN).write_bytes(encoded("JPEG", 7, quality=95))
    return Image.open(root / TWIN)


CHANGES = {
    "saved again": lambda image, path: image.save(path, quality=75),
    "smaller": lambda image, path: image.resize((48, 32)).save(path),
    "larger": lambda image, path: image.resize((300, 200)).save(path),
    "another format": lambda image, path: image.save(path, "PNG"),
    "grey": lambda image, path: image.convert("L").save(path),
    "mirrored": lambda image, path: ImageOps.mirror(image).save(path),
    "brighter": lambda image, path: image.point(lambda v: v * 0.8 + 20).save(path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_was_changed_is_found_with_its_twin(tmp_path, change):
    CHANGES[change](big(tmp_path), tmp_path / HELD)
    found = Folder(str(tmp_path)).dataset(training=True)
    assert found.leaks == ((HELD, TWIN, "looks alike"),)
    assert any("look alike: 1 ('val/cat/copy.jpg' is" in remark for remark in found.remarks)
    assert Folder(str(tmp_path), leakage="error").dataset(training=True).leaks == found.leaks
    assert Folder(str(tmp_path), leakage="ignore").dataset(training=True).leaks == ()


def test_the_same_bytes_are_told_refused_or_ignored_as_asked(tmp_path):
    folders(tmp_path, FULL)
    shutil.copy(tmp_path / TWIN, tmp_path / HELD)
    found = Folder(str(tmp_path)).dataset(training=True)
    assert found.leaks == ((HELD, TWIN, "same bytes"),)
    with pytest.raises(DataError, match=r"E340: .*copy\.jpg' is '.*01\.jpg'.*data\.leakage=warn"):
        Folder(str(tmp_path), leakage="error").dataset(training=True)
    quiet = Folder(str(tmp_path), leakage="ignore").dataset(training=True)
    assert quiet.leaks == () and not any("also in train" in line for line in quiet.remarks)


def test_an_image_in_two_classes_is_told(tmp_path):
    folders(tmp_path, FULL)
    shutil.copy(tmp_path / TWIN, tmp_path / "train" / "dog" / "copy.jpg")
    remarks = Folder(str(tmp_path)).dataset(training=True).remarks
    assert (
        "images that are in two classes: 1 ('train/dog/copy.jpg' is 'train/cat/01.jpg')" in remarks
    )


def test_strangers_are_not_alike(tmp_path):
    paths = sorted(folders(tmp_path, {"a": 300}).rglob("*.jpg"))
    looks = [facts.look for facts in examine(paths, tmp_path)]
    assert len(set(looks)) == 300
    assert list(alike(looks[:150], looks[150:])) == []
    assert [(i, j) for i, j in alike(looks, looks) if i != j] == []


def saved_anew(image):
    image.save(file := io.BytesIO(), "JPEG", quality=90)
    return Image.open(file)


def test_strokes_on_plain_ground_are_alike_only_where_they_are_the_same():
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        drawn.append(Image.new("L", (105, 105), 255))
        points = [tuple(xy) for xy in rng.integers(30, 75, (3, 2)).tolist()]
        ImageDraw.Draw(drawn[-1]).line(points, fill=0, width=4)
    looks = [look(image) for image in drawn]
    assert sum(i < j for i, j in alike(looks, looks)) < 20  # and not 3,918 of 19,900
    anew = [look(saved_anew(image)) for image in drawn]
    assert sum(i == j for i, j in alike(looks, anew)) > 150


def test_flat_pictures_have_no_look():
    assert look(Image.new("RGB", (50, 50), "white")) == ""
    assert list(alike(["", ""], ["", ""])) == []


def test_a_picture_with_transparency_looks_as_it_is_seen(tmp_path):
    folders(tmp_path, FULL)
    for name, shape in (("train/cat/one", 1), ("train/dog/other", 2)):
        drawn = Image.new("RGBA", (96, 64))  # black, and seen by its transparency alone
        drawn.putalpha(picture(shape, (96, 64)).convert("L"))
        drawn.save(tmp_path / f"{name}.png")
    with Image.open(tmp_path / "train/cat/one.png") as image:
        seen = to_rgb(image)
    seen.save(tmp_path / HELD)
    pale = seen.quantize(64)
    pale.save(tmp_path / "train/cat/palette.png", transparency=bytes([0, 128] * 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of Pillow, about palettes
        found = Folder(str(tmp_path)).dataset(training=True)
    assert found.leaks == ((HELD, "train/cat/one.png", "looks alike"),)
    paths = [tmp_path / "train/cat/one.png", tmp_path / "train/cat/palette.png"]
    assert all(facts.look for facts in examine(paths, tmp_path))


def test_real_photographs_have_the_pairs_that_are_known(assets):
    found = Folder(str(assets / "Canidae")).dataset(training=True)
    for _, _, kind in found.leaks:
        assert kind in ("same bytes", "looks alike")
    # A mean distance of 128 bits leaves no room for chance.
    assert len(found.leaks) < len(found.splits["val"])


def test_broken_files_are_skipped_with_a_count_when_asked(tmp_path):
    folders(tmp_path, FULL)
    for name in ("train/cat/00.jpg", "train/dog/03.jpg", "val/dog/02.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"E310: .*00\.jpg.*2 more files"):
        Folder(str(tmp_path)).dataset(training=True)
    with pytest.raises(
        DataError, match=r"Fix: remove or replace the file, or type data\.on_bad=skip$"
    ):
        Folder(str(tmp_path)).dataset(training=True)
    found = Folder(str(tmp_path), on_bad="skip").dataset(training=True)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 14, "val": 15}
    (remark,) = [line for line in found.remarks if line.startswith("skipped")]
    assert remark.startswith("skipped 3 broken files ('train/cat/00.jpg': the file is empty; ")
    assert all("00.jpg" not in name for name in found.splits["train"].names if "cat" in name)
    for split in found.splits.values():
        assert [path.relative_to(tmp_path).as_posix() for path in split.images.paths] == split.names


def test_a_class_without_a_sound_image_is_an_error_even_when_skipping(tmp_path):
    folders(tmp_path, FULL)
    for path in (tmp_path / "val" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"E319: .*class 'dog' has no sound image in val"):
        Folder(str(tmp_path), on_bad="skip").dataset(training=True)


def test_the_pairs_are_in_the_plan(tmp_path, monkeypatch):
    import xfer

    folders(tmp_path / "data", FULL)
    shutil.copy(tmp_path / "data" / TWIN, tmp_path / "data" / HELD)
    monkeypatch.chdir(tmp_path)
    options = ["data=folder", f"data.root={tmp_path / 'data'}", "backbone=digits_resnet"]
    options += ["source=none", "head=linear", "stages=[]", "run.dir=planned"]
    folder = xfer.run("default", options).folder
    assert json.loads((folder / "plan.json").read_text())["leakage"] == [[HELD, TWIN, "same bytes"]]
