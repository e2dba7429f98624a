"""Jobs in processes of their own, one to a slot, each held by a keeper that outlives its crash."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from xfer.core.files import open_to_append
from xfer.core.run_folder import OUTPUT
from xfer.core.signals import Stopped, blocked, noted
from xfer.sweep.executors.slots import Slot


@dataclass(frozen=True)
class Task:
    """A command line of xfer, run in the slot for the job ``number`` in ``folder``."""

    number: int
    arguments: tuple[str, ...]
    folder: Path


@dataclass
class _Keeper:
    """The process that starts the jobs of one slot (:mod:`xfer.sweep.executors.worker`), and its
    job. ``alive`` can be read when that process and its job are gone, ``child`` is the process of
    the job."""

    process: subprocess.Popen[bytes]
    alive: int
    reader: threading.Thread = field(init=False)
    task: Task | None = None
    child: int = 0
    asked: bool = False

    def send(self, order: object) -> bool:
        """Whether there is still somebody to obey it; should it have died, its reader tells."""
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def stop(self, number: int) -> None:
        """Pass a signal on to the job, also where nobody holds it any more."""
        if self.task is None:
            return
        self.asked = True
        if not self.send({"signal": int(number)}):
            self.stop_child(number)

    def stop_child(self, number: int) -> None:
        """Signal the job past whoever holds it."""
        if self.child:
            with suppress(ProcessLookupError):
                os.kill(self.child, number)

    def close(self) -> int:
        """How the process ended: its exit code, or a signal below 0. Whatever it said is read."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        os.close(self.alive)
        return self.process.wait()


_PAUSE = 0.2
"""Seconds between two looks at what nobody tells of."""
_Event = tuple[int, int | None]
"""A slot and the exit code of its job, ``None`` when the keeper is gone; or -1 and a signal."""


@dataclass
class Pool:
    """``slots`` that take tasks as they become free. ``persistent``: a slot imports torch once,
    and forks for every job. ``tick`` is called with the tasks at work whenever something happens,
    and each second where ``live``. ``later``: whether ``take``, which gives nothing now, may give
    something without anything happening here."""

    slots: Sequence[Slot]
    persistent: bool = False
    live: bool = False
    tick: Callable[[dict[int, Task]], None] = lambda tasks: None
    later: Callable[[], bool] = lambda: False
    _keepers: dict[int, _Keeper] = field(default_factory=dict)
    _events: queue.SimpleQueue[_Event] = field(default_factory=queue.SimpleQueue)
    asked: int | None = field(default=None, init=False)

    def run(
        self, take: Callable[[], Task | None], ended: Callable[[Task, int], int | None]
    ) -> None:
        """Run what ``take`` gives until it gives nothing more and all have ended.

        ``ended`` is told each exit code (128 + n for signal n; of the keeper where that was lost,
        when its job is gone as well); a signal number that it returns stops the others. SIGINT and
        SIGTERM are passed on to every job, once for each time they come; when all have saved their
        state and ended, Stopped is raised.
        """
        with noted(self._note):
            try:
                self._loop(take, ended)
            finally:
                self._close()
        if self.asked is not None:
            raise Stopped(self.asked)

    def _loop(
        self, take: Callable[[], Task | None], ended: Callable[[Task, int], int | None]
    ) -> None:
        stopping = False
        while True:
            if not (stopping or self.asked):
                self._fill(take)
            idle = len(self._tasks()) < len(self.slots) and not (stopping or self.asked)
            waits = idle and self.later()
            if not (self._tasks() or waits):
                return
            self.tick(self._tasks())
            try:
                at, what = self._events.get(timeout=_PAUSE if waits else 1.0 if self.live else None)
            except queue.Empty:
                continue
            if at < 0:
                self._stop(what or signal.SIGTERM)
                continue
            keeper = self._keepers[at]
            task, keeper.task = keeper.task, None
            code = self._lost(at, task) if what is None else what
            if task is not None and (number := ended(task, code)):
                stopping = True
                self._stop(number)

    def _tasks(self) -> dict[int, Task]:
        return {at: keeper.task for at, keeper in self._keepers.items() if keeper.task}

    def _fill(self, take: Callable[[], Task | None]) -> None:
        for slot in self.slots:
            if self.asked or slot.number in self._tasks():
                continue
            task = take()
            if task is None:
                return
            keeper = self._keepers.get(slot.number) or self._keep(slot)
            keeper.task, keeper.asked = task, False
            keeper.send({"run": list(task.arguments), "output": str(task.folder / OUTPUT)})

    def _keep(self, slot: Slot) -> _Keeper:
        alive, held = os.pipe()
        command = [
            sys.executable,
            "-m",
            "xfer.sweep.executors.worker",
            json.dumps(slot.cores),
            str(held),
        ]
        try:
            with blocked():
                process = subprocess.Popen(
                    [*command, *(["--persistent"] if self.persistent else [])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=slot.environment(),
                    pass_fds=(held,),
                    # A Ctrl-C on the terminal is for the sweep alone, which passes it on.
                    start_new_session=True,
                )
        finally:
            os.close(held)
        keeper = self._keepers[slot.number] = _Keeper(process, alive)
        keeper.reader = threading.Thread(target=self._read, args=(slot.number, keeper))
        keeper.reader.start()
        return keeper

    def _read(self, at: int, keeper: _Keeper) -> None:
        assert keeper.process.stdout is not None
        for line in keeper.process.stdout:
            word, number = line.split()
            keeper.child = int(number) if word == b"began" else 0
            if word == b"ended":
                self._events.put((at, int(number)))
        if keeper.task:
            # A job whose keeper was killed is at work still, or saves its state. An order that
            # was on its way to the keeper is lost; a SIGTERM too many does no harm.
            if keeper.asked:
                keeper.stop_child(signal.SIGTERM)
            os.read(keeper.alive, 1)
        self._events.put((at, None))

    def _stop(self, number: int) -> None:
        for keeper in self._keepers.values():
            keeper.stop(number)

    def _lost(self, at: int, task: Task | None) -> int:
        """The code for the job of a keeper that is gone, which alone would have known it."""
        keeper = self._keepers.pop(at)
        keeper.reader.join()
        code = keeper.close()
        if task is not None:
            told = f"was killed by signal {-code}" if code < 0 else f"left with exit {code}"
            with open_to_append(task.folder / OUTPUT) as stream:
                stream.write(f"the process that starts the jobs of slot {at} {told}\n")
        return 128 - code if code < 0 else code or 1

    def _close(self) -> None:
        """Let every keeper go; a job that is still at work is told to stop, and waited for."""
        self._stop(signal.SIGTERM)
        for keeper in self._keepers.values():
            assert keeper.process.stdin is not None
            with suppress(BrokenPipeError):
                keeper.process.stdin.close()
        while self._keepers:
            _, keeper = self._keepers.popitem()
            keeper.reader.join()
            keeper.close()

    def _note(self, number: int) -> None:
        self.asked = self.asked or number
        self._events.put((-1, number))
