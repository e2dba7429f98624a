from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import urllib.request
import zipfile
from pathlib import Path

import pytest
from conftest import answered

from xfer.core import download
from xfer.core.download import fetch, fetch_zip
from xfer.core.errors import DataError, OutputError, SafetyError

DATA = bytes(range(256)) * 5000  # more than one chunk
SHA = hashlib.sha256(DATA).hexdigest()


def packed(files: dict[str, bytes], **modes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = modes.get(name, 0o644) << 16
            archive.writestr(entry, data)
    return stream.getvalue()


# One file


def test_a_file_arrives_whole_with_its_hash(server, tmp_path):
    server.routes["/x.bin"] = DATA
    assert fetch(f"{server.url}/x.bin", tmp_path / "new" / "x.bin") == SHA
    assert (tmp_path / "new" / "x.bin").read_bytes() == DATA
    assert fetch(f"{server.url}/x.bin", tmp_path / "x.bin", SHA.upper()) == SHA


def test_an_answer_without_a_length_is_taken_to_its_end(server, tmp_path):
    server.routes["/x.bin"] = answered(200, DATA)
    assert fetch(f"{server.url}/x.bin", tmp_path / "x.bin") == SHA


CUT = {
    "length too large": answered(200, DATA, Content_Length=str(len(DATA) + 10)),
    "no byte at all": answered(200, b"", Content_Length="10"),
    "cut chunk": answered(200, b"8\r\nabcd", Transfer_Encoding="chunked"),
    "chunk of no size": answered(200, b"size\r\nabcd\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
    "not found": answered(404),
    "broken server": answered(500, b"sorry"),
    "redirect in a circle": answered(302, Location="/x.bin"),
    "redirect to nowhere": answered(302, Location="http://127.0.0.1:1/"),
    "no http": lambda handler: handler.wfile.write(b"hello\r\n"),
}


@pytest.mark.parametrize("case", CUT)
def test_what_does_not_arrive_whole_leaves_the_old_file_and_nothing_else(
    server, tmp_path, case, monkeypatch
):
    monkeypatch.setattr("xfer.core.http._PAUSES", (0, 0))
    server.routes["/x.bin"] = CUT[case]
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(
        DataError, match=r"cannot be downloaded \(.*put the file at .*x\.bin"
    ) as caught:
        fetch(f"{server.url}/x.bin", target)
    assert (caught.value.exit, caught.value.number) == (3, 320)
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"] and target.read_bytes() == b"old"


def test_the_status_of_a_refusal_is_told(server, tmp_path):
    with pytest.raises(DataError, match="HTTP Error 404"):
        fetch(f"{server.url}/none", tmp_path / "x")


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    server.routes["/x.bin"] = DATA
    with pytest.raises(DataError, match=f"sha256 is {SHA}, expected {'0' * 64}"):
        fetch(f"{server.url}/x.bin", tmp_path / "x.bin", "0" * 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://192.0.2.1/x",
        "http://localhost.example.org/x",
        "//127.0.0.1/x",
        "data:text/plain,x",
        "/etc/passwd",
    ],
)
def test_only_https_is_opened_and_http_only_on_loopback(server, tmp_path, url):
    with pytest.raises(SafetyError, match="only https") as caught:
        fetch(url, tmp_path / "x")
    server.routes["/x"] = answered(302, Location=url)
    if url.startswith(("/etc", "//")):  # here a redirect stays on loopback
        return
    with pytest.raises(SafetyError, match="only https"):
        fetch(f"{server.url}/x", tmp_path / "x")
    assert caught.value.exit == 6
    assert not list(tmp_path.iterdir())


def test_https_does_not_lead_to_a_service_on_this_machine(server):
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(SafetyError, match="leads to http://127"):
        download._Redirects().http_error_302(
            request, io.BytesIO(), 302, "", {"Location": server.url}
        )
    assert not server.asked


def test_a_redirect_on_loopback_is_followed(server, tmp_path):
    server.routes |= {"/old": answered(301, Location="/x.bin"), "/x.bin": DATA}
    assert fetch(f"{server.url}/old", tmp_path / "x.bin") == SHA


def test_an_address_that_nobody_answers_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="refused"):
        fetch("https://127.0.0.1:1/x", tmp_path / "x")
    with pytest.raises(DataError, match="not a valid address"):
        fetch("https://[x", tmp_path / "x")


def test_a_folder_that_cannot_be_written_is_an_output_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    server.routes["/x.zip"] = packed({"Canidae/a.txt": b"a"})
    for call in (
        lambda: fetch(f"{server.url}/x.zip", tmp_path / "file" / "x.zip"),
        lambda: fetch_zip(f"{server.url}/x.zip", tmp_path / "file" / "Canidae", "Canidae"),
    ):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            call()
        assert caught.value.exit == 9


