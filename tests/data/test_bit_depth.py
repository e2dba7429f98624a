"""Files of more than 8 bits: one range for a data set, the same wherever its images are read."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xfer
from xfer.core.errors import ConfigError, DataError
from xfer.data import Folder
from xfer.data.image import decode
from xfer.data.scan import examine
from xfer.evaluation.predict import find


def scene(seed: int) -> np.ndarray:
    """A picture in the numbers 0 to 1."""
    coarse = np.random.default_rng(seed).random((4, 4))
    return np.kron(coarse, np.ones((6, 6))) * 0.98


def dataset(root: Path, dtype: type, low: float, high: float, suffix: str = "tif") -> Path:
    """Two classes of ten pictures, whose numbers go from ``low`` to nearly ``high``."""
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((low + scene(i) * (high - low)).astype(dtype)).save(path)
    return root


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def colours(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16-bit colours, which PIL reads but does not write."""
    height, width, channels = pixels.shape
    kind = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_bits_of_a_camera_are_found_and_all_grey_levels_kept(tmp_path, bits, suffix):
    most = 2**bits - 1
    found = Folder(str(dataset(tmp_path, np.uint16, 0, most, suffix))).dataset(True)
    assert found.range == (0, most)
    assert any(f"data.range=[0,{most}]" in remark for remark in found.remarks)
    train = found.splits["train"]
    for name, image in zip(train.names[:3], (train.images[i] for i in range(3)), strict=True):
        expected = scene(int(Path(name).stem)) * 255
        assert np.abs(np.asarray(image)[..., 0] - expected).max() < 1.5 + 255 / most


def test_a_range_is_that_of_the_data_set_not_of_each_image(tmp_path):
    root = dataset(tmp_path, np.uint16, 0, 4095)
    Image.fromarray(np.full((8, 8), 409, np.uint16)).save(root / "a" / "dark.tif")
    found = Folder(str(root), val_fraction=0.5).dataset(True)
    samples = next(s for s in found.splits.values() if "a/dark.tif" in s.names)
    assert np.asarray(samples.images[samples.names.index("a/dark.tif")]).max() == 25


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int32, -1024, 3071), (np.int32, 0, 100_000), (np.float32, 0, 1), (np.float32, -2.5, 7)],
)
def test_no_range_is_guessed_and_the_advice_works(tmp_path, dtype, low, high):
    root = str(dataset(tmp_path, dtype, low, high))
    with pytest.raises(DataError, match=r"E370: .*20 images with .*type 'data\.range=\[") as told:
        Folder(root).dataset(True)
    typed = told.value.fix.partition("data.range=[")[2].partition("]")[0]
    ends = tuple(float(x) for x in typed.split(","))
    assert low <= ends[0] < ends[1] <= high
    found = Folder(root, range=(low, high)).dataset(True)
    assert found.range == (low, high)
    image = np.asarray(found.splits["val"].images[0])[..., 0]
    expected = scene(int(Path(found.splits["val"].names[0]).stem)) * 255
    assert np.abs(image - expected).max() < 2


def test_signed_16_bits_are_not_cut_at_0(tmp_path):
    # PIL does not write them: a little-endian TIFF of one strip, by hand.
    hounsfield = np.array([[-1024, 0, 1024, 3071]], "<i2")
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 3, 1), (279, 4, 8), (339, 3, 2)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 16) + hounsfield.tobytes()
    path = tmp_path / "ct.tif"
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    with pytest.raises(DataError, match="no known range"):
        decode(path)
    found = np.asarray(decode(path, (-1024, 3071)))[0, :, 0]
    assert found.tolist() == [0, 64, 128, 255]
    assert examine([path], tmp_path)[0].reach == ("32-bit", -1024, 3071)


@pytest.mark.parametrize("channels", [3, 4])
def test_twelve_bits_of_colour_are_read_whole(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 7, channels), np.uint16)
    if channels == 4:
        pixels[..., 3] = 65535
    path = colours(tmp_path / "x.png", pixels)
    assert examine([path], tmp_path)[0].reach[0] == "16-bit"
    assert np.abs(np.asarray(decode(path, (0, 4095))) - pixels[..., :3] / 4095 * 255).max() <= 0.5


