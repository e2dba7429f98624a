"""Jobs in processes of their own, one to a slot, each held by a keeper that outlives its crash."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from xfer.resume import OUTPUT
from xfer.signals import Stopped, noted
from xfer.sweep.slots import Slot


@dataclass(frozen=True)
class Task:
    """A command line of xfer, run in the slot for the job ``number`` in ``folder``."""

    number: int
    arguments: tuple[str, ...]
    folder: Path


@dataclass
class _Keeper:
    """The process that starts the jobs of one slot (:mod:`xfer.keeper`), and its job."""

    process: subprocess.Popen[bytes]
    reader: threading.Thread
    task: Task | None = None

    def send(self, order: object) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        # Should it have died, its reader tells.
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()


_Event = tuple[int, int | None]
"""A slot and the exit code of its job, ``None`` when the keeper is gone; or -1 and a signal."""


@dataclass
class Pool:
    """``slots`` that take tasks as they become free. ``persistent``: a slot imports torch once,
    and forks for every job. ``tick`` is called with the tasks at work whenever something happens,
    and each second where ``live``."""

    slots: Sequence[Slot]
    persistent: bool = False
    live: bool = False
    tick: Callable[[dict[int, Task]], None] = lambda tasks: None
    _keepers: dict[int, _Keeper] = field(default_factory=dict)
    _events: queue.SimpleQueue[_Event] = field(default_factory=queue.SimpleQueue)
    asked: int | None = field(default=None, init=False)

    def run(
        self, take: Callable[[], Task | None], ended: Callable[[Task, int], int | None]
    ) -> None:
        """Run what ``take`` gives until it gives nothing more and all have ended.

        ``ended`` is told each exit code (128 + n for signal n); a signal number that it returns
        stops the others. SIGINT and SIGTERM are passed on to every job, once for each time they
        come; when all have saved their state and ended, Stopped is raised.
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
            if not self._tasks():
                return
            self.tick(self._tasks())
            try:
                at, what = self._events.get(timeout=1.0 if self.live else None)
            except queue.Empty:
                continue
            if at < 0:
                self._stop(what or signal.SIGTERM)
                continue
            keeper = self._keepers[at]
            task, keeper.task = keeper.task, None
            if what is None:
                self._bury(at)
            if task is not None and (number := ended(task, 137 if what is None else what)):
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
            keeper.task = task
            keeper.send({"run": list(task.arguments), "output": str(task.folder / OUTPUT)})

    def _keep(self, slot: Slot) -> _Keeper:
        command = [sys.executable, "-m", "xfer.keeper", json.dumps(slot.cores)]
        process = subprocess.Popen(
            [*command, *(["--persistent"] if self.persistent else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=slot.environment(),
            # A Ctrl-C on the terminal is for the sweep alone, which passes it on.
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(slot.number, process.stdout))
        keeper = self._keepers[slot.number] = _Keeper(process, reader)
        reader.start()
        return keeper

    def _read(self, at: int, stream: IO[bytes]) -> None:
        for line in stream:
            self._events.put((at, int(line)))
        self._events.put((at, None))

    def _stop(self, number: int) -> None:
        for keeper in self._keepers.values():
            if keeper.task:
                keeper.send({"signal": int(number)})

    def _bury(self, at: int) -> None:
        keeper = self._keepers.pop(at)
        for stream in (keeper.process.stdin, keeper.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        keeper.process.wait()
        keeper.reader.join()

    def _close(self) -> None:
        """Let every keeper go; a job that is still at work is told to stop, and waited for."""
        for keeper in self._keepers.values():
            assert keeper.process.stdin is not None
            keeper.process.stdin.close()
        for at in list(self._keepers):
            self._keepers[at].reader.join()
            self._bury(at)

    def _note(self, number: int) -> None:
        self.asked = self.asked or number
        self._events.put((-1, number))
