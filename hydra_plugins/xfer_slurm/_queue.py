"""Slurm's queue as a sweep of xfer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn

from hydra_plugins.xfer_slurm._launch import Submitter
from xfer.core.files import read_json, write_json
from xfer.core.read_back import checked
from xfer.core.run_folder import QUEUED
from xfer.sweep.space import Job


@dataclass
class SlurmQueue:
    """See :class:`xfer.sweep.executors.runners.Queue`. ``row`` gives the overrides of a job in its
    folder, ``outcome`` its exit code and message. What a job is called in Slurm stands in its
    folder."""

    submitter: Submitter
    row: Callable[[Job, Path], list[str]]
    outcome: Callable[[JobReturn], tuple[int, str]]

    @property
    def names(self) -> Mapping[int, str]:
        """By the jobs' numbers."""
        return {number: job.job_id for number, job in self.submitter.jobs.items()}

    def submit(self, jobs: Sequence[tuple[Job, Path]]) -> None:
        """One Slurm job, or one array of several."""
        rows = [(job.number, self.row(job, folder)) for job, folder in jobs]
        try:
            self.submitter.submit(rows, jobs[0][1].parent)
        finally:
            # Also where Slurm took the first arrays and refused the next.
            for job, folder in jobs:
                if submitted := self.submitter.jobs.get(job.number):
                    files = str(submitted.paths.folder)
                    write_json(folder / QUEUED, {"slurm": submitted.job_id, "files": files})

    def rejoin(self, number: int, folder: Path) -> bool:
        """Whether Slurm has it still."""
        try:
            facts = checked(dict[str, str], read_json(folder / QUEUED))
            return self.submitter.rejoin(number, facts["slurm"], facts["files"])
        except (OSError, ValueError, KeyError):
            return False  # it was never in a queue

    def ended(self) -> list[tuple[int, int, str]]:
        """Once a second the files are looked at, and every ten the queue."""
        return [(number, *self.outcome(done)) for number, done in self.submitter.ended()]

    def cancel(self) -> None:
        """Jobs at work save their state first."""
        self.submitter.cancel()
