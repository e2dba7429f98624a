"""What all tests share: a cache of their own, the real assets, a server on loopback."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# One test process a core: more threads than that would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported to collect the tests is kept: to look for garbage among it finds none, and
    takes two fifths of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder a test. ``mktemp`` would list all earlier ones each time."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True, scope="session")
def cache_of_shared_runs(caches: Iterator[Path]) -> Iterator[None]:
    """Nor does a run that the tests of a module share."""
    cache = next(caches)
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFER_CACHE", str(cache))
        yield


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    cache = next(caches)
    cache.mkdir()
    monkeypatch.setenv("XFER_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True, scope="session")
def traced_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test has traced serves all, see ``traced.py``; also those of the other worker."""
    import traced

    from xfer.export import onnx_graph

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "trace", traced.trace)
        patch.setenv(traced.FOLDER, str(folder))
        yield


@pytest.fixture
def traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph of another test serves this one."""
    monkeypatch.delenv("TRACED_GRAPHS")


def look_through_once() -> None:
    """Collect garbage, and have no later look for it go through what is left."""
    gc.collect()
    if "torch" in sys.modules:
        from xfer.core import memory

        memory.set_aside()
    else:
        gc.freeze()
    _known_modules[0] = len(sys.modules)


_known_modules = [0]
_MANY = 100  # modules that one import brings, of a library that is worth a look of its own


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage() -> None:
    """A run looks for garbage several times, each time through all that was ever imported and all
    that pytest holds: a second each in a process that has run half the tests."""
    gc.set_threshold(100_000, 10, 10)
    look_through_once()


@pytest.fixture(autouse=True)
def new_libraries_are_no_garbage() -> None:
    if len(sys.modules) > _known_modules[0] + _MANY:
        look_through_once()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The real photographs and weights; the test is skipped where they are absent."""
    beside = Path(__file__).parents[1].parent / "shared" / "assets"
    path = Path(os.environ.get("XFER_ASSETS") or beside).resolve()
    if not (path / "Canidae").is_dir():
        pytest.skip(f"no assets in {path}; set XFER_ASSETS")
    return path


@pytest.fixture(scope="module")
def digits() -> Any:
    """The network that ships with xfer, as :func:`xfer.api.load` gives it."""
    from shipped import SHIPPED

    from xfer import api

    return api.load(SHIPPED)


@pytest.fixture(scope="module")
def images(digits: Any) -> Any:
    """Images of noise for it, float32 (6, 3, height, width)."""
    import numpy as np

    size = digits.card.input.size
    return np.random.default_rng(0).normal(size=(6, 3, *size)).astype(np.float32)


def answered(status: int, body: bytes = b"", **headers: str) -> Answer:
    """An answer with these headers, whatever the body is."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


class Server:
    """Answers below ``url`` with what is in ``routes``, and notes every path that was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, bytes | Answer] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                answer = server.routes.get(self.path)
                if callable(answer):
                    answer(self)
                elif answer is None:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A Hugging Face hub, a :class:`hub_server.HubServer`, that the clients of this process ask
    instead of the public one, with a cache of their own in ``tmp_path / "hf"``."""
    from hub_server import HubServer, connect

    running = HubServer()
    connect(monkeypatch, running.url, tmp_path)
    yield running
    running.close()
