"""Jobs of a sweep in the queue of a cluster: each result counts as it comes."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from xfer.core.log import log
from xfer.core.signals import Stopped, noted
from xfer.sweep.scheduler import Conductor
from xfer.sweep.space import Job


class Queue(Protocol):
    """A cluster that runs what it was given, whether or not somebody waits for it."""

    @property
    def names(self) -> Mapping[int, str]:
        """The cluster's names of the jobs that it has, by their numbers."""

    def submit(self, jobs: Sequence[tuple[Job, Path]]) -> None:
        """Hand over jobs with their folders."""

    def rejoin(self, number: int, folder: Path) -> bool:
        """Whether the cluster has a job that an earlier call handed over."""

    def ended(self) -> Sequence[tuple[int, int, str]]:
        """Number, exit code and what was told of the jobs that have ended since; looks for them
        for about a second."""

    def cancel(self) -> None:
        """Ask every job to end."""


@dataclass
class QueueRunner:
    """``size`` jobs in the ``queue`` at a time. A signal ends the waiting and no job: the same
    command finds those that are queued or at work."""

    queue: Queue
    size: int
    threads: int | None = None
    _flight: dict[int, Job] = field(default_factory=dict)
    _signals: list[int] = field(default_factory=list)

    def run(self, conductor: Conductor) -> None:
        """Submit and wait until nothing is left. Raises Stopped when a signal came."""
        with noted(self._note):
            held = conductor.rejoin(lambda n: self.queue.rejoin(n, conductor.ledger(n)))
            self._flight = {job.number: job for job in held}
            if held:
                log.info(f"in the queue already: {_listed(self.queue.names)}")
            try:
                self._work(conductor)
            finally:
                if left := self.queue.names:
                    log.info(f"in the queue still: {_listed(left)}")

    def _work(self, conductor: Conductor) -> None:
        stopping = False
        while True:
            if not stopping:
                self._fill(conductor)
            if self._signals:
                raise Stopped(self._signals[0])
            if not self._flight and (stopping or not conductor.later):
                return
            for number, code, line in self.queue.ended():
                if conductor.ledger.state(number) == "finished":
                    code, line = 0, ""  # its result for the queue was lost, and no other
                conductor.ledger.note(number, line)
                if conductor.ended(self._flight.pop(number), code):
                    stopping = True
                    self.queue.cancel()

    def _fill(self, conductor: Conductor) -> None:
        batch: list[Job] = []
        while not self._signals and len(self._flight) < self.size:
            job = conductor.take(wait=False)
            if job is None:
                break
            batch.append(job)
            self._flight[job.number] = job
        if batch:
            self.queue.submit([(job, conductor.ledger(job.number)) for job in batch])

    def _note(self, number: int) -> None:
        if self._signals and number == signal.SIGINT:
            raise Stopped(number)  # a second Ctrl-C does not wait for an answer of the cluster
        self._signals.append(number)


def _listed(names: Mapping[int, str]) -> str:
    shown = [f"job {number} is {name}" for number, name in sorted(names.items())]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
