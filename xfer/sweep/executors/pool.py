"""Jobs in processes of their own, one to a slot, started by a worker that outlives their crash."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from xfer.core.files import open_to_append
from xfer.core.run_folder import OUTPUT
from xfer.core.signals import Stopped, blocked, noted
from xfer.sweep.executors.slots import JobSlot

_LOOK_S = 0.2
"""Between two looks at what nobody announces, such as a signal."""


@dataclass(frozen=True)
class Task:
    """A command line of xfer, run in a slot for the job ``number`` in ``folder``."""

    number: int
    arguments: tuple[str, ...]
    folder: Path


@dataclass
class _SlotWorker:
    """The process that starts the jobs of one slot (:mod:`xfer.sweep.executors.worker`), and its
    job, whose process is ``child``. ``answers`` ends when both are gone, so a job whose worker was
    killed is waited for. ``signals`` wait until the job has a process."""

    slot: int
    process: subprocess.Popen[bytes]
    orders: int
    answers: int
    task: Task | None = None
    child: int = 0
    signals: list[int] = field(default_factory=list)

    def begin(self, task: Task) -> None:
        self.task = task
        order = {"run": task.arguments, "output": str(task.folder / OUTPUT)}
        with suppress(BrokenPipeError):  # should it be gone, its answers end as well
            os.write(self.orders, json.dumps(order).encode() + b"\n")

    def stop(self, *numbers: int) -> None:
        """Pass signals on to the job."""
        self.signals += numbers if self.task else ()
        while self.child and self.signals:
            with suppress(ProcessLookupError):
                os.kill(self.child, self.signals.pop(0))

    def read_answer(self) -> int | None:
        """Read an answer; the exit code of the job where it has ended, of the worker where that
        is gone as well, and alone would have known it."""
        answers = os.read(self.answers, 4096)  # each is written, and so read, as a whole
        if not answers:
            code = self.close()
            if self.task:
                how = f"was killed by signal {-code}" if code < 0 else f"left with exit {code}"
                with open_to_append(self.task.folder / OUTPUT) as stream:
                    stream.write(f"the process that starts the jobs of slot {self.slot} {how}\n")
            return 128 - code if code < 0 else code or 1
        for line in answers.splitlines():
            word, number = line.split()
            if word == b"ended":
                self.child, self.signals = 0, []
                return int(number)
            self.child = int(number)
            self.stop()
        return None

    def close(self) -> int:
        """Let the worker end; its exit code, or a signal below 0."""
        os.close(self.orders)
        code = self.process.wait()
        os.close(self.answers)
        return code


@dataclass
class Pool:
    """``slots`` that take tasks as they become free. ``persistent``: a slot imports torch once,
    and forks for every job. ``asked``: the signals that this process got."""

    slots: Sequence[JobSlot]
    persistent: bool = False
    asked: list[int] = field(default_factory=list, init=False)
    _workers: dict[int, _SlotWorker] = field(default_factory=dict, init=False)

    def run(
        self,
        take: Callable[[], Task | None],
        ended: Callable[[Task, int], bool],
        later: Callable[[], bool] = lambda: False,
        tick: Callable[[dict[int, Task]], None] = lambda tasks: None,
    ) -> None:
        """Run what ``take`` gives until it gives nothing more and all have ended.

        ``ended`` gets each task with its exit code (128 + n for signal n; that of the worker where
        the job's was lost, once the job is gone as well) and returns whether the others stop.
        ``later``: whether ``take``, which gives nothing now, may give something without anything
        happening here. ``tick`` gets the tasks at work by slot several times a second. SIGINT and
        SIGTERM are passed on to every job, once for each time they come; when all have saved their
        state and ended, Stopped is raised.
        """
        stopping, passed, changed = False, 0, True
        with noted(self.asked.append), self._closed():
            while True:
                for number in self.asked[passed:]:
                    self._stop(number)
                    stopping, passed = True, passed + 1
                if not stopping and (changed or later()):
                    self._fill(take)
                if not self._tasks() and (stopping or self.asked or not later()):
                    break
                tick(self._tasks())
                changed = False
                for task, code in self._look():
                    changed = True
                    if ended(task, code):
                        stopping = True
                        self._stop(signal.SIGTERM)
        if self.asked:
            raise Stopped(self.asked[0])

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """After it no job is at work and no worker is left, also where an error is on its way."""
        try:
            yield
        finally:
            self._stop(signal.SIGTERM)
            while self._tasks():
                [*self._look()]
            while self._workers:
                self._workers.popitem()[1].close()

    def _tasks(self) -> dict[int, Task]:
        return {at: worker.task for at, worker in self._workers.items() if worker.task}

    def _stop(self, number: int) -> None:
        for worker in self._workers.values():
            worker.stop(number)

    def _fill(self, take: Callable[[], Task | None]) -> None:
        for slot in self.slots:
            if slot.number in self._tasks():
                continue
            if self.asked or (task := take()) is None:
                return
            worker = self._workers.get(slot.number) or self._start(slot)
            worker.begin(task)

    def _start(self, slot: JobSlot) -> _SlotWorker:
        module, cores = "xfer.sweep.executors.worker", json.dumps(slot.cores)
        command = [sys.executable, "-m", module, cores, *["--persistent"] * self.persistent]
        (stdin, orders), (answers, stdout) = os.pipe(), os.pipe()
        try:
            with blocked():
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    env=slot.environment(),
                    # A Ctrl-C on the terminal is for the sweep alone, which passes it on.
                    start_new_session=True,
                )
        finally:
            os.close(stdin)
            os.close(stdout)
        worker = self._workers[slot.number] = _SlotWorker(slot.number, process, orders, answers)
        return worker

    def _look(self) -> Iterator[tuple[Task, int]]:
        """The tasks that have ended, after a moment in which some may end, with their codes."""
        pipes = [worker.answers for worker in self._workers.values()]
        ready = select.select(pipes, [], [], _LOOK_S)[0]
        for worker in [w for w in self._workers.values() if w.answers in ready]:
            task, code = worker.task, worker.read_answer()
            if worker.process.returncode is not None:
                del self._workers[worker.slot]
            if task and code is not None:
                worker.task = None
                yield task, code
