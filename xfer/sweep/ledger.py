"""The folder of a sweep: ``sweep.json``, and a folder for every job with what became of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from xfer.config.allowed_below_hydra import check_key
from xfer.core.errors import OutputError, ResumeError, SafetyError, XferError, sentence
from xfer.core.files import (
    open_to_append,
    output_errors,
    read_bytes,
    read_json,
    remove,
    write_json,
)
from xfer.core.locks import Lock
from xfer.core.log import log
from xfer.core.read_back import checked
from xfer.core.run_folder import JOB, LOCK, OUTPUT, QUEUED, is_live, lock
from xfer.core.signals import STOPPING
from xfer.core.types import Plain
from xfer.plan.resume import Ended, Planned, check_files, check_stages, lacks
from xfer.sweep.objective import Objective
from xfer.sweep.space import Job

State = Literal["missing", "running", "interrupted", "failed", "finished"]
_SWEEP = "sweep.json"
_IN_USE = OutputError.base + 3
_UNKNOWN = {"state": "running", "code": None, "exit": None, "message": None, "remedy": None}


class _JobFacts(TypedDict):
    job: Annotated[int, Field(ge=0)]
    overrides: list[str]
    parameters: Plain
    trial: NotRequired[Plain | None]


class _Resumable(TypedDict, total=False):
    threads: int | None
    fingerprint: str
    command: str


_KINDS = {_SWEEP: _Resumable, JOB: _JobFacts, "status.json": Ended, "plan.json": Planned}
"""What is read of each file."""
_OURS = (LOCK, "run.log", "optuna.journal", "optuna.journal.lock")
"""What a sweep leaves that was refused, or killed before it began."""


@dataclass(frozen=True)
class SweepFacts:
    """What ``sweep.json`` says of the sweep as a whole. ``jobs``: how many are asked for;
    ``fingerprint`` tells one sweep from another."""

    experiment: str
    command: str
    objectives: tuple[Objective, ...]
    baseline: tuple[str, ...]
    jobs: int | None
    threads: int | None
    fingerprint: str


@dataclass(frozen=True)
class Ledger:
    """The jobs of one sweep below ``folder``. ``stages``: what each is to do."""

    folder: Path
    stages: tuple[str, ...] = ()
    _starts: dict[int, int] = field(default_factory=dict, compare=False)
    _busy: set[int] = field(default_factory=set, compare=False)

    def __call__(self, number: int) -> Path:
        """The folder of a job, which is its run folder."""
        return self.folder / str(number)

    def open(self, facts: SweepFacts) -> None:
        """Write ``sweep.json``."""
        before = _read(self.folder / _SWEEP).get("threads")
        if before not in (None, facts.threads):
            log.warning(
                f"the number of threads of a job was {before} and is now "
                f"{facts.threads or 'left to torch'}: jobs that resume are not the same bit for "
                "bit, and features are computed again"
            )
        baseline = list(facts.baseline) or None
        write_json(self.folder / _SWEEP, {"format": 1, **asdict(facts), "baseline": baseline})

    def state(self, number: int) -> State:
        """What became of a job so far; one that was killed is ``running``, and one that has
        finished fewer stages than it is to do is ``interrupted``."""
        folder = self(number)
        state: State = _read(folder / "status.json").get("state", "missing")
        return "interrupted" if state == "finished" and lacks(folder, self.stages) else state

    def check(self, number: int) -> None:
        """Raise ResumeError for a job that has finished with other stages than it is to do, or
        whose files are no longer those that it finished with."""
        check_stages(self(number), self.stages, "another sweep.dir")
        if self.state(number) == "finished":
            check_files(self(number))

    def finished(self) -> set[int]:
        """The numbers of the jobs that have finished."""
        return {job.number for job in self.jobs() if self.state(job.number) == "finished"}

    def code(self, number: int) -> int:
        """The exit code that a job's status names."""
        return int(_read(self(number) / "status.json").get("exit") or 0)

    def jobs(self) -> Iterator[Job]:
        """Every job that was begun, by number."""
        for path in sorted(self.folder.glob(f"*/{JOB}"), key=lambda p: p.parent.name.zfill(9)):
            facts = _read(path)
            if facts:
                texts = tuple(facts["overrides"])
                for text in texts:
                    check_key(str(path), text.partition("=")[0])
                yield Job(facts["job"], texts, facts["parameters"], facts.get("trial"))

    def take(self, waiting: list[Job]) -> Job | None:
        """The first of the ``waiting`` jobs that no process works on, which is taken off the list,
        its folder ready; ``None`` without one."""
        for job in waiting:
            folder = self(job.number)
            if not is_live(folder) and self._prepared(job):
                waiting.remove(job)
                return job
            if job.number not in self._busy:
                self._busy.add(job.number)
                log.info(f"waiting for a process that works in {folder}")
        return None

    def _prepared(self, job: Job) -> bool:
        try:
            self.prepare(job)
        except OutputError as error:
            if error.number != _IN_USE:
                raise
            return False  # a process has begun in it since it was asked for
        return True

    def prepare(self, job: Job) -> Path:
        """The folder of a job that is about to start. One that was interrupted resumes where it
        stood; what cannot be resumed is emptied."""
        folder = self(job.number)
        if folder.is_symlink():  # to be emptied, perhaps
            raise SafetyError(folder, "is a link that leads out of the folder", "remove it", 31)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held = lock(folder, works=False)  # of an earlier sweep a job may be about to begin
        with held:
            status, plan = (_read(folder / name) for name in ("status.json", "plan.json"))
            if "fingerprint" not in plan or status.get("exit") == ResumeError.exit:
                for path in folder.iterdir():
                    if path.name not in (JOB, OUTPUT, QUEUED, LOCK):
                        remove(path)
            elif self.state(job.number) in ("failed", "interrupted"):
                # How this attempt ends is not how the one before it did.
                write_json(folder / "status.json", {**status, **_UNKNOWN})
            output = folder / OUTPUT
            self._starts[job.number] = output.stat().st_size if output.is_file() else 0
            (folder / "error.log").unlink(missing_ok=True)
            facts = {"job": job.number, "overrides": job.overrides, "parameters": job.parameters}
            write_json(folder / JOB, {**facts, "trial": job.trial} if job.trial else facts)
        return folder

    def note(self, number: int, line: str) -> None:
        """Add to a job's output what others said of it."""
        if line:
            with open_to_append(self(number) / OUTPUT) as stream:
                stream.write(f"{line}\n")

    def settle(self, number: int, code: int) -> str:
        """Make ``status.json`` true for a job that is gone and left with ``code``; the message of a
        failure, or nothing.

        A job that says ``finished`` is, however its process ended; one that does not is not, also
        with exit 0.
        """
        folder = self(number)
        status = _read(folder / "status.json")
        if status.get("state") == "finished":
            return ""
        if status.get("state") not in ("failed", "interrupted"):
            status = _ended(code, _last_line(folder / OUTPUT, self._starts.get(number, 0)))
            write_json(folder / "status.json", status)
        error = f"xfer: error E{status['code']:03d}: " if status.get("code") else ""
        fix = status.get("remedy") or "see output.log"
        return f"{error}{sentence(status.get('message') or 'failed')} Fix: {fix}"


