"""Runs in processes of their own that do not import torch anew: forks of a server that has.

``start(folder, *options)`` stands for ``python -m xfer ...`` where the command line itself is not
what a test is about: importing takes three times as long as a short run of the digits. The server
has one thread and ends with the process that uses it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Everything that a run imports, but onnxruntime: it starts a thread, for which every fork would
# wait for ever when it ends.
IMPORTED = [
    *("matplotlib.pyplot", "timm", "torchvision.transforms.v2", "sklearn.datasets", "jinja2"),
    *("sklearn.metrics", "torchmetrics.functional.classification", "safetensors.torch", "hydra"),
    *(
        "xfer.training.fit",
        "xfer.training.features.feature_switch",
        "xfer.report.write",
        "xfer.config.hydra",
    ),
    *("xfer.evaluation.evaluate", "xfer.export", "onnxscript.optimizer"),
    *("onnx.reference", "torch.export._trace", "torch.onnx._internal.exporter._core"),
]
COMMAND = "from xfer.__main__ import main\nmain()\n"


def warm(modules: Sequence[str] = IMPORTED) -> None:
    """Import all that a run does, once for all of them."""
    for module in modules:
        importlib.import_module(module)
    import torch

    # A process that has used OpenMP's threads forks children that wait for them for ever.
    torch.set_num_threads(1)


class Server:
    """The process whose forks the runs are, spoken to in lines of JSON. It has torch and
    ``modules``."""

    def __init__(self, *modules: str) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._lines = ours.makefile("rw")
        ours.close()
        self.ask()  # it has imported everything

    def ask(self, **request: object) -> int | None:
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        answer: int | None = json.loads(self._lines.readline())
        return answer

    def close(self) -> None:
        self._lines.close()
        self._process.wait()


@functools.cache
def server() -> Server:
    started = Server(*IMPORTED)
    atexit.register(started.close)
    return started


class Run:
    """A forked run, with as much of ``subprocess.Popen`` as the tests use."""

    def __init__(self, server: Server, **request: object) -> None:
        self.output, self._server = Path(str(request["output"])), server
        found = server.ask(**request)
        assert found is not None
        self.pid = found
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("xfer", timeout)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        self.wait(timeout)
        return self.output.read_text(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


outputs = iter(range(sys.maxsize))


def start(
    folder: Path,
    *options: str,
    script: str = COMMAND,
    start_new_session: bool = False,
    of: Server | None = None,
    **env: str,
) -> Run:
    """A run of the digits in ``folder``, or ``script`` in its place, with these arguments; a fork
    ``of`` that server, else of the one that all tests share."""
    # Beside the folder, not in it: what is there is compared.
    output = folder.with_name(f".{folder.name}.{next(outputs)}.output")
    return Run(
        of or server(),
        output=str(output),
        folder=str(folder),
        argv=["xfer", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        session=start_new_session,
        script=script,
    )


def program(path: str | Path, folder: Path, *options: str) -> list[str]:
    """The lines that the program in ``path`` prints with these options, which it ends well with."""
    place, name = str(Path(path).parent), str(path)
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {place!r})\nrunpy.run_path({name!r}, run_name='__main__')\n"
    )
    run = start(folder, *options, script=script)
    said, _ = run.communicate(3600)
    assert run.returncode == 0, said[-3000:]
    return said.splitlines()


def serve(lines) -> dict | None:
    """Fork a process a request until the lines end; the request, in the fork."""
    for line in lines:
        request = json.loads(line)
        answer: int | None = 0
        if "poll" in request:
            found, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        elif request:
            answer = os.fork()
            if answer == 0:
                return request
        lines.write(json.dumps(answer) + "\n")
        lines.flush()
    return None


def become(request: dict) -> None:
    """Make this process one that ``python -m xfer`` would have started so."""
    if request["session"]:
        os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    paths = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [request["folder"], *(path for path in paths if path not in sys.path)]
    sys.argv = request["argv"]


if __name__ == "__main__":
    warm(sys.argv[2:])
    if sys.argv[2:] == IMPORTED:
        import traced

        from xfer.data.digits import pictures
        from xfer.export import onnx_graph

        pictures()
        onnx_graph.trace = traced.trace
    # What was imported is no garbage, and pages that nobody writes to are shared.
    gc.collect()
    from xfer.core import memory

    memory.set_aside()
    with socket.socket(fileno=int(sys.argv[1])) as other, other.makefile("rw") as stream:
        found = serve(stream)
    if found is not None:
        become(found)
        exec(found["script"], {"__name__": "__main__"})
