"""Signals that ask a run to stop: at once, or while training after the step in progress."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from xfer.core.log import log

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = frozenset(128 + number for number in _SIGNALS)
"""Exit codes of a process that one of them ended before it could say so itself."""
SENT_TO_ALL = (*_SIGNALS, signal.SIGHUP)
"""What a scheduler or a service manager sends to every process of a job at once."""


_Handler = Callable[[int, FrameType | None], object] | int | None
_MOMENT = 0.01


class Stopped(SystemExit):
    """A signal ended the run: 130 for SIGINT, 143 for the others. ``after`` says, with a space
    before it, what was done last."""

    def __init__(self, number: int, after: str = "") -> None:
        self.number, self.after = number, after
        self.exit = 130 if number == signal.SIGINT else 143
        super().__init__(self.exit)


class Workers:
    """The data workers of a run, which a stop makes useless. torch raises an error in the middle of
    anything when one of them ends, as a signal to the whole group makes them do."""

    def __init__(self) -> None:
        self._others = set(_children())
        self._before = signal.getsignal(signal.SIGCHLD)
        self._torchs: _Handler = None

    def ignore(self) -> None:
        """From here on nothing is raised when one ends; who needs it still learns of it."""
        handler = signal.getsignal(signal.SIGCHLD)
        if _is_torchs(handler):
            self._torchs = handler
            before = signal.SIG_DFL if _is_torchs(self._before) else self._before
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def end(self) -> None:
        """End those that the run has started, at once: to ask them takes seconds a loader."""
        for worker in set(_children()) - self._others:
            if worker.daemon:
                worker.kill()

    def heed(self) -> None:
        """Have torch watch workers again, which it does not ask for a second time."""
        if self._torchs is not None:
            signal.signal(signal.SIGCHLD, self._torchs)


def _is_torchs(handler: object) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("torch.")


def _children() -> list[Any]:
    module = sys.modules.get("multiprocessing")
    return module.active_children() if module else []


class Stop:
    """What the signals of a run asked for. While ``waits``, they are noted and not obeyed."""

    def __init__(self) -> None:
        self.workers, self.hook = Workers(), sys.unraisablehook
        self.begin()

    def begin(self) -> None:
        """Nothing has been asked for in this process, and nothing waits."""
        self.asked: int | None = None
        self.waits = self.noted = False
        self.owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self.workers.heed()
        self.workers = Workers()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. A second SIGINT does not wait."""
        if os.getpid() != self.owner:
            # In a data worker. Ctrl+C reaches the whole group; whether a worker is still needed,
            # the run knows.
            if number == signal.SIGTERM:
                os._exit(143)
            return
        self.workers.ignore()
        again = self.noted and self.asked == number == signal.SIGINT
        self.asked, self.noted = number, self.waits
        if not self.waits or again:
            self.obey()

    def obey(self, after: str = "") -> None:
        """Raise Stopped where a signal was noted."""
        if self.asked is not None:
            self.workers.end()
            raise Stopped(self.asked, after)

    def unheard(self, swallowed: Any) -> None:
        """For ``sys.unraisablehook``: a stop that was raised while Python forked or took an object
        apart, where nothing can be raised, comes again in a moment."""
        if isinstance(swallowed.exc_value, Stopped):
            number = swallowed.exc_value.number
            threading.Timer(_MOMENT, os.kill, (self.owner, number)).start()
        else:
            self.hook(swallowed)

    def explains(self, error: BaseException) -> bool:
        """Whether ``error`` is no more than what a stop did to the work: it was raised while that
        was obeyed, or is about a data worker that the same signal has ended."""
        if self.asked is None or isinstance(error, Stopped):
            return False
        lost = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Stopped):
            cause = cause.__cause__ or cause.__context__
        return lost or cause is not None


stop = Stop()
"""Of this process; a process does one run at a time."""


def ignore_in_worker(_: int) -> None:
    """For a data worker: what is for the run is not for it."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def heeded() -> Iterator[None]:
    """Within, signals end the run in good order; who handled SIGUSR1 or SIGUSR2 before is called
    after it (submitit requeues so), and a Slurm job that got SIGUSR1 is requeued."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop.begin()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    install()
    stop.hook, sys.unraisablehook = sys.unraisablehook, stop.unheard
    try:
        yield
    except BaseException as error:
        stop.workers.ignore()
        stop.workers.end()
        ended = Stopped(stop.asked or 0) if stop.explains(error) else error
        if not isinstance(ended, Stopped):
            raise
        _restore(before)
        try:
            _requeue(ended.number, before[signal.Signals(ended.number)])
        except Exception as refused:  # submitit's handler: out of time too often
            log.warning(f"Slurm does not requeue this job: {refused}")
        if ended.number == signal.SIGINT:
            # As Python has it: a notebook or a caller knows what to do.
            raise KeyboardInterrupt from error
        if ended is error:
            raise
        raise ended from error
    finally:
        sys.unraisablehook = stop.hook
        _restore(before)


@contextmanager
def blocked() -> Iterator[None]:
    """Within, these signals wait, and a process that is started begins with them blocked: between
    its start and its handlers it cannot be ended by one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def noted(note: Callable[[int], None]) -> Iterator[None]:
    """Within, ``note`` is called with the signals that would end this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            note(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def install() -> None:
    """Take the signals; once more where a library has put its own handlers over ours."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, stop)


def _restore(before: dict[signal.Signals, _Handler]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _requeue(number: int, handler: _Handler) -> None:
    if number not in (signal.SIGUSR1, signal.SIGUSR2):
        return
    if callable(handler):
        handler(number, None)
        return
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    program = shutil.which("scontrol")
    if number == signal.SIGUSR1 and program and re.fullmatch(r"\d+(_\d+)?", job):
        done = subprocess.run([program, "requeue", job], check=False)
        log.info(f"scontrol requeue {job}: exit {done.returncode}")
