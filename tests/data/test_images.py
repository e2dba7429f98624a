from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from pictures import encoded, folders, picture
from PIL import Image

from xfer.core.errors import DataError
from xfer.data import Folder, scan
from xfer.data.image import Arrays, Files, decode
from xfer.data.scan import Facts, alone, broken_files, examine

JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF")


def hashes(paths, root: Path) -> list[str]:
    """The sha256 of every file; raises as the planning does."""
    found = examine(paths, root)
    if broken := [facts for facts in found if facts.problem]:
        raise broken_files(broken)
    return [facts.sha256 for facts in found]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(decode(path)).astype(int)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


# Decoding


MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "jpg": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "gif": ["1", "L", "P", "RGB"],
    "bmp": ["1", "L", "P", "RGB"],
    "webp": ["L", "P", "RGB", "RGBA"],
    "ppm": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(("form", "mode"), [(form, m) for form in MODES for m in MODES[form]])
def test_every_format_and_mode_decodes_to_the_colours_it_shows(tmp_path, form, mode):
    path, source = tmp_path / f"x.{form}", picture(1, (96, 64), mode)
    best = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    source.save(path, **best.get(form, {}))
    hashes([path], tmp_path)
    found = decode(path)
    assert found.mode == "RGB" and type(found) is Image.Image
    shown = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(np.asarray(found) - shown).mean() < (8 if form in ("gif", "jpg") else 0.01)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = tmp_path / f"x.{suffix}"
    if suffix == "pgm":
        write(path, b"P5 64 64 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    assert np.abs(pixels(path) - grey[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_not_decoded(tmp_path, dtype):
    path = tmp_path / "x.tif"
    Image.fromarray((np.arange(64).reshape(8, 8) * 5000).astype(dtype)).save(path)
    with pytest.raises(DataError, match="no known range"):
        decode(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    black.paste((0, 0, 0, 255), (0, 0, 4, 8))
    path = tmp_path / ("x.tif" if mode == "PA" else "x.png")
    black.convert(mode if mode != "PA" else "RGBA").save(path)
    found = pixels(path)
    assert found[:, :4].max() == 0 and found[:, 4:].min() == 255


def test_a_transparent_colour_is_white(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "rgb.png", transparency=(255, 0, 0))
    Image.new("RGB", (8, 8), "red").quantize(4).save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "rgb.png").min() == 255
    assert pixels(tmp_path / "p.png").min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = picture(2, (12, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's Transpose that stores it turned
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(decode(path)), np.asarray(upright))


TURNED = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # by a quarter


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("table", "size", "told"),
    [(TURNED[:6], (96, 64), True), (TURNED, (64, 96), False), (b"", (96, 64), True)],
)
def test_a_broken_exif_block_does_not_break_the_photograph_and_is_told_where_it_may_turn_it(
    tmp_path, caplog, table, size, told
):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + table
    path = write(tmp_path / "x.jpg", encoded("JPEG", exif=exif))
    hashes([path], tmp_path)
    assert decode(path).size == size
    said = f"{path}: its EXIF block is damaged before it says how the picture is turned"
    assert (said in caplog.text) is told


def test_what_pillow_says_of_a_broken_exif_block_names_no_file_and_is_not_printed():
    exif = repr(b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + TURNED)
    code = f"import io; from PIL import Image; import xfer.data.image as i; f = io.BytesIO(); \
Image.new('RGB', (9, 6)).save(f, 'JPEG', exif={exif}); print(i.decode_bytes(f.getvalue()).size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(6, 9)\n", "")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames_counts(tmp_path, form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = tmp_path / f"x.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:])
    hashes([path], tmp_path)
    assert np.abs(pixels(path) - [255, 0, 0]).max() < 3


def test_decode_names_a_broken_file(tmp_path):
    path = write(tmp_path / "x.jpg", JPEG[: len(JPEG) // 2])
    with pytest.raises(
        DataError, match=r"E310: .*x\.jpg: cannot be read as an image \(.*truncated"
    ):
        decode(path)


def test_files_and_arrays_are_sequences_that_survive_pickling(tmp_path):
    paths = tuple(folders(tmp_path, {"a": 3}).rglob("*.jpg"))
    files = pickle.loads(pickle.dumps(Files(paths)))
    assert len(files) == 3 and files[2].size == (24, 16)
    grey = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    arrays = pickle.loads(pickle.dumps(Arrays(grey)))
    assert len(arrays) == 2 and arrays[1].mode == "RGB"
    assert np.array_equal(np.asarray(arrays[1]), np.repeat(grey[1][..., None], 3, axis=2))


# Scanning

BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"<html>not found</html>", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    "png bit": (flipped(PNG, len(PNG) // 2), "broken PNG"),
    **{
        f"{name} {share}": (data[: int(len(data) * share)], "")
        for name, data in (("jpeg", JPEG), ("png", PNG), ("gif", GIF))
        for share in (0.1, 0.5, 0.98)
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_scan_refuses_what_is_no_whole_image(tmp_path, case):
    data, reason = BROKEN[case]
    good = write(tmp_path / "good.jpg", JPEG)
    with pytest.raises(
        DataError, match=rf"bad\.jpg: cannot be read as an image.*{reason}"
    ) as caught:
        hashes([good, write(tmp_path / "bad.jpg", data)], tmp_path)
    assert (caught.value.exit, caught.value.number) == (3, 310)


def test_scan_never_opens_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer, for ever
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(DataError, match="not a regular file"):
            hashes([tmp_path / name], tmp_path)


def test_scan_names_missing_files_and_dangling_links(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    for name in ("none.jpg", "link.jpg", "self.jpg"):
        with pytest.raises(DataError, match=name):
            hashes([tmp_path / name], tmp_path)


def test_scan_names_the_first_broken_file_and_counts_the_others(tmp_path):
    paths = [write(tmp_path / f"{i}.jpg", JPEG if i % 2 else b"") for i in range(8)]
    with pytest.raises(DataError, match=r"0\.jpg.*3 more files"):
        hashes(paths, tmp_path)


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "x.png")  # 81 million pixels in 10 kB
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for read in (
        lambda: hashes([tmp_path / "x.png"], tmp_path),
        lambda: decode(tmp_path / "x.png"),
    ):
        with pytest.raises(DataError, match="9000 x 9000 pixels"):
            read()


def test_files_over_a_gibibyte_are_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as stream:
        stream.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match="1073741825 bytes"):
        hashes([tmp_path / "x.png"], tmp_path)


def test_the_content_counts_not_the_suffix(tmp_path):
    paths = [
        write(tmp_path / "png.jpg", PNG),
        write(tmp_path / "gif.jpg", GIF),
        write(tmp_path / "jpeg.png", JPEG),
        write(tmp_path / "tail.jpg", JPEG + b"trailer of a camera" * 9),
    ]
    assert hashes(paths, tmp_path) == [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def test_scan_and_decode_leave_the_files_alone(tmp_path):
    root = folders(tmp_path / "data", {"a": 3, "b": 2})
    write(root / "a" / "tail.jpg", JPEG + b"x" * 99)
    paths = sorted(root.rglob("*.jpg"))

    def state() -> list[object]:
        return [
            (p, p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode)
            for p in sorted(root.rglob("*.*"))
        ]

    before = state()
    hashes(paths, root)
    for path in paths:
        decode(path)
    assert state() == before


HOSTILE = [
    "new\nline",
    "\x1b[31mred",
    "tab\t",
    "quo'te\"",
    "%s{}",
    "=cmd()",
    "<b>",
    "\u202eleft",
    "é",
]


@pytest.mark.parametrize("name", [*HOSTILE, os.fsdecode(b"no-utf8-\xff\xfe")])
def test_hostile_names_are_read_cached_and_never_reach_the_terminal_raw(tmp_path, name):
    good, bad = write(tmp_path / f"{name}.jpg", JPEG), write(tmp_path / f"{name}.png", b"")
    assert hashes([good], tmp_path) == hashes([good], tmp_path)
    with pytest.raises(DataError) as caught:
        hashes([good, bad], tmp_path)
    line = str(caught.value)
    assert line.isprintable() and line.encode()


# The cache


def no_reading(path: Path) -> tuple[str, None, str]:
    pytest.fail(f"{path} was read again")


def test_a_second_scan_reads_no_file(tmp_path, monkeypatch):
    paths = sorted(folders(tmp_path, {"a": 40, "b": 3}).rglob("*.jpg"))
    first = hashes(paths, tmp_path)
    assert first == [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
    monkeypatch.setattr(scan, "inspect", no_reading)
    assert hashes(paths, tmp_path) == first


def test_an_edit_that_keeps_size_and_mtime_is_seen(tmp_path):
    path = write(tmp_path / "x.jpg", JPEG)
    facts = path.stat()
    (first,) = hashes([path], tmp_path)
    write(path, flipped(JPEG, len(JPEG) // 2))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_mtime_ns == facts.st_mtime_ns
    assert path.stat().st_size == facts.st_size
    assert hashes([path], tmp_path) == [hashlib.sha256(path.read_bytes()).hexdigest()] != [first]


def test_scanning_one_split_keeps_what_is_known_of_another(tmp_path, monkeypatch):
    root = folders(tmp_path, {"train": 3, "val": 3})
    train, val = sorted((root / "train").iterdir()), sorted((root / "val").iterdir())
    hashes(train, root)
    hashes(val, root)
    monkeypatch.setattr(scan, "inspect", no_reading)
    hashes([*train, *val], root)


def test_files_that_are_gone_leave_the_cache(tmp_path, own_cache):
    paths = sorted(folders(tmp_path, {"a": 3}).rglob("*.jpg"))
    hashes(paths, tmp_path)
    paths[0].unlink()
    hashes([write(tmp_path / "new.jpg", JPEG), *paths[1:]], tmp_path)
    (cache,) = (own_cache / "scan").iterdir()
    assert b"00.jpg" not in cache.read_bytes() and cache.read_bytes().count(b"01.jpg") == 1


def test_a_broken_file_is_looked_at_again(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jpg", JPEG)
    with monkeypatch.context() as patch:
        patch.setattr(scan, "inspect", lambda path: Facts(path, problem="Input/output error"))
        with pytest.raises(DataError, match="Input/output"):
            hashes([path], tmp_path)
    assert hashes([path], tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "files": {}}', '{"version": 3}'])
def test_a_cache_that_cannot_be_read_is_made_again(tmp_path, own_cache, text):
    path = write(tmp_path / "x.jpg", JPEG)
    expected = hashes([path], tmp_path)
    (cache,) = (own_cache / "scan").iterdir()
    cache.write_text(text)
    assert hashes([path], tmp_path) == expected
    assert b"x.jpg" in cache.read_bytes()


def test_a_cache_of_another_version_is_not_believed(tmp_path, own_cache):
    path = write(tmp_path / "x.jpg", JPEG)
    (digest,) = hashes([path], tmp_path)
    (cache,) = (own_cache / "scan").iterdir()
    with zipfile.ZipFile(cache) as archive:
        columns = {name: archive.read(name) for name in archive.namelist()}
    version, *rest = json.loads(columns["facts.json"])
    for other in (version, version + 1):
        facts = json.dumps([other, *rest])
        with zipfile.ZipFile(cache, "w") as archive:
            for name, data in {**columns, "digests": b"\1" * 32, "facts.json": facts}.items():
                archive.writestr(name, data)
        assert hashes([path], tmp_path) == ["01" * 32 if other == version else digest]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XFER_CACHE", str(write(tmp_path / "file", b"") / "below"))
    assert hashes([write(tmp_path / "x.jpg", JPEG)], tmp_path)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jpg", JPEG)

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"x\.jpg.*Permission denied"):
        hashes([path], tmp_path)


def test_importing_data_and_images_imports_no_torch_and_no_sklearn():
    code = "import xfer.data, sys; sys.exit(not {'torch', 'sklearn'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_png_header_that_lies_about_its_size_is_refused(tmp_path):
    lying = PNG[:16] + struct.pack(">II", 60_000, 60_000) + PNG[24:]
    with pytest.raises(DataError, match=r"x\.png"):
        hashes([write(tmp_path / "x.png", lying)], tmp_path)


def test_a_scan_waits_for_the_one_that_is_at_work(tmp_path):
    path, found = write(tmp_path / "x.jpg", JPEG), []
    thread = Thread(target=lambda: found.append(hashes([path], tmp_path)))
    with alone(tmp_path, "reads"):
        thread.start()
        thread.join(0.3)
        assert not found
    thread.join()
    assert len(found[0]) == 1


def test_an_image_that_was_replaced_since_the_scan_is_an_error_and_a_touched_one_is_none(tmp_path):
    found = Folder(str(folders(tmp_path, {"a": 4, "b": 4}))).dataset(True)
    samples = found.splits["train"]
    path = tmp_path / samples.names[0]
    os.utime(path, (1, 1))
    assert samples.images[0].size == (24, 16)
    path.write_bytes(JPEG)
    with pytest.raises(DataError, match=r"E373: .*has changed since it was scanned"):
        samples.images[0]
    (tmp_path / samples.names[1]).replace(path)
    with pytest.raises(DataError, match="E373"):
        samples.images[0]
