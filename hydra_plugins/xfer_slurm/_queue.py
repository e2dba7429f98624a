"""Slurm's queue as a sweep of xfer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.xfer_slurm._launch import Submitter
from xfer.config.hydra import job_row
from xfer.core.errors import JobFailed, XferError
from xfer.core.files import write_json
from xfer.core.run_folder import QUEUED
from xfer.sweep.slurm import handed_over
from xfer.sweep.space import Job


@dataclass
class SlurmQueue:
    """See :class:`xfer.sweep.executors.runners.Queue`. ``shared`` are overrides that all jobs have.
    What a job is called in Slurm stands in its folder."""

    submitter: Submitter
    shared: Sequence[str] = ()

    @property
    def names(self) -> Mapping[int, str]:
        """By the jobs' numbers."""
        return {number: job.job_id for number, job in self.submitter.jobs.items()}

    def submit(self, jobs: Sequence[tuple[Job, Path]]) -> None:
        """One Slurm job, or one array of several."""
        rows = [(job.number, job_row([*self.shared, *job.overrides], at)) for job, at in jobs]
        folders = {job.number: folder / QUEUED for job, folder in jobs}
        self.submitter.submit(
            rows, jobs[0][1].parent, lambda number, facts: write_json(folders[number], facts)
        )

    def rejoin(self, number: int, folder: Path) -> bool:
        """Whether Slurm has it still."""
        facts = handed_over(folder)
        if facts is None or not self.submitter.rejoin(number, facts):
            return False
        write_json(folder / QUEUED, {**facts, "slurm": self.names[number]})
        return True

    def ended(self) -> list[tuple[int, int, str]]:
        """Once a second the files are looked at, and every ten the queue."""
        return [(number, *outcome(done)) for number, done in self.submitter.ended()]

    def cancel(self) -> None:
        """Jobs at work save their state first."""
        self.submitter.cancel()


def outcome(done: JobReturn) -> tuple[int, str]:
    """The exit code of a job and, where it has failed, its message."""
    if done.status is JobStatus.COMPLETED:
        return 0, ""
    error = done._return_value
    if isinstance(error, JobFailed):
        return int(error.args[0]), str(error.args[1])
    if isinstance(error, XferError):
        return error.exit, str(error)
    return 1, f"{type(error).__name__}: {error}"
