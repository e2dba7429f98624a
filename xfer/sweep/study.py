"""Trials that Optuna proposes: asked for one at a time, told how they ended, kept in a storage.

What a trial is does not depend on which process asks, nor on how often the sweep was begun
again: the sampler starts from the sweep's seed and the number of the job.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.errors import SweepError
from xfer.sweep import Sweep
from xfer.sweep.objective import Objective
from xfer.sweep.space import Choice, Job, Parameter, chosen
from xfer.types import Plain

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"


@dataclass
class Study:
    """The trials of one sweep. ``name``: of the study in its storage."""

    options: Sweep
    space: Sequence[Parameter]
    objectives: Sequence[Objective]
    storage: str
    name: str
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        # What is missing must be told before there is a folder.
        _optuna()
        if self.options.sampler == "cmaes":
            _installed("cmaes")

    def open(self, mark: str, folder: Path) -> None:
        """Find or make the study of the sweep in ``folder``. Raises SweepError where the storage
        cannot be used, or holds another sweep under this name."""
        optuna = _optuna()
        directions = [objective.direction for objective in self.objectives]
        with _told(self.storage):
            self.study = optuna.create_study(
                storage=open_storage(self.storage),
                study_name=self.name,
                directions=directions,
                load_if_exists=True,
            )
            held = self.study.user_attrs.get("xfer")
            if held is None and not self.study.get_trials(deepcopy=False):
                self.study.set_user_attr("xfer", held := mark)
                self.study.set_user_attr("folder", str(folder.resolve()))
            home = self.study.user_attrs.get("folder")
        if held != mark:
            what = f"the study '{self.name}' there is of another sweep"
            raise SweepError("sweep.storage", what, "type sweep.study=ANOTHER_NAME", 8)
        # A journal moves with its folder; what others can reach knows where its jobs are.
        if self.options.storage and home != str(folder.resolve()):
            what = f"the study '{self.name}' there is of the sweep in {home}"
            fix = f"type sweep.dir={home}, or sweep.study=ANOTHER_NAME"
            raise SweepError("sweep.storage", what, fix, 19)

    def begun(self) -> list[Job]:
        """Jobs that were asked for and never told the end of."""
        trials = self.study.get_trials(deepcopy=False)
        return [self._job(t) for t in trials if not t.state.is_finished() and "job" in t.user_attrs]

    def ask(self, number: int) -> Job:
        """The job of that number, with values that the sampler proposes."""
        trials = self.study.get_trials(deepcopy=False)
        # Asked for by a sweep that was killed before it gave the trial a number.
        left = [t for t in trials if not t.state.is_finished() and "job" not in t.user_attrs]
        for half in left:
            self.study.tell(half.number, state=_optuna().trial.TrialState.FAIL)
        # Anew for each job: half of a trial has drawn half of its numbers.
        self.study.sampler = _sampler(self.options, number)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=_optuna().exceptions.ExperimentalWarning)
            trial = self.study.ask(_distributions(self.space))
        trial.set_user_attr("job", number)
        return self._job(trial)

    def _job(self, trial: Any) -> Job:
        number = trial.user_attrs["job"]
        facts = None
        if self.options.pruner != "none":
            facts = {
                "storage": self.storage,
                "study": self.name,
                "number": trial.number,
                "metric": self.objectives[0].metric,
                "pruner": self.options.pruner,
                "trials": self.options.prune_trials,
                "epochs": self.options.prune_epochs,
            }
        return chosen(number, self.space, trial.params, facts)

    def tell(self, job: Job, values: list[float] | None) -> None:
        """How a job ended; without ``values`` it failed."""
        optuna = _optuna()
        states = optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        mine = [trial for trial in trials if trial.user_attrs.get("job") == job.number]
        if any(t.state in (states.COMPLETE, states.PRUNED) for t in mine):
            return
        if open_ones := [t for t in mine if not t.state.is_finished()]:
            number = open_ones[0].number
            pruned = "pruned" in open_ones[0].user_attrs
            state = states.FAIL if values is None else states.PRUNED if pruned else states.COMPLETE
            self.study.tell(number, values if state is states.COMPLETE else None, state)
        elif values is not None:
            # It failed before: a trial that has ended cannot be opened again.
            old = mine[0]
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=old.params,
                    distributions=old.distributions,
                    values=values,
                    user_attrs=old.user_attrs,
                )
            )


def open_trial(facts: Plain) -> Any:
    """The trial that ``Job.trial`` describes, with its pruner; ``None`` when it has ended."""
    optuna = _optuna()
    kinds = optuna.pruners
    pruner = (
        kinds.MedianPruner(facts["trials"], n_warmup_steps=facts["epochs"] - 1)
        if facts["pruner"] == "median"
        else kinds.SuccessiveHalvingPruner(min_resource=facts["epochs"])
    )
    study = optuna.load_study(
        study_name=facts["study"], storage=open_storage(facts["storage"]), pruner=pruner
    )
    found = study.get_trials(deepcopy=False)[facts["number"]]
    return None if found.state.is_finished() else optuna.trial.Trial(study, found._trial_id)


def open_storage(place: str) -> Any:
    """The Optuna storage of a URL, or of a journal file that is named by its path."""
    optuna = _optuna()
    if "://" in place:
        return optuna.storages.get_storage(place)
    from optuna.storages import journal

    lock: Any = _Lock(f"{place}.lock")
    backend = journal.JournalFileBackend(place, lock_obj=lock)
    return optuna.storages.JournalStorage(backend)


class _Lock:
    """The kernel's own lock on a journal: a process that was killed holds none."""

    def __init__(self, path: str) -> None:
        self.path, self.handle = path, -1

    def acquire(self) -> bool:
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self.handle)


def _optuna() -> Any:
    optuna = _installed("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = "pip install 'xfer[sweep]', or sweep.sampler=grid"
        raise SweepError("sweep.sampler", f"{package} is not installed", fix, 9) from error


def _distributions(space: Sequence[Parameter]) -> dict[str, Any]:
    from optuna import distributions as kinds

    found: dict[str, Any] = {}
    for p in space:
        if isinstance(p, Choice):
            places = range(len(p.texts))
            found[p.key] = (
                kinds.IntDistribution(0, len(places) - 1)
                if p.ordered
                else kinds.CategoricalDistribution(places)
            )
        elif p.whole:
            found[p.key] = kinds.IntDistribution(int(p.low), int(p.high), log=p.log)
        else:
            found[p.key] = kinds.FloatDistribution(p.low, p.high, log=p.log)
    return found


def _sampler(options: Sweep, number: int) -> Any:
    samplers = _optuna().samplers
    digest = hashlib.sha256(f"{options.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    if options.sampler == "cmaes":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if options.sampler == "gp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return samplers.GPSampler(seed=seed)
    kinds = {
        "random": samplers.RandomSampler,
        "tpe": samplers.TPESampler,
        "nsga2": samplers.NSGAIISampler,
    }
    return kinds[options.sampler](seed=seed)


@contextmanager
def _told(storage: str) -> Iterator[None]:
    try:
        yield
    except SweepError:
        raise
    except Exception as error:  # every kind of storage has errors of its own
        what = f"{storage} cannot be used ({str(error).splitlines()[0][:200]})"
        fix = "check the URL, and that its driver is installed"
        raise SweepError("sweep.storage", what, fix, 10) from error