def test_what_is_beyond_the_range_is_told(tmp_path, caplog):
    root = dataset(tmp_path, np.uint16, 0, 4095)
    found = Folder(str(root), range=(0, 2000)).dataset(True)
    assert any("cut off at 0 to 2000: 20 images" in remark for remark in found.remarks)
    find([str(root)], (0, 2000))
    assert "cut off at 0 to 2000: 20 images" in caplog.text
    find([str(root)])  # a network that was trained on 8 bits
    assert "more than 8 bits reach only 4009 of 65535: the pictures are dark" in caplog.text


def test_a_range_that_changes_nothing_is_told(tmp_path):
    root = dataset(tmp_path, np.uint8, 0, 255, "png")
    told = "data.range changes nothing: no image has more than 8 bits"
    assert told in Folder(str(root), range=(-1024, 3071)).dataset(True).remarks
    assert told not in Folder(str(root)).dataset(True).remarks


def test_a_dark_picture_saved_anew_is_found_and_others_are_not_like_it(tmp_path):
    root = dataset(tmp_path, np.uint16, 0, 4095)
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i}.tif"
        path.rename(root / ("val" if i < 6 else "train") / path.parent.name / path.name)
    for label in "ab":
        (root / label).rmdir()
    with Image.open(root / "val/a/0.tif") as image:
        image.save(root / "train/a/copy.png")
    assert Folder(str(root)).dataset(True).leaks == (
        ("val/a/0.tif", "train/a/copy.png", "looks alike"),
    )


def test_numbers_that_are_none_and_ranges_that_are_none_are_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "x.tif")
    assert examine([tmp_path / "x.tif"], tmp_path)[0].problem == "it holds NaN or Inf"
    with pytest.raises(ConfigError, match=r"data\.range: 5 is not below 5"):
        Folder("x", range=(5, 5))


def test_a_run_says_its_range_and_every_later_reader_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = dataset(tmp_path / "images", np.float32, -2, 4095)
    network = ["backbone=digits_resnet", "source=digits_0_4", "data.workers=0"]
    stages = ["stages=[fit,evaluate,predict,export]", "export=[onnx,onnx_image]"]
    typed = [f"data.root={root}", "data.range=[-2,4095]", "predict.input=images"]
    first = xfer.run(overrides=[*typed, *network, *stages])
    assert first.plan["input"]["range"] == [-2, 4095]
    assert json.loads((first.folder / "export/preprocess.json").read_text())["range"] == [-2, 4095]
    held, all_of_them = (rows(first.folder / f"predictions{end}.csv") for end in ("_val", ""))
    assert held == {n: row for n, row in all_of_them.items() if n in held}

    # Nothing is typed again: evaluation, prediction, both exported files, and Python.
    later = ["data.workers=0", f"data.root={root}", "predict.input=images"]
    again = xfer.run(
        overrides=["stages=[evaluate,predict]", f"checkpoint.path={first.folder}", *later]
    )
    assert again.plan["input"]["range"] == [-2, 4095]
    assert rows(again.folder / "predictions_val.csv") == held
    assert rows(again.folder / "predictions.csv") == all_of_them
    for name in ("model.onnx", "model_image.onnx"):
        model = f"predict.model={first.folder}/export/{name}"
        alone = xfer.run(overrides=["stages=[predict]", model, "predict.input=images"])
        assert rows(Path(alone.facts["predictions"])) == all_of_them
    (tmp_path / "images" / "bad.tif").write_text("no image")
    answers = xfer.load(first.folder).predict("images")
    assert {Path(a.path).stem: a.label for a in answers} == {
        name: label for name, (label, _) in all_of_them.items()
    }
    assert "1 of 21 files is broken and left out" in capsys.readouterr().err

    wrong = [f"checkpoint.path={first.folder}", "data.range=[0,1]", f"data.root={root}"]
    with pytest.raises(ConfigError, match=r"data\.range: contradicts the network"):
        xfer.run(overrides=["stages=[evaluate]", *wrong])


def rows(path: Path) -> dict[str, tuple[str, float]]:
    """Answer and confidence, of files of one suffix and of unlike names."""
    with path.open(newline="") as stream:
        return {
            Path(row["path"]).stem: (row["prediction"], round(float(row["confidence"]), 4))
            for row in csv.DictReader(stream)
        }