def _ended(code: int, line: str) -> Plain:
    """The status of a job that could not write it itself."""
    more = f" ({line})" if line else ""
    number, what, fix = None, line or "it printed nothing", "see output.log"
    if error := re.fullmatch(r"xfer: error E(\d+): (.*)(?:(?<=\.\.\.)|\.) Fix: (.*)", line):
        number, what, fix = int(error[1]), error[2], error[3]
    elif code > 128:
        what = f"killed by signal {code - 128}{more}"
    elif code == 0:
        what = f"left with exit 0 and never finished{more}"
    state = "interrupted" if code in STOPPING else "failed"
    exit_ = 143 if code in STOPPING and code != 130 else code or 1
    facts = {"state": state, "code": number, "exit": exit_, "message": what, "remedy": fix}
    return {**facts, "last_good_checkpoint": None, "files": {}}


def _last_line(path: Path, start: int) -> str:
    """The last error in a job's output after the first ``start`` bytes, else the last line."""
    if not path.is_file():
        return ""
    text = read_bytes(path)[start:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("xfer: error E")]
    return (errors or lines or [""])[-1][:500]


def mark(config_fingerprint: str, space: Sequence[object], options: Plain) -> str:
    """A hash of what makes a sweep that sweep: a run's fingerprint, the space and its search."""
    text = json.dumps([config_fingerprint, [repr(p) for p in space], options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def find(folder: str | None, auto: bool, root: Path, *marks: str) -> Path | None:
    """The sweep to resume: in ``folder``, or with ``auto`` the newest below ``root`` with one of
    the ``marks`` that no process works on. Raises ResumeError where ``folder`` holds another."""
    if folder is not None:
        path = Path(folder).expanduser()
        facts = _read(path / _SWEEP)
        if facts and facts.get("fingerprint") not in marks:
            fix = "give the same options, or another sweep.dir"
            raise ResumeError(path, f"holds another sweep: {facts.get('command')}", fix, 10)
        taken = path.is_dir() and any(
            p.name not in _OURS and p.suffix != ".part" for p in path.iterdir()
        )
        if taken and not facts:
            raise ResumeError(path, "holds files but no sweep", "choose another sweep.dir", 11)
        return path
    if auto:
        for path in sorted(root.glob(f"*/{_SWEEP}"), key=lambda p: p.parent.name, reverse=True):
            if _read(path).get("fingerprint") in marks and not is_live(path.parent):
                return path.parent
    return None


def hold(folder: Path) -> Lock:
    """Keep other sweeps out of ``folder`` until the returned lock is closed."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return lock(folder)
    except XferError as error:
        raise ResumeError(folder, "another sweep works here", "wait for it", 12) from error


def _read(path: Path) -> Plain:
    try:
        facts: Plain = read_json(path)
        checked(_KINDS[path.name], facts)
    except (OSError, ValueError):
        return {}  # nothing that a sweep writes is there, which is the answer
    return facts
