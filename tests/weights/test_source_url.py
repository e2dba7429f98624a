"""Weights from an address: what servers do wrong, what users must not see, what must survive."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from backbones import BACKBONES
from conftest import Server, answered
from safetensors.torch import save
from sweeps import until

from xfer.core import http
from xfer.core.download import RESUMABLE_WEIGHTS, fetch
from xfer.core.errors import ConfigError, OutputError, SafetyError, WeightsError, XferError
from xfer.weights.source.local import File
from xfer.weights.source.url import Url

SMALL = BACKBONES["digits_resnet"]
TENSORS = {"a.weight": torch.arange(500_000.0), "a.bias": torch.ones(3)}
DATA = save(TENSORS)  # 2 MB
SHA = hashlib.sha256(DATA).hexdigest()
OTHER = save({"a.weight": torch.zeros(500_000), "a.bias": torch.ones(3)})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PAUSES", (0.0, 0.0))


class Ranged:
    """Serves ``data`` with a mark, goes on where it is asked to, and cuts its first answers.

    ``cuts`` are the bytes of the body that the first answers send. ``asked`` notes each Range.
    """

    def __init__(self, data: bytes, *cuts: int, mark: str | None = '"1"', field="ETag") -> None:
        self.data, self.cuts, self.mark, self.field = data, list(cuts), mark, field
        self.asked: list[str | None] = []
        self.heeds_if_range = True
        self.shift = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append(wanted)
        start = 0
        if wanted and (condition == self.mark or not self.heeds_if_range):
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.shift
        size = len(self.data)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if self.mark is not None:
            handler.send_header(self.field, self.mark)
        handler.send_header("Content-Length", str(size - start))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else size
        handler.wfile.write(self.data[start : start + cut])
        handler.close_connection = True


def in_turn(*answers: Callable[..., None]) -> Callable[..., None]:
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def left_over(cache: Path) -> set[str]:
    """What the cache holds, locks aside."""
    return {p.name for p in (cache / "weights").glob("*") if p.suffix != ".lock"}


def loaded(server: Server, sha256: str = SHA, path: str = "/w") -> None:
    weights = Url(server.url + path, sha256).load(SMALL)
    assert weights.state is not None and weights.sha256 == SHA
    assert torch.equal(weights.state["a.weight"], TENSORS["a.weight"])


# The cache


def test_a_file_is_fetched_once_and_names_its_hash_and_its_address(server, own_cache):
    server.routes["/w"] = DATA
    weights = Url(f"{server.url}/w", SHA).load(SMALL)
    assert (weights.kind, weights.origin, weights.sha256) == ("url", f"{server.url}/w", SHA)
    assert weights.pinned == {"sha256": SHA} and weights.facts["format"] == "safetensors"
    loaded(server)
    assert server.asked == ["/w"] and left_over(own_cache) == {SHA}


def test_a_damaged_file_of_the_cache_is_fetched_again(server, own_cache, caplog):
    server.routes["/w"] = DATA
    loaded(server)
    (own_cache / "weights" / SHA).write_bytes(DATA[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "xfer"):
        loaded(server)
    assert server.asked == ["/w", "/w"] and "is damaged" in caplog.text


def test_any_takes_the_first_answer_tells_its_hash_and_keeps_to_it(server, own_cache, caplog):
    server.routes["/w"] = DATA
    with caplog.at_level(logging.INFO, "xfer"):
        weights = Url(f"{server.url}/w", "any").load(SMALL)
    assert weights.pinned == {"sha256": SHA} and f"source.sha256={SHA}" in caplog.text
    server.routes["/w"] = OTHER
    loaded(server, "any")
    loaded(server, SHA, "/elsewhere")  # one cache for both ways of asking
    assert server.asked == ["/w"]
    (own_cache / "weights" / SHA).write_bytes(b"")
    changed = Url(f"{server.url}/w", "any").load(SMALL)
    assert changed.sha256 == hashlib.sha256(OTHER).hexdigest() and len(server.asked) == 2


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"sha256": "../../x"}', b"\xff"])
def test_a_damaged_record_of_an_address_is_made_again(server, own_cache, record):
    server.routes["/w"] = DATA
    loaded(server, "any")
    (path,) = (own_cache / "weights").glob("*.json")
    path.write_bytes(record)
    loaded(server, "any")
    assert json.loads(path.read_text())["sha256"] == SHA and server.asked == ["/w", "/w"]


def test_what_any_got_and_nobody_can_read_is_asked_for_again(server):
    server.routes["/w"] = b"<!doctype html><html><body>Please log in</body></html>"
    with pytest.raises(WeightsError, match=f"{server.url}/w: .*(web page|HTML)"):
        Url(f"{server.url}/w", "any").load(SMALL)
    server.routes["/w"] = DATA
    loaded(server, "any")


def test_a_cache_that_cannot_be_written_is_an_output_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="XFER_CACHE=DIR"):
        loaded(server)


def test_the_rules_of_every_source_and_the_key_hold_here_too(server, tmp_path):
    torch.save({"state_dict": {"net.a": torch.ones(2), "x": torch.ones(1)}}, tmp_path / "w")
    server.routes["/w"] = (tmp_path / "w").read_bytes()
    rules = {"strip": "net.", "classes": ("cat", "dog")}
    weights = Url(f"{server.url}/w", "any", key="state_dict", **rules).load(SMALL)
    assert list(weights.state or ()) == ["a"] and weights.classes == ("cat", "dog")
    assert weights.renamed == {"a": "net.a"} and "x" in weights.asides


# The hash


@pytest.mark.parametrize("sha256", [SHA.upper(), SHA[:-1], "", "sha256:" + SHA, " " + SHA, "ANY"])
def test_a_hash_that_is_none_is_a_mistake_of_the_config(sha256):
    with pytest.raises(ConfigError, match="64 hex digits") as caught:
        Url("https://example.org/w", sha256)
    assert caught.value.exit == 2 and caught.value.where == "source.sha256"
    if SHA in sha256.lower() and len(sha256.strip()) == 64:
        assert caught.value.fix.endswith(SHA)


def test_another_hash_is_told_and_leaves_nothing(server, own_cache):
    server.routes["/w"] = OTHER
    with pytest.raises(WeightsError, match=f"sha256 is .*, expected {SHA}") as caught:
        loaded(server)
    assert (caught.value.exit, caught.value.number) == (4, 451)
    assert left_over(own_cache) == set() and server.asked == ["/w"]


def test_a_web_page_instead_of_the_file_is_called_so(server, own_cache):
    server.routes["/w"] = answered(200, b"<html>moved</html>", Content_Type="text/html")
    with pytest.raises(WeightsError, match=r"expected .*web page"):
        loaded(server)
    assert left_over(own_cache) == set()


# Transfers that are cut


def test_a_cut_transfer_goes_on_where_it_stopped(server, own_cache):
    server.routes["/w"] = answer = Ranged(DATA, 1_000_000, 300_000)
    loaded(server)
    assert answer.asked == [None, "bytes=1000000-", "bytes=1300000-"]
    assert left_over(own_cache) == {SHA}


def test_a_later_process_goes_on_where_an_earlier_gave_up(server, own_cache):
    server.routes["/w"] = answer = Ranged(DATA, 400_000, 0, 0)
    with pytest.raises(WeightsError, match=r"400000 of|IncompleteRead") as caught:
        loaded(server)
    assert caught.value.number == 450
    assert left_over(own_cache) == {f"{SHA}.part", f"{SHA}.part.mark"}
    loaded(server)
    assert answer.asked[-1] == "bytes=400000-" and left_over(own_cache) == {SHA}


def test_a_server_that_ignores_ranges_is_asked_for_the_whole(server):
    answer = Ranged(DATA, 1_000_000)
    server.routes["/w"] = in_turn(answer, answered(200, DATA, Content_Length=str(len(DATA))))
    loaded(server)


def test_a_server_without_a_mark_is_not_asked_for_a_part(server):
    server.routes["/w"] = answer = Ranged(DATA, 1_000_000, mark=None)
    loaded(server)
    assert answer.asked == [None, None]


def test_another_range_than_asked_for_is_not_taken(server):
    server.routes["/w"] = answer = Ranged(DATA, 1_000_000)
    answer.shift = 5
    loaded(server)
    assert answer.asked == [None, "bytes=1000000-", None]


def test_the_whole_may_come_as_a_part(server):
    whole = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
    server.routes["/w"] = answered(206, DATA, Content_Range=whole)
    loaded(server)
    server.routes["/v"] = answered(206, DATA, Content_Range="bytes 0-9/*, and so on")
    with pytest.raises(WeightsError, match="another part"):
        Url(f"{server.url}/v", "0" * 64).load(SMALL)


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("sha256", ["any", hashlib.sha256(OTHER).hexdigest()])
def test_a_file_that_changes_between_the_tries_is_fetched_anew(server, heeds_if_range, sha256):
    before, after = Ranged(DATA, 1_000_000), Ranged(OTHER, mark='"2"')
    after.heeds_if_range = heeds_if_range
    server.routes["/w"] = in_turn(before, after)
    weights = Url(f"{server.url}/w", sha256).load(SMALL)
    assert weights.sha256 == hashlib.sha256(OTHER).hexdigest()


def test_a_part_that_does_not_lead_to_the_hash_is_thrown_away(server, own_cache):
    server.routes["/w"] = answer = Ranged(DATA, 1_000_000, 0, 0)
    with pytest.raises(WeightsError):
        loaded(server)
    part = own_cache / "weights" / f"{SHA}.part"
    part.write_bytes(bytes(part.stat().st_size))
    loaded(server)
    assert answer.asked[-2:] == ["bytes=1000000-", None]


@pytest.mark.parametrize("name", ["part", "part.mark"])
def test_a_transfer_writes_through_no_link_and_sends_nothing_of_its_goal(server, own_cache, name):
    (folder := own_cache / "weights").mkdir(parents=True)
    (goal := own_cache / "secret").write_bytes(DATA[:1000] if name == "part" else b"a secret")
    (folder / f"{SHA}.part").write_bytes(DATA[:1000])
    (folder / f"{SHA}.part.mark").write_bytes(b'"1"')
    (folder / f"{SHA}.{name}").unlink()
    (folder / f"{SHA}.{name}").symlink_to(goal)
    before, asked = goal.read_bytes(), Ranged(DATA)
    server.routes["/w"] = asked
    with pytest.raises(OutputError, match="symbolic link"):
        fetch(f"{server.url}/w", folder / SHA, SHA, RESUMABLE_WEIGHTS)
    assert goal.read_bytes() == before and not asked.asked
    (folder / f"{SHA}.part").unlink()
    os.mkfifo(folder / f"{SHA}.part")
    with pytest.raises(OutputError, match="not a regular file"):
        fetch(f"{server.url}/w", folder / SHA, SHA, RESUMABLE_WEIGHTS)


def test_a_part_longer_than_the_file_is_thrown_away(server, own_cache):
    folder = own_cache / "weights"
    folder.mkdir()
    (folder / f"{SHA}.part").write_bytes(DATA + b"x")
    (folder / f"{SHA}.part.mark").write_text('"1"')
    server.routes["/w"] = in_turn(answered(416), Ranged(DATA))
    loaded(server)
    assert left_over(own_cache) == {SHA}


def test_a_part_that_is_already_whole_needs_no_server(own_cache):
    folder = own_cache / "weights"
    folder.mkdir()
    (folder / f"{SHA}.part").write_bytes(DATA)
    (folder / f"{SHA}.part.mark").write_text('"1"')
    weights = Url("https://127.0.0.1:1/w", SHA).load(SMALL)
    assert weights.sha256 == SHA and left_over(own_cache) == {SHA}


@pytest.mark.parametrize("mark", ['W/"1"', "Sat, 01 Jan 2000 00:00:00 GMT"])
def test_a_mark_that_promises_little_counts_only_where_the_hash_is_known(server, mark):
    field = "ETag" if mark.startswith("W/") else "Last-Modified"
    for path, sha256 in (("/any", "any"), ("/known", SHA)):
        server.routes[path] = answer = Ranged(DATA, 1_000_000, mark=mark, field=field)
        (Path(os.environ["XFER_CACHE"]) / "weights" / SHA).unlink(missing_ok=True)
        loaded(server, sha256, path)
        resumed = sha256 == SHA and field == "Last-Modified"
        assert answer.asked == [None, "bytes=1000000-" if resumed else None]


def test_two_answers_500_are_survived(server):
    server.routes["/w"] = in_turn(answered(500), answered(503), Ranged(DATA))
    loaded(server)
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (502, 3), (404, 1), (403, 1), (204, 1)])
def test_a_status_is_told_and_tried_again_only_where_it_may_pass(server, own_cache, status, tries):
    server.routes["/w"] = answered(status)
    with pytest.raises(WeightsError, match=str(status)) as caught:
        loaded(server)
    assert (caught.value.exit, caught.value.number) == (4, 450) and len(server.asked) == tries
    assert left_over(own_cache) == set()


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    """Set at the end of a test, so that a server that stalls lets go."""
    event = threading.Event()
    yield event
    event.set()


def test_a_transfer_that_stalls_is_given_up(server, monkeypatch, stopping):
    def stall(handler: BaseHTTPRequestHandler) -> None:
        Ranged(DATA, 1000)(handler)
        handler.wfile.flush()
        stopping.wait(600)

    monkeypatch.setattr(http, "_TIMEOUT", 0.2)
    server.routes["/w"] = stall
    with pytest.raises(WeightsError, match="timed out"):
        loaded(server)
    until(lambda: len(server.asked) >= 3)  # the server has its turn when the machine lets it
    assert len(server.asked) == 3


def test_a_transfer_that_drips_is_given_up(server, monkeypatch, stopping):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        answered(200, Content_Length=str(len(DATA)))(handler)
        while not stopping.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    # By its own clock: for the socket's, the next byte may take as long as the machine likes.
    clock = itertools.count()
    monkeypatch.setattr(http, "time", Mock(wraps=time, monotonic=lambda: 4.0 * next(clock)))
    server.routes["/w"] = drip
    with pytest.raises(WeightsError, match=r"bytes in 30 s"):
        loaded(server)


# Lies and floods


def test_a_length_that_is_too_large_is_a_cut_transfer(server, own_cache):
    server.routes["/w"] = answered(200, DATA, Content_Length=str(len(DATA) + 9))
    with pytest.raises(WeightsError, match="9 more expected"):
        loaded(server)
    assert len(server.asked) == 3


def test_a_length_that_is_too_small_cuts_the_file_and_the_hash_says_so(server, own_cache):
    server.routes["/w"] = answered(200, DATA, Content_Length=str(len(DATA) - 9))
    with pytest.raises(WeightsError, match=f"sha256 is .*, expected {SHA}"):
        loaded(server)
    with pytest.raises(WeightsError, match=f"{server.url}/w"):
        loaded(server, "any")


def endless(handler: BaseHTTPRequestHandler) -> None:
    answered(200)(handler)
    try:
        for _ in range(4000):  # an end after all, so that a broken xfer does not fill the disk
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        return


def test_a_body_without_end_is_cut_at_the_maximum(server, own_cache, monkeypatch):
    monkeypatch.setattr(http, "_MAX_BYTES", 1_000_000)
    server.routes["/w"] = endless
    with pytest.raises(WeightsError, match="bytes or more, 1000000 are allowed"):
        loaded(server)
    assert left_over(own_cache) == set() and len(server.asked) == 1


def test_a_body_without_end_does_not_fill_the_disk(server, own_cache, monkeypatch):
    import shutil

    free = shutil.disk_usage(own_cache).free
    monkeypatch.setattr(http, "_MAX_BYTES", 1 << 60)
    monkeypatch.setattr(http, "_RESERVE", free - (64 << 20))
    server.routes["/w"] = endless
    with pytest.raises(OutputError, match="the disk has space for"):
        loaded(server)
    assert left_over(own_cache) == set()


@pytest.mark.parametrize(
    ("limit", "error"), [("_MAX_BYTES", WeightsError), ("_RESERVE", OutputError)]
)
def test_a_file_that_is_too_large_is_refused_before_its_body(
    server, own_cache, monkeypatch, limit, error
):
    monkeypatch.setattr(http, limit, 1000 if limit == "_MAX_BYTES" else 1 << 60)
    # No body at all: whoever waits for one is told that the transfer was cut.
    server.routes["/w"] = answered(200, Content_Length=str(1 << 40))
    with pytest.raises(error, match="it has 1099511627776 bytes"):
        loaded(server)
    assert left_over(own_cache) == set()


def test_a_compressed_answer_is_refused(server):
    server.routes["/w"] = answered(200, DATA, Content_Encoding="gzip")
    with pytest.raises(WeightsError, match="compresses"):
        loaded(server)


# Addresses


REDIRECTS = {
    "to plain http": ("http://192.0.2.1/w", SafetyError, "192.0.2.1"),
    "to a file": ("file:///etc/passwd", SafetyError, "only https"),
    "to ftp": ("ftp://127.0.0.1/w", SafetyError, "only https"),
    "in a circle": ("/w", WeightsError, "302"),
    "to no address": ("https://[", WeightsError, "Invalid IPv6"),
    "to a port that is none": ("https://h:pass/w", WeightsError, "not a valid address"),
}


@pytest.mark.parametrize("case", REDIRECTS)
def test_a_redirect_is_checked_before_it_is_followed(server, own_cache, case):
    goal, error, told = REDIRECTS[case]
    server.routes["/w"] = answered(302, Location=goal)
    with pytest.raises(error, match=told):
        loaded(server)
    assert left_over(own_cache) == set() and len(server.asked) < 12  # urllib follows ten


def test_a_redirect_by_another_header_is_not_followed(server):
    server.routes |= {"/w": answered(302, URI="/secret"), "/secret": DATA}
    with pytest.raises(WeightsError, match="302"):
        loaded(server)
    assert server.asked == ["/w"]


def test_a_redirect_is_followed_by_the_range_and_not_by_the_password(server):
    goal = Server()
    try:
        seen: list[tuple[str | None, str | None]] = []
        answer = Ranged(DATA, 1_000_000)

        def there(handler: BaseHTTPRequestHandler) -> None:
            seen.append((handler.headers.get("Authorization"), handler.headers.get("Range")))
            answer(handler)

        def here(handler: BaseHTTPRequestHandler) -> None:
            seen.append((handler.headers.get("Authorization"), None))
            answered(302, Location=f"{goal.url}/w")(handler)

        goal.routes["/w"], server.routes["/w"] = there, here
        address = server.url.replace("//", "//user:pa%20ss@")
        assert Url(f"{address}/w", SHA).load(SMALL).sha256 == SHA
    finally:
        goal.close()
    mine = ("Basic dXNlcjpwYSBzcw==", None)
    assert seen == [mine, (None, None), mine, (None, "bytes=1000000-")]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://192.0.2.1/w", SafetyError),
        ("file:///etc/passwd", SafetyError),
        ("/etc/passwd", SafetyError),
        ("", SafetyError),
        ("https://[x", WeightsError),
        ("https://127.0.0.1:99999/w", WeightsError),
        ("https://127.0.0.1:1/a b", WeightsError),
        ("https://127.0.0.1:1/a\nb", WeightsError),
        ("https://127.0.0.1:1/ä", WeightsError),
        ("https://127.0.0.1:1/w", WeightsError),
    ],
)
def test_an_address_that_is_none_or_answers_nothing_is_told_in_one_line(url, error):
    with pytest.raises(error) as caught:
        Url(url, SHA).load(SMALL)
    assert "\n" not in str(caught.value) and caught.value.exit in (4, 6)


SECRETS = {
    "refused": "https://user:SECRET@127.0.0.1:1/w?token=SECRET#SECRET",
    "plain http": "http://SECRET@192.0.2.1/w?token=SECRET",
    "a slash in the password": "https://user:SEC/SECRET@127.0.0.1/w",
    "a space": "https://127.0.0.1/w?token=SECRET SECRET",
    "an unknown scheme": "s3://SECRET:SECRET@bucket/w",
    "not found": "{here}/none?token=SECRET",
    "another hash": "{here}/other?token=SECRET",
    "no weights": "{here}/page?token=SECRET",
    "sent on": "{here}/on?token=SECRET",
    "sent on to plain http": "{here}/down?token=SECRET",
}


@pytest.mark.parametrize("sha256", [SHA, "any"])
@pytest.mark.parametrize("case", SECRETS)
def test_no_secret_of_an_address_is_ever_shown(server, own_cache, caplog, case, sha256):
    server.routes |= {
        "/other?token=SECRET": OTHER,
        "/page?token=SECRET": b"<html>SE</html>",
        "/on?token=SECRET": answered(302, Location="/none?signature=SECRET"),
        "/down?token=SECRET": answered(302, Location="http://192.0.2.1/?signature=SECRET"),
    }
    source = Url(SECRETS[case].replace("{here}", server.url), sha256)
    with caplog.at_level(logging.DEBUG):
        try:
            weights = source.load(SMALL)
            told = f"{weights.origin}{weights.facts}{weights.pinned}"
        except XferError as error:
            told = str(error)
    records = "".join(p.read_text() for p in (own_cache / "weights").glob("*.json"))
    assert "SECRET" not in told + repr(source) + caplog.text + records
    assert not [p for p in (own_cache / "weights").iterdir() if "SECRET" in p.name]


# Processes


SCRIPT = """
import json, os, sys
from backbones import BACKBONES
from xfer.core.log import open_log
from xfer.weights.source.url import Url
open_log(None)
print("ready", flush=True)
for line in sys.stdin:
    os.environ["XFER_CACHE"], address, sha256 = json.loads(line)
    print(Url(address, sha256).load(BACKBONES["digits_resnet"]).sha256, flush=True)
