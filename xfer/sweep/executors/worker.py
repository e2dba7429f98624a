"""The process that starts the jobs of one slot, and stops them when the sweep is gone.

It reads orders as lines of JSON, ``{"run": [...], "output": FILE}``, one job after the other, and
writes ``began PID`` and ``ended CODE`` for each. A job is forked from it, where nothing is computed
yet and, with ``--persistent``, what a run needs is imported: a crash ends the job alone.

A signal that is sent to every process of a sweep is for the jobs and for the sweep itself. A worker
ignores it, since nobody else can say how its job ends.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

from xfer.__main__ import _main, import_at_ease
from xfer.core.files import open_to_append
from xfer.core.log import flush
from xfer.core.signals import SENT_TO_ALL, blocked

_NEEDED = (
    *("timm", "torchvision.transforms.v2", "sklearn.datasets", "sklearn.metrics", "xfer.workflow"),
    *("xfer.config.hydra", "xfer.training.fit", "xfer.evaluation.evaluate", "xfer.report.write"),
)
_LOOK_S = 0.05
"""Between two looks whether the job has ended."""


def main(arguments: list[str]) -> None:
    """Serve one slot until the input ends. ``arguments``: its cores, then perhaps a flag."""
    # What was ignored stays so (nohup), here and in the jobs; the rest gets a handler, because a
    # program that is started does not inherit one.
    for number in SENT_TO_ALL:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)
    # What libraries print while they are imported is for people, and no word of this process.
    answers = os.dup(1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, json.loads(arguments[0]))
    import_at_ease()
    if "--persistent" in arguments:
        for module in _NEEDED:
            importlib.import_module(module)
        from xfer.core import memory

        # A job that looks for garbage would copy every page it shares with this one.
        memory.set_aside()
    for line in sys.stdin:
        order = json.loads(line)
        with open_to_append(Path(order["output"])) as stream, warnings.catch_warnings(), blocked():
            # The threads of a BLAS, which has handlers of its own for a fork.
            warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
            child = os.fork()
            if not child:
                _be_a_job(order["run"], stream.fileno(), "--persistent" not in arguments)
        _answer(answers, f"began {child}\n")
        code = os.waitstatus_to_exitcode(_wait(child))
        _answer(answers, f"ended {code if code >= 0 else 128 - code}\n")
    # To take the libraries apart takes as long as to import them, and what was set aside makes some
    # complain. Nothing here is left to be written.
    os._exit(0)


def _answer(answers: int, text: str) -> None:
    # Whoever asked may be gone; then the input ends as well.
    with suppress(BrokenPipeError):
        os.write(answers, text.encode())


def _wait(child: int) -> int:
    """How the job ends. Nothing is ordered meanwhile, so whatever there is to read is the end of
    the input: the sweep is gone, and the job is stopped in good order."""
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([0], [], [], _LOOK_S)[0]:
            os.kill(child, signal.SIGTERM)
            return os.waitpid(child, 0)[1]
    return done[1]


def _be_a_job(arguments: list[str], stream: int, exits: bool) -> None:
    """In the forked process, which holds the worker's pipe open until it ends: the run, and an end
    that nothing above sees. Where it ``exits`` as a program does, threads are waited for and what
    libraries do at exit is done: some loggers send the last of a run then."""
    code = 1
    try:
        # Signals, which are blocked still, do what they do in a process that has just begun.
        for number in SENT_TO_ALL:
            if signal.getsignal(number) != signal.SIG_IGN:
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_ALL)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (stream, 1), (stream, 2)):
            os.dup2(source, target)
        code = _main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        flush()
        if exits:
            with suppress(BaseException):
                threading._shutdown()  # type: ignore[attr-defined]
                atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