# An archive


def test_an_archive_becomes_its_folder(server, tmp_path):
    data = packed({"data/Canidae/train/dogs/1.jpg": b"dog", "__MACOSX/Canidae/x": b"junk"})
    server.routes["/x.zip"] = data
    digest = fetch_zip(f"{server.url}/x.zip", tmp_path / "data" / "Canidae", "Canidae")
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "data" / "Canidae" / "train" / "dogs" / "1.jpg").read_bytes() == b"dog"
    origin = json.loads((tmp_path / "data" / "Canidae" / ".origin.json").read_text())
    assert origin == {"url": f"{server.url}/x.zip", "sha256": digest}
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["Canidae"]


def test_an_archive_with_another_hash_is_not_unpacked(server, tmp_path):
    server.routes["/x.zip"] = packed({"Canidae/a": b""})
    with pytest.raises(DataError, match="expected 00"):
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_appeared_meanwhile_is_kept(server, tmp_path, monkeypatch):
    # Not there when somebody looks, and there a moment later.
    seen = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: p != tmp_path / "Canidae" and seen(p))

    def answer(handler) -> None:
        (tmp_path / "Canidae").mkdir()
        (tmp_path / "Canidae" / "theirs").touch()
        answered(200, packed({"Canidae/ours": b""}))(handler)

    server.routes["/x.zip"] = answer
    fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")
    assert [p.name for p in (tmp_path / "Canidae").iterdir()] == ["theirs"]


SOUND = packed({"Canidae/a.bin": DATA, "Canidae/b.bin": DATA})


def encrypted(data: bytes) -> bytes:
    """The archive with the flag that says that its first entry is encrypted."""
    central = data.index(b"PK\x01\x02")
    return data[:6] + b"\x01" + data[7 : central + 8] + b"\x01" + data[central + 9 :]


UNSOUND = {
    "no zip": b"<html>moved</html>",
    "cut": SOUND[:-300],
    "damaged": SOUND[:1500] + bytes([SOUND[1500] ^ 255]) + SOUND[1501:],
    "encrypted": encrypted(SOUND),
    "another method": SOUND.replace(b"\x08\0\0\0!\0", b"\x63\0\0\0!\0"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_archive_leaves_nothing(server, tmp_path, case):
    assert UNSOUND[case] != SOUND
    server.routes["/x.zip"] = UNSOUND[case]
    with pytest.raises(DataError, match="not a valid zip archive") as caught:
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")
    assert (caught.value.exit, caught.value.number) == (3, 322)
    assert not list(tmp_path.iterdir())


def test_an_archive_without_the_folder_says_so(server, tmp_path):
    server.routes["/x.zip"] = packed({"other/Canidae": b"a file"})
    with pytest.raises(DataError, match="holds no folder 'Canidae'"):
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")
    assert not list(tmp_path.iterdir())


HOSTILE = ["../evil", "Canidae/../../evil", "/tmp/evil", "..\\evil", "\\evil", "C:\\evil", "C:evil"]


@pytest.mark.parametrize("name", HOSTILE)
def test_an_entry_that_would_leave_its_folder_is_refused(server, tmp_path, name):
    server.routes["/x.zip"] = packed({"Canidae/a": b"", name: b"evil"})
    with pytest.raises(SafetyError, match="would leave its folder") as caught:
        fetch_zip(f"{server.url}/x.zip", tmp_path / "data" / "Canidae", "Canidae")
    assert caught.value.exit == 6
    assert not list(tmp_path.rglob("*evil*")) and not list((tmp_path / "data").iterdir())


def test_a_link_in_an_archive_is_refused(server, tmp_path):
    server.routes["/x.zip"] = packed(
        {"Canidae/link": b"/etc"}, **{"Canidae/link": stat.S_IFLNK | 0o777}
    )
    with pytest.raises(SafetyError, match="would leave"):
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")


@pytest.mark.parametrize("limit", ["_MAX_UNPACKED", "_MAX_FILES"])
def test_a_bomb_is_refused_before_it_is_unpacked(server, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(download, limit, 1)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("unpacked"))
    server.routes["/x.zip"] = SOUND
    with pytest.raises(SafetyError, match="unpacks to 2 files of 2560000 bytes"):
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")


def test_a_bomb_that_hides_its_size_is_cut_at_the_size_it_gives(server, tmp_path):
    bomb = packed({"Canidae/a.bin": bytes(1_000_000)})
    lying = bomb.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 1000))
    assert lying != bomb
    server.routes["/x.zip"] = lying
    with pytest.raises(DataError, match="not a valid zip"):
        fetch_zip(f"{server.url}/x.zip", tmp_path / "Canidae", "Canidae")
    assert not list(Path(tmp_path).iterdir())
