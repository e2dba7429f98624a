"""Jobs in processes of their own, one to a slot, started by a worker that outlives their crash."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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


class _SlotWorker:
    """The process that starts the jobs of one ``slot`` (:mod:`xfer.sweep.executors.worker`), and
    its ``task``, whose process is ``child``. What it writes ends when both are gone, so a job whose
    worker was killed is waited for. ``passed``: how many signals its last job has got."""

    def __init__(self, slot: JobSlot, persistent: bool) -> None:
        self.slot, self.child, self.passed = slot.number, 0, 0
        self.task: Task | None = None
        module, cores = "xfer.sweep.executors.worker", json.dumps(slot.cores)
        with blocked():
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, cores, *["--persistent"] * persistent],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=slot.environment(),
                # A Ctrl-C on the terminal is for the sweep alone, which passes it on.
                start_new_session=True,
            )

    def begin(self, task: Task) -> None:
        self.task = task
        order = {"run": task.arguments, "output": str(task.folder / OUTPUT)}
        with suppress(BrokenPipeError):  # should it be gone, its answers end as well
            self.process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]

    def stop(self, signals: Sequence[int]) -> None:
        """Pass on to the job, once it has a process, what it has not got of ``signals``."""
        for number in signals[self.passed :] if self.child else ():
            self.passed += 1
            with suppress(ProcessLookupError):
                os.kill(self.child, number)

    def read_answer(self) -> int | None:
        """Read an answer; the exit code of the job where it has ended, of the worker where that
        is gone as well, and alone would have known it."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            with self.process:  # its pipes are closed
                code = self.process.wait()
            if self.task:
                how = f"was killed by signal {-code}" if code < 0 else f"left with exit {code}"
                with open_to_append(self.task.folder / OUTPUT) as stream:
                    stream.write(f"the process that starts the jobs of slot {self.slot} {how}\n")
            return 128 - code if code < 0 else code or 1
        word, number = line.split()
        self.child = int(number) if word == b"began" else 0
        return int(number) if word == b"ended" else None


@dataclass
class Pool:
    """``slots`` that take tasks as they become free. ``persistent``: a slot imports torch once,
    and forks for every job. ``asked``: the signals that this process got; after the first of those
    that are for the jobs none begins."""

    slots: Sequence[JobSlot]
    persistent: bool = False
    asked: list[int] = field(default_factory=list, init=False)
    _signals: list[int] = field(default_factory=list, init=False)
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
        changed = True
        with noted(self._note):
            try:
                while True:
                    if changed or later():
                        self._fill(take)
                    if not self._tasks() and (self._signals or not later()):
                        break
                    tick(self._tasks())
                    stops = [ended(task, code) for task, code in self._look()]
                    self._signals += [signal.SIGTERM] * sum(stops)
                    changed = bool(stops)
            finally:  # no job stays at work and no worker is left, whatever error is on its way
                self._signals.append(signal.SIGTERM)
                while self._tasks():
                    [*self._look()]
                for worker in self._workers.values():
                    worker.process.__exit__(None, None, None)  # closes its pipes and waits
        if self.asked:
            raise Stopped(self.asked[0])

    def _note(self, number: int) -> None:
        self.asked.append(number)
        self._signals.append(number)

    def _tasks(self) -> dict[int, Task]:
        return {at: worker.task for at, worker in self._workers.items() if worker.task}

    def _fill(self, take: Callable[[], Task | None]) -> None:
        for slot in self.slots:
            if slot.number in self._tasks():
                continue
            if self._signals or (task := take()) is None:
                return
            if slot.number not in self._workers:
                self._workers[slot.number] = _SlotWorker(slot, self.persistent)
            self._workers[slot.number].begin(task)

    def _look(self) -> Iterator[tuple[Task, int]]:
        """The tasks that have ended, after a moment in which some may end, with their codes."""
        for worker in self._workers.values():
            worker.stop(self._signals)
        workers = [*self._workers.values()]
        ready = select.select([w.process.stdout for w in workers], [], [], _LOOK_S)[0]  # type: ignore[type-var]
        for worker in [w for w in workers if w.process.stdout in ready]:
            task, code = worker.task, worker.read_answer()
            if worker.process.returncode is not None:
                del self._workers[worker.slot]
            if task and code is not None:
                worker.task = None
                yield task, code
