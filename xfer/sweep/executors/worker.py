"""The process that starts the jobs of one slot, and stops them when the sweep is gone.

It reads orders as lines of JSON, ``{"run": [...], "output": FILE}``, one job after the other, and
writes ``began PID`` and ``ended CODE`` for each. A job is forked from it: with ``--persistent`` it
runs there, where what a run needs is imported and nothing is computed yet; otherwise it becomes a
fresh process. Either way a crash ends the job alone.

A signal that is sent to every process of a sweep is for the jobs and for the sweep itself. A worker
ignores it, since nobody else can say how its job ends.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import FrameType

from xfer.core.files import handle_of
from xfer.core.log import flush
from xfer.core.signals import SENT_TO_ALL, blocked

_NEEDED = (
    *("timm", "torchvision.transforms.v2", "torchmetrics.functional.classification"),
    *("sklearn.datasets", "sklearn.metrics", "hydra", "xfer.config.hydra", "xfer.workflow"),
    *("xfer.training.fit", "xfer.evaluation.evaluate", "xfer.report.write"),
    *("torch.optim.sgd", "torch.optim.adamw"),
)


def main(arguments: list[str]) -> None:
    """Serve one slot until the input ends. ``arguments``: its cores, then perhaps a flag."""
    # What was ignored stays so (nohup), here and in the jobs; the rest gets a handler, because a
    # program that is started does not inherit one.
    for number in SENT_TO_ALL:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _pass)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)
    # What libraries print while they are imported is for people, and no word of this process.
    answers = os.dup(1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, json.loads(arguments[0]))
    persistent = "--persistent" in arguments
    if persistent:
        from xfer.__main__ import import_at_ease

        import_at_ease()
        for module in _NEEDED:
            importlib.import_module(module)
        from xfer.core import memory

        # A job that looks for garbage would copy every page it shares with this one.
        memory.set_aside()
    # A signal, as the end of a job sends one, is written here as well: one select waits for all.
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _pass)
    for line in sys.stdin:
        order = json.loads(line)
        child = _start(order["run"], Path(order["output"]), persistent, answers)
        _answer(answers, f"began {child}\n")
        code = os.waitstatus_to_exitcode(_wait(child, ended))
        _answer(answers, f"ended {code if code >= 0 else 128 - code}\n")
    # To take the libraries apart takes as long as to import them, and what was set aside makes some
    # complain. Nothing here is left to be written.
    os._exit(0)


def _pass(number: int, frame: FrameType | None) -> None:
    pass


def _answer(answers: int, text: str) -> None:
    # Whoever asked may be gone; then the input ends as well.
    with suppress(BrokenPipeError):
        os.write(answers, text.encode())


def _wait(child: int, ended: int) -> int:
    """How the job ends. Nothing is ordered meanwhile, so whatever there is to read is the end of
    the input: the sweep is gone, and the job is stopped in good order."""
    while True:
        ready = select.select([0, ended], [], [])[0]
        if 0 in ready:
            os.kill(child, signal.SIGTERM)
            return os.waitpid(child, 0)[1]
        os.read(ended, 4096)
        if (done := os.waitpid(child, os.WNOHANG))[0]:
            return done[1]


def _start(arguments: list[str], output: Path, persistent: bool, answers: int) -> int:
    stream = handle_of(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, follow=False)
    os.set_blocking(stream, True)
    # The job holds this pipe open, whose end says that worker and job are gone.
    os.set_inheritable(answers, not persistent)
    with warnings.catch_warnings(), blocked():
        # The threads of a BLAS, which has handlers of its own for a fork.
        warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
        child = os.fork()
        if not child:
            _be_a_job(arguments, stream, persistent)
    os.close(stream)
    return child


def _be_a_job(arguments: list[str], stream: int, persistent: bool) -> None:
    """In the forked process: the run, and an end that nothing above sees."""
    code = 1
    try:
        # Signals, which are blocked still, do what they do in a process that has just begun.
        signal.set_wakeup_fd(-1)
        for number in (*SENT_TO_ALL, signal.SIGCHLD):
            if signal.getsignal(number) != signal.SIG_IGN:
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (stream, 1), (stream, 2)):
            os.dup2(source, target)
        if not persistent:
            os.execv(sys.executable, [sys.executable, "-m", "xfer", *arguments])
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


if __name__ == "__main__":
    main(sys.argv[1:])
