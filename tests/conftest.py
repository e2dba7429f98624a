"""What all tests share: a cache of their own, the real assets, a server on loopback."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# One test process a core: more threads than that would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Answer = Callable[[BaseHTTPRequestHandler], None]


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
def traced_graphs() -> Iterator[dict[str, bytes]]:
    """What torch traces holds no weight, as ``test_onnx_graph.py`` proves: one graph serves every
    test of this process that exports the same layers. Code of a test's own is traced each time, and
    so is a network of a test that clears this table of them."""
    from xfer.export import onnx_graph

    known: dict[str, bytes] = {}
    fresh = onnx_graph.trace

    def trace(traced: onnx_graph.Traced, opset: int) -> bytes:
        try:
            layers = onnx_graph.layers_of(traced.net)
        except onnx_graph.UnknownLayer:
            return fresh(traced, opset)
        key = repr(onnx_graph._key(traced, layers, opset))
        if key not in known:
            known[key] = fresh(traced, opset)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "trace", trace)
        yield known


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
