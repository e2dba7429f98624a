"""Odd images that the other tests lack, each with its treatment: read, or refused in time."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import warm
from pictures import encoded, picture
from PIL import Image

from xfer.core.errors import DataError
from xfer.data.image import decode
from xfer.data.scan import examine


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, data, chunk(b"IEND", b""))
    )


def saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def many_frames() -> bytes:
    gif = encoded("GIF")
    frame = gif[gif.index(b"\x2c") : -1]
    return gif[:-1] + frame * 200 + b";"


RED = b"\0" + b"\xff\0\0"
READ = {
    "one pixel": (png(1, 1, rows=RED), (1, 1)),
    "a line": (saved(picture(1, (4000, 1)), "PNG"), (4000, 1)),
    "a column": (saved(picture(1, (1, 4000)), "PNG"), (1, 4000)),
    "sixteen bits of colour": (png(1, 1, depth=16, rows=b"\0" + b"\xff\xff\0\0\0\0"), (1, 1)),
    "two hundred frames": (many_frames(), (96, 64)),
    "a broken colour profile": (encoded("JPEG", icc_profile=b"no profile" * 9), (96, 64)),
    "a profile in PNG": (encoded("PNG", icc_profile=b"\0" * 200), (96, 64)),
    "progressive": (encoded("JPEG", progressive=True), (96, 64)),
    "printer's colours": (encoded("JPEG", mode="CMYK"), (96, 64)),
    "a comment of a megabyte": (
        png(1, 1, chunk(b"tEXt", b"c\0" + b"x" * 1_000_000), rows=RED),
        (1, 1),
    ),
    "a page of fax": (saved(picture(1, (96, 64), "1"), "TIFF", compression="group4"), (96, 64)),
    "an old bitmap": (encoded("BMP", mode="P"), (96, 64)),
    "lossy WebP": (encoded("WEBP", quality=5), (96, 64)),
    "AVIF": (encoded("AVIF"), (96, 64)),
    "interlaced": (saved(picture(1, (96, 64)), "PNG", interlace=1), (96, 64)),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_odd_and_whole_is_read(tmp_path, name):
    data, size = READ[name]
    (tmp_path / "x.png").write_bytes(data)
    (facts,) = examine([tmp_path / "x.png"], tmp_path)
    assert facts.problem is None
    image = decode(tmp_path / "x.png")
    assert (image.mode, image.size) == ("RGB", size)


ISO = b"\0\0\0\x18ftyp%s\0\0\0\0mif1%s" + b"\0" * 200
REFUSED = {
    "a header of 2^31-1 squared": png(2**31 - 1, 2**31 - 1),
    "a header of 400 megapixels": png(20_000, 20_000),
    "real data of 81 megapixels": saved(Image.new("1", (9000, 9000)), "PNG"),
    "a TIFF of 81 megapixels": saved(Image.new("1", (9000, 9000)), "TIFF", compression="group4"),
    "a GIF screen of 65535 squared": encoded("GIF").replace(
        struct.pack("<HH", 96, 64), b"\xff\xff\xff\xff", 1
    ),
    "no width": png(0, 5),
    "a compressed text of 200 MB": png(
        1, 1, chunk(b"zTXt", b"c\0\0" + zlib.compress(b"x" * 200_000_000, 9)), rows=RED
    ),
    "HEIC": ISO % (b"heic", b"heic"),
    "a film": ISO % (b"isom", b"mp42"),
    "PDF": b"%PDF-1.7\n%%EOF",
    "PostScript in a photograph's name": b"%!PS\nshowpage",
    "a zip file": b"PK\x05\x06" + b"\0" * 18,
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n",
    "an icon": saved(picture(1, (32, 32)), "ICO"),
    "Photoshop": b"8BPS\0\x01" + b"\0" * 30,
    "only zeros": b"\0" * 5000,
    "the end mark alone": b"\xff\xd8\xff\xd9",
    "a cut WebP": encoded("WEBP")[:100],
    "a cut TIFF": saved(picture(1, (96, 64)), "TIFF")[:-3000],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_or_a_bomb_is_refused_in_little_memory(tmp_path, name):
    (tmp_path / "x.jpg").write_bytes(REFUSED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (facts,) = examine([tmp_path / "x.jpg"], tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert facts.problem and facts.problem.isprintable()
    assert grown < 300_000  # kB
    with pytest.raises(DataError, match=r"x\.jpg"):
        decode(tmp_path / "x.jpg")


def spoilt(compression: str, at: int, end: int) -> bytes:
    mode = "1" if compression == "group4" else "RGB"
    data = saved(picture(1, (96, 64), mode), "TIFF", compression=compression)
    return data[:at] + bytes(end - at) + data[end:]


RAW = {
    "bomb.png": png(9500, 9500),
    "bombs.png": png(13500, 13500),
    "cut.tif": saved(picture(1, (96, 64)), "TIFF", compression="tiff_deflate")[:-200],
    "fax.tif": spoilt("group4", 300, 310),
    "lzw.tif": spoilt("tiff_lzw", 100, 400),
}


def test_what_libraries_print_of_a_file_is_said_by_name_or_kept_out(tmp_path):
    for name, data in RAW.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "from pathlib import Path\n"
        "from xfer.core.log import open_log\n"
        "from xfer.data.scan import inspect\n"
        "open_log(None)\n"
        f"for name in {list(RAW)}: print(name, inspect(Path(name)).problem, flush=True)\n"
    )
    process = warm.start(tmp_path, script=script)
    said, _ = process.communicate()
    assert said.splitlines() == [
        "bomb.png 9500 x 9500 pixels, more than 64,000,000 in all",
        "bombs.png its pixels are more than 64,000,000 in all",
        "cut.tif it is not an image",
        "fax.tif is damaged, and taken as far as it can be decoded",
        "fax.tif None",
        "lzw.tif its pixels cannot be decoded",
    ]


def test_sixteen_bits_of_colour_keep_their_colour(tmp_path):
    Path(tmp_path / "x.png").write_bytes(READ["sixteen bits of colour"][0])
    assert np.asarray(decode(tmp_path / "x.png")).tolist() == [[[255, 0, 0]]]


def test_printers_colours_are_not_inverted(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    found = np.asarray(decode(tmp_path / "x.jpg")).astype(int)
    assert np.abs(found - [255, 0, 0]).max() < 8
