"""From Hydra's jobs to Slurm's, through submitit."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.xfer_slurm._request import asked, parameters
from xfer.config.help import DISTRIBUTION
from xfer.core.control_groups import leave_threads_open
from xfer.core.errors import ConfigError, JobFailed, SweepError, XferError
from xfer.core.signals import Stopped
from xfer.sweep import slurm

_LOOK_S, _ASK_S = 1.0, 10.0
"""Between two looks at the results' files, and between two questions to the cluster."""


@dataclass
class Submitter:
    """Jobs in the queue by number. ``params``: the launcher's options; ``given``: what Hydra
    handed over."""

    params: dict[str, Any]
    given: dict[str, Any]
    jobs: dict[int, Any] = field(default_factory=dict)
    _cancelled: bool = False
    _asked: float = field(default_factory=time.monotonic)
    _absent: set[int] = field(default_factory=set)
    _known: dict[str, str] | None = None

    def submit(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        home: Path,
        note: Callable[[int, slurm.HandedOver], None] = lambda number, facts: None,
    ) -> None:
        """Hand over numbered rows of overrides, several as one array, and where it may not hold as
        many as several. ``home`` is the sweep's folder; ``note`` gets what is to be known of each
        before Slurm has it, and again with its name. Raises ConfigError where Slurm refuses."""
        plain, request = asked(self.params, self.given["config"], [row for _, row in rows])
        submitit, launcher = _submitit()
        leave_threads_open()
        job = launcher(submitit_folder=plain["submitit_folder"])
        job.setup(**self.given)
        home.mkdir(parents=True, exist_ok=True)
        # Hydra's folder of a sweep is a new one also where an earlier sweep is resumed.
        new = str(self.given["config"].hydra.sweep.dir)
        within = submitit.core.utils.JobPaths.get_first_id_independent_folder(
            plain["submitit_folder"].replace(new, str(home))
        )
        calls = [
            (list(row), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, row in rows
        ]
        size = slurm.largest_array() if len(rows) > 1 else 1
        for start in range(0, len(rows), size):
            part = calls[start : start + size]
            # A folder for each submission, by whose script squeue finds its jobs. They write there
            # too: one of a job's name is there only when sbatch has come back, the job before.
            folder = str(within / uuid.uuid4().hex[:12])
            executor = submitit.AutoExecutor(
                cluster="slurm", folder=folder, slurm_max_num_timeout=plain["max_num_timeout"]
            )
            executor.update_parameters(name="xfer", **parameters(plain, request))
            for at, call in enumerate(part):
                index = at if len(part) > 1 else None
                note(call[2], {"slurm": None, "index": index, "files": folder})
            try:
                submitted = executor.map_array(job, *zip(*part, strict=True))
            except submitit.core.utils.FailedJobError as error:
                raise _why_not(error) from error
            for call, taken in zip(part, submitted, strict=True):
                self.jobs[call[2]] = taken
                note(call[2], {"slurm": taken.job_id, "files": folder})

    def rejoin(self, number: int, facts: slurm.HandedOver) -> bool:
        """Whether Slurm has the job with these ``facts`` still."""
        if self._known is None:
            self._known = slurm.queued()
        if self._known is None:
            raise ConfigError("hydra/launcher", "squeue gives no answer", "try again later", 75)
        if (name := slurm.name_of(facts, self._known)) is None:
            return False
        from submitit.slurm.slurm import SlurmJob

        job: Any = SlurmJob(folder=facts["files"], job_id=name)
        # One whose result is there is none to wait for.
        held = not job.task(0).paths.result_pickle.exists()
        if held:
            self.jobs[number] = job
        # A job waits a minute for its call, which it is given once sbatch has said its name.
        if held and facts["slurm"] is None and (call := _undelivered(facts["files"]).get(number)):
            job.paths.move_temporary_file(call, "submitted_pickle")
        return held

    def ended(self) -> list[tuple[int, JobReturn]]:
        """What became of the jobs that ended, after a moment in which some may end."""
        time.sleep(_LOOK_S)
        gone = self._gone()
        returns = []
        for number, job in list(self.jobs.items()):
            if job.task(0).paths.result_pickle.exists() or (number in gone and _has_come(job)):
                returns.append((number, _outcome(job)))
            elif number in gone and self._cancelled:
                returns.append((number, _failed(JobFailed(143, ""))))
            elif number in gone:
                returns.append((number, _lost(job, "Slurm has ended it, and it left no result")))
        for number, _ in returns:
            del self.jobs[number]
        return returns

    def _gone(self) -> set[int]:
        """Jobs that Slurm did not have at the last two times: the file with a result may be on its
        way through a network's file system."""
        if time.monotonic() - self._asked < _ASK_S:
            return set()
        self._asked = time.monotonic()
        names = slurm.queued()
        if names is None:
            return set()
        before = self._absent
        self._absent = {number for number, job in self.jobs.items() if job.job_id not in names}
        return before & self._absent

    def cancel(self) -> None:
        """Take all jobs out of the queue."""
        self._cancelled = True
        slurm.cancel(job.job_id for job in self.jobs.values())


def _why_not(error: Exception) -> BaseException:
    """What it is that sbatch came back without a job: a signal of the terminal, which reaches it as
    well, or a refusal."""
    number = -getattr(error.__cause__, "returncode", 0)
    if number in (signal.SIGINT, signal.SIGTERM):
        return Stopped(number)
    said = (str(error).strip().splitlines() or ["no reason"])[-1]
    fix = "see the options of hydra.launcher"
    return ConfigError("hydra/launcher", f"Slurm refused: {said}", fix, 75)


def launch(
    params: dict[str, Any], given: dict[str, Any], rows: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """See :class:`hydra_plugins.xfer_slurm.SlurmLauncher`."""
    check(params, given, rows)
    submitter, returns = Submitter(params, given), dict[int, JobReturn]()
    submitter.submit(list(enumerate(rows, first)), Path(given["config"].hydra.sweep.dir))
    while submitter.jobs:
        returns.update(submitter.ended())
    return [returns[number] for number in sorted(returns)]


def check(params: dict[str, Any], given: dict[str, Any], rows: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError or SweepError for what could never run, and where submitit is missing."""
    if (most := int(params["array_parallelism"])) < 1:
        key = "hydra.launcher.array_parallelism"
        raise SweepError(key, f"is {most}", "type 1 or more", 21)
    slurm.check(asked(params, given["config"], rows)[1])
    _submitit()


def _submitit() -> tuple[Any, Any]:
    try:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    except ImportError as error:
        fix = f"install it: pip install '{DISTRIBUTION}[slurm]'"
        raise ConfigError("hydra/launcher", f"{error.name} is not installed", fix, 80) from error
    return submitit, SlurmLauncher


@cache
def _undelivered(folder: str) -> dict[int, Path]:
    """By number, what a submission that was killed, or failed, has not given to its jobs."""
    from submitit.core.utils import DelayedSubmission

    left = [path for path in Path(folder).glob("*.pkl") if "_" not in path.name]
    return {DelayedSubmission.load(path).args[2]: path for path in left}


def _outcome(job: Any) -> JobReturn:
    try:
        returned: JobReturn = job.task(0).result()
    except Exception as error:  # whatever the job's own process could not send as itself
        said = (str(error).strip().splitlines() or ["failed"])[-1]
        return _lost(job, said)
    return returned


def _has_come(job: Any) -> bool:
    """Whether the result is there once NFS has been made to look at the folder again, which it may
    remember for a minute as it was."""
    folder = job.paths.folder
    with suppress(OSError):
        folder.chmod(folder.stat().st_mode)
    return bool(job.task(0).paths.result_pickle.exists())


def _lost(job: Any, said: str) -> JobReturn:
    logged = job.task(0).paths.stderr
    return _failed(XferError(f"Slurm job {job.job_id}", said, f"see {logged}", 15))


def _failed(error: Exception) -> JobReturn:
    returned = JobReturn()
    returned.status, returned.return_value = JobStatus.FAILED, error
    return returned
