"""The process that starts the jobs of one slot, and stops them when whoever asked for them is gone.

It reads orders as lines of JSON, ``{"run": [...], "output": FILE}`` and ``{"signal": 15}``, and
writes ``began PID`` and ``ended CODE`` for every job. A job is a fresh process; with
``--persistent`` it is forked from this one, which has imported what a run needs and computed
nothing. Either way a crash ends the job alone.

A signal that is sent to every process of a sweep is for its jobs and for who conducts it. A keeper
heeds none, since nobody else can tell how its job ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import FrameType

from xfer.core.files import handle_of
from xfer.core.log import flush
from xfer.core.signals import SENT_TO_ALL, blocked

_NEEDED = (
    *("timm", "torchvision.transforms.v2", "torchmetrics.functional.classification", "tqdm"),
    *(
        "sklearn.datasets",
        "sklearn.metrics",
        "hydra",
        "xfer.config.hydra",
        "xfer.workflow",
        "xfer.training.fit",
    ),
    *("xfer.evaluation.evaluate", "xfer.report.write", "torch.optim.sgd", "torch.optim.adamw"),
)


def main(arguments: list[str]) -> None:
    """Serve one slot until the input ends. ``arguments``: its cores, and the end of a pipe that
    every job inherits, so that whoever reads it learns when the last of them is gone."""
    withstand()
    # What libraries print while they are imported is for people, and no word of this process.
    told = os.dup(1)
    os.dup2(2, 1)
    cores, alive, persistent = json.loads(arguments[0]), int(arguments[1]), arguments[2:] != []
    os.set_inheritable(alive, False)  # again with a job alone
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if persistent:
        from xfer.__main__ import import_at_ease

        import_at_ease()
        for module in _NEEDED:
            importlib.import_module(module)
        gc.freeze()  # a job that looks for garbage would copy every page it shares with this one
    Keeper(persistent, alive, told).serve()
    # To take the libraries apart takes as long as to import them, and what gc.freeze holds makes
    # some complain. Nothing here is left to be written.
    os._exit(0)


def withstand() -> None:
    """Let no signal end this process. What is ignored stays so (``nohup``), here and in the jobs;
    the rest gets a handler, because a program that is started does not inherit one."""
    for number in SENT_TO_ALL:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _pass)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)


def _yield_again() -> None:
    """In a forked job, whose signals are still blocked: as in a process that has just begun."""
    for number in (*SENT_TO_ALL, signal.SIGCHLD):
        if signal.getsignal(number) != signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)


def _pass(number: int, frame: FrameType | None) -> None:
    pass


class Keeper:
    """One job at a time, which is waited for and never polled."""

    def __init__(self, persistent: bool, alive: int, told: int) -> None:
        self.persistent, self.alive, self.told = persistent, alive, told
        self.child: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended, self._wake = os.pipe()
        for end in (self._ended, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, self._noted)
        self._text = b""

    def _noted(self, number: int, frame: FrameType | None) -> None:
        os.write(self._wake, b".")

    def serve(self) -> None:
        """Obey orders; when there is nobody left to give any, end the job in good order."""
        open_, inputs = True, [0, self._ended]
        while open_ or self.child is not None:
            ready = select.select(inputs, [], [])[0]
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._reap()
            if 0 in ready:
                text = os.read(0, 65536)
                if not text:
                    open_, inputs = False, [self._ended]
                    self._signal(signal.SIGTERM)
                self._obey(text)

    def _obey(self, text: bytes) -> None:
        *lines, self._text = (self._text + text).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "run" in order:
                self.child = self._start(order["run"], order["output"])
                self._tell("began", self.child)
            else:
                self._signal(order["signal"])

    def _signal(self, number: int) -> None:
        if self.child is not None:
            os.kill(self.child, number)

    def _start(self, arguments: list[str], output: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        stream = handle_of(Path(output), flags, follow=False)
        os.set_blocking(stream, True)
        try:
            if not self.persistent:
                command = [sys.executable, "-m", "xfer", *arguments]
                nothing = subprocess.DEVNULL
                self._process = subprocess.Popen(
                    command, stdin=nothing, stdout=stream, stderr=stream, pass_fds=(self.alive,)
                )
                return self._process.pid
            with warnings.catch_warnings():
                # The threads of a BLAS, which has handlers of its own for a fork.
                warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
                with blocked():
                    child = os.fork()
                    if child == 0:
                        self._be_a_job(arguments, stream)
            return child
        finally:
            os.close(stream)

    def _be_a_job(self, arguments: list[str], stream: int) -> None:
        """In the forked process: the run, and an end that nothing above sees."""
        code = 1
        try:
            _yield_again()
            os.close(self.told)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (stream, 1), (stream, 2)):
                os.dup2(source, target)
            from xfer.__main__ import _main

            code = _main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            flush()
            os._exit(code)

    def _reap(self) -> None:
        if self.child is None:
            return
        child, status = os.waitpid(self.child, os.WNOHANG)
        if child:
            self.child = None
            code = os.waitstatus_to_exitcode(status)
            told = code if code >= 0 else 128 - code
            if self._process is not None:
                self._process.returncode = code
            self._tell("ended", told)

    def _tell(self, word: str, number: int) -> None:
        # Whoever asked may be gone; then the input ends as well.
        with suppress(BrokenPipeError):
            os.write(self.told, f"{word} {number}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