"""


def begin(running: subprocess.Popen[str], server: Server, sha256: str = SHA) -> None:
    assert running.stdin is not None
    line = json.dumps([os.environ["XFER_CACHE"], f"{server.url}/w", sha256])
    running.stdin.write(line + "\n")
    running.stdin.flush()


def answer_of(running: subprocess.Popen[str]) -> list[str]:
    """What the process prints for one file, the hash last."""
    assert running.stdout is not None
    lines = [running.stdout.readline()]
    while len(lines[-1].strip()) != 64:
        assert lines[-1], "the process has ended"
        lines.append(running.stdout.readline())
    return [line.strip() for line in lines]


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[int], list[subprocess.Popen[str]]]]:
    """So many processes that load what they are sent. The tests share them: to start one takes
    longer than any transfer here."""
    started: list[subprocess.Popen[str]] = []

    def alive(count: int) -> list[subprocess.Popen[str]]:
        started[:] = [running for running in started if running.poll() is None]
        path = [str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")]
        new = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            )
            for _ in range(count - len(started))
        ]
        assert [running.stdout.readline() for running in new if running.stdout] == [
            "ready\n"
        ] * len(new)
        started.extend(new)
        return started[:count]

    yield alive
    for running in started:
        running.kill()
        running.communicate()


@pytest.mark.parametrize("sha256", [SHA, "any"])
def test_of_two_processes_one_fetches_and_the_other_waits(server, own_cache, processes, sha256):
    waiting = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        waiting.wait(600)
        Ranged(DATA)(handler)

    server.routes["/w"] = slow
    both = processes(2)
    for running in both:
        begin(running, server, sha256)
    deadline = time.monotonic() + 600
    while not any(_waits(running.pid) for running in both):
        assert time.monotonic() < deadline, "both fetch"
        time.sleep(0.01)
    waiting.set()
    said = [answer_of(running) for running in both]
    assert sum("waiting for process" in "".join(lines) for lines in said) == 1
    assert [lines[-1] for lines in said] == [SHA, SHA] and server.asked == ["/w"]


def test_what_a_killed_process_had_is_not_fetched_again(server, own_cache, stopping, processes):
    first, second = Ranged(DATA, 1_500_000), Ranged(DATA)

    def hang(handler: BaseHTTPRequestHandler) -> None:
        first(handler)
        handler.wfile.flush()
        stopping.wait(600)

    server.routes["/w"] = hang
    (running,), part = processes(1), own_cache / "weights" / f"{SHA}.part"
    begin(running, server)
    while not (part.is_file() and part.stat().st_size == 1_500_000):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.communicate()
    server.routes["/w"] = second
    loaded(server)
    assert second.asked == ["bytes=1500000-"] and left_over(own_cache) == {SHA}


def _waits(pid: int) -> bool:
    """Whether the process stands in the queue for a lock."""
    locks = Path("/proc/locks")
    if not locks.is_file():
        pytest.skip("this system does not list its locks")
    return any("->" in line and f" {pid} " in line for line in locks.read_text().splitlines())


def test_data_and_weights_share_the_transfer_and_differ_in_the_error(server, tmp_path):
    server.routes["/x"] = answer = Ranged(DATA, 1_000_000)
    assert fetch(f"{server.url}/x", tmp_path / "x") == SHA
    assert answer.asked == [None, "bytes=1000000-"]
    assert fetch(f"{server.url}/x", tmp_path / "x", SHA[:8]) == SHA
    with pytest.raises(WeightsError, match=r"not a valid address.*https://") as caught:
        fetch("https://[x", tmp_path / "y", None, RESUMABLE_WEIGHTS)
    assert caught.value.number == 454
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_without_a_hash_no_file_of_the_cache_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"E450.*type source=file source\.path=FILE"):
        Url(url="http://127.0.0.1:1/a.pt", sha256="any").load(SMALL)
    (tmp_path / "a.pt").write_bytes(DATA)
    assert File(str(tmp_path / "a.pt")).load(SMALL).sha256 == SHA
    with pytest.raises(WeightsError, match=rf"E450.*put the file at .*{SHA}") as told:
        Url(url="http://127.0.0.1:1/a.pt", sha256=SHA).load(SMALL)
    place = Path(told.value.fix.removeprefix("put the file at ").removesuffix(" yourself"))
    place.write_bytes(DATA)
    assert Url(url="http://127.0.0.1:1/a.pt", sha256=SHA).load(SMALL).sha256 == SHA
