"""Trials that Optuna proposes: asked for one at a time, reported when they end, in a storage.

What a trial is does not depend on which process asks, nor on how often the sweep was begun
again: the sampler starts from the sweep's seed and the number of the job.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.config.help import DISTRIBUTION
from xfer.config.sweep_spec import SweepSpec
from xfer.config.verbs import override, quoted
from xfer.core.errors import SweepError, XferError
from xfer.core.files import handle_of
from xfer.core.locks import Lock, waits
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.sweep.objective import Objective
from xfer.sweep.space import Choices, Interval, Job, Parameter, chosen, drawn

if TYPE_CHECKING:
    import optuna

_POPULATION = 4, 50
"""The smallest that NSGA-II crosses to any use, and Optuna's own."""
JOURNAL = "optuna.journal"
PRUNED = "pruned.json"
"""The note in the folder of a job that was pruned."""


@dataclass
class Study:
    """The trials of one sweep. ``name``: of the study in its storage."""

    options: SweepSpec
    space: Sequence[Parameter]
    objectives: Sequence[Objective]
    storage: str
    name: str
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        # What is missing must be reported before there is a folder; and CMA-ES, which moves a
        # normal distribution of numbers, must have something to move.
        installed()
        if self.options.sampler != "cmaes":
            return
        installed("cmaes")
        if len(_unordered(self.space)) == len(self.space):
            what = "cmaes learns from numbers alone, and here are only choices, drawn at random"
            fix = "type sweep.sampler=tpe, or a number as interval(a,b) or range(a,b)"
            raise SweepError("sweep.sampler", what, fix, 26)

    def open(self, mark: str, folder: Path) -> None:
        """Find or make the study of the sweep in ``folder``. Raises SweepError where the storage
        cannot be used, or holds another sweep under this name."""
        with _reached(self.storage):
            self.study = installed().create_study(
                storage=open_storage(self.storage),
                study_name=self.name,
                directions=[objective.direction for objective in self.objectives],
                load_if_exists=True,
            )
            held = self.study.user_attrs.get("xfer")
            if held is None and not self.study.get_trials(deepcopy=False):
                self.study.set_user_attr("xfer", held := mark)
                self.study.set_user_attr("folder", str(folder.resolve()))
            home = self.study.user_attrs.get("folder")
        if held != mark:
            what = f"the study '{self.name}' there belongs to another sweep"
            raise SweepError("sweep.storage", what, "type sweep.study=ANOTHER_NAME", 8)
        # A journal moves with its folder; what others can reach knows where its jobs are.
        if self.options.storage and home != str(folder.resolve()):
            what = f"the study '{self.name}' there belongs to the sweep in {home}"
            fix = f"type {quoted(override('sweep.dir', str(home)))}, or sweep.study=ANOTHER_NAME"
            raise SweepError("sweep.storage", what, fix, 19)

    def remarks(self) -> list[str]:
        """What the sampler does not learn from."""
        chance = _unordered(self.space) if self.options.sampler == "cmaes" else []
        return [f"cmaes draws at random what is no range: {', '.join(chance)}"] if chance else []

    def begun(self) -> list[Job]:
        """Jobs that were asked for and whose end was never reported."""
        with _reached(self.storage, _LATER):
            return [self._job(trial) for trial in self._open() if "job" in trial.user_attrs]

    def _open(self) -> list[Any]:
        return [t for t in self.study.get_trials(deepcopy=False) if not t.state.is_finished()]

    def ask(self, number: int) -> Job:
        """The job of that number, with values that the sampler proposes."""
        with _reached(self.storage, _LATER):
            for left in self._open():
                # Asked for by a sweep that was killed before it gave the trial a number.
                if "job" not in left.user_attrs:
                    self.study.tell(left.number, state=installed().trial.TrialState.FAIL)
            # Anew for each job: half of a trial has drawn half of its numbers.
            self.study.sampler = _sampler(self.options, number)
            with warnings.catch_warnings():
                experimental = installed().exceptions.ExperimentalWarning
                warnings.filterwarnings("ignore", category=experimental)
                trial = self.study.ask(_distributions(self.space))
            trial.set_user_attr("job", number)
            return self._job(trial)

    def adopt(self, job: Job) -> Job:
        """A job that the sweep's folder has. The study may be a newer one, under another name or
        in another storage, and knows nothing of it; then it gets a trial with the job's values.
        Raises SweepError where the job is of another space."""
        with _reached(self.storage, _LATER):
            if self._trials(job):
                return job
            trial = installed().trial
            self.study.add_trial(
                trial.create_trial(
                    state=trial.TrialState.RUNNING,
                    params=drawn(job, self.space),
                    distributions=_distributions(self.space),
                    user_attrs={"job": job.number},
                )
            )
            log.info(f"job {job.number} is new to the study '{self.name}' and is added to it")
            return self._job(self._trials(job)[0])

    def _trials(self, job: Job) -> list[Any]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.user_attrs.get("job") == job.number]

    def _job(self, trial: Any) -> Job:
        number = trial.user_attrs["job"]
        if self.options.pruner == "none":
            return chosen(number, self.space, trial.params, None)
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

    def tell(self, job: Job, values: list[float] | None, pruned: bool = False) -> None:
        """Report how a job that was asked for or adopted ended; without ``values`` it failed.
        ``pruned``: its folder says so, also where the study could not be reached then."""
        states = installed().trial.TrialState
        with _reached(self.storage, _LATER):
            mine = self._trials(job)
            if any(t.state in (states.COMPLETE, states.PRUNED) for t in mine):
                return
            if open_ones := [t for t in mine if not t.state.is_finished()]:
                number = open_ones[0].number
                early = pruned or "pruned" in open_ones[0].user_attrs
                good = states.PRUNED if early else states.COMPLETE
                state = states.FAIL if values is None else good
                self.study.tell(number, values if state is states.COMPLETE else None, state)
            elif values is not None:
                # It failed before: a trial that has ended cannot be opened again.
                old = mine[0]
                self.study.add_trial(
                    installed().trial.create_trial(
                        params=old.params,
                        distributions=old.distributions,
                        values=values,
                        user_attrs=old.user_attrs,
                    )
                )


def installed(package: str = "optuna") -> Any:
    """The package of that name. Raises SweepError where it is missing."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        listed = "list every value and type sweep.sampler=grid sweep.n_trials=null"
        fix = f"pip install '{DISTRIBUTION}[sweep]', or {listed}"
        raise SweepError("sweep.sampler", f"{package} is not installed", fix, 9) from error
    if package == "optuna":
        module.logging.set_verbosity(module.logging.ERROR)
    return module


def _unordered(space: Sequence[Parameter]) -> list[str]:
    """The keys that take no number of a range: a choice, or the only number of a range."""
    return [p.key for p in space if isinstance(p, Choices) and not (p.ordered and len(p.texts) > 1)]


def _distributions(space: Sequence[Parameter]) -> dict[str, Any]:
    """Optuna's distributions by key; a choice has one of its positions."""
    kinds = installed().distributions

    def kind(p: Parameter) -> Any:
        if isinstance(p, Interval):
            if p.whole:
                return kinds.IntDistribution(int(p.low), int(p.high), log=p.log)
            return kinds.FloatDistribution(p.low, p.high, log=p.log)
        if p.ordered:
            return kinds.IntDistribution(0, len(p.texts) - 1)
        return kinds.CategoricalDistribution(range(len(p.texts)))

    return {p.key: kind(p) for p in space}


def _sampler(options: SweepSpec, number: int) -> Any:
    """The sampler of the job ``number``, which with ``options.seed`` decides what it draws."""
    samplers = installed().samplers
    digest = hashlib.sha256(f"{options.seed} {number}".encode()).digest()
    names = {"random": "Random", "tpe": "TPE", "cmaes": "CmaEs", "gp": "GP", "nsga2": "NSGAII"}
    more: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are experimental
        if options.sampler == "cmaes":
            # Which parameters it leaves to chance is said once, by the study.
            more = {"warn_independent_sampling": False}
        elif options.sampler == "nsga2":
            # Optuna's own crossover swaps the values of two parents, or copies one: of few parents
            # that makes the same job again. This one takes numbers from around and between them.
            crossover = samplers.nsgaii.BLXAlphaCrossover()
            size = population(options.n_trials or 0)
            more = {"population_size": size, "crossover": crossover, "crossover_prob": 1.0}
        kind = getattr(samplers, f"{names[options.sampler]}Sampler")
        return kind(seed=int.from_bytes(digest[:4], "big"), **more)


def population(trials: int) -> int:
    """The population of NSGA-II: a quarter of the ``trials``, so that there are four generations.
    The first one is drawn at random, and with Optuna's 50 a sweep of fewer trials never left it."""
    least, most = _POPULATION
    return max(least, min(most, trials // 4))


def open_trial(facts: Plain) -> Any:
    """The trial that ``Job.trial`` describes, with its pruner; ``None`` when it has ended."""
    optuna, epochs = installed(), facts["epochs"]
    if facts["pruner"] == "median":
        pruner = optuna.pruners.MedianPruner(facts["trials"], n_warmup_steps=epochs - 1)
    else:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=epochs)
    study = optuna.load_study(
        study_name=facts["study"], storage=open_storage(facts["storage"]), pruner=pruner
    )
    trial = study.get_trials(deepcopy=False)[facts["number"]]
    return None if trial.state.is_finished() else optuna.trial.Trial(study, trial._trial_id)


def open_storage(place: str) -> Any:
    """The Optuna storage of a URL, or of a journal file that is named by its path."""
    storages = installed().storages
    if "://" in place:
        return storages.get_storage(place)
    if os.path.lexists(place):
        # A link would be a second name, with a second lock; a pipe would be waited for.
        os.close(handle_of(Path(place), follow=False))
    lock: Any = _Lock(f"{place}.lock")
    backend = storages.journal.JournalFileBackend(place, lock_obj=lock)
    return storages.JournalStorage(backend)


class _Lock:
    """The kernel's own lock on a journal: a process that was killed holds none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.held: Lock | None = None

    def acquire(self) -> bool:
        handle = handle_of(Path(self.path), os.O_RDWR | os.O_CREAT, follow=False)
        self.held = Lock(handle, waiting=waits(f"writes {self.path.removesuffix('.lock')}"))
        return True

    def release(self) -> None:
        if self.held is not None:
            self.held.close()


_LATER = "see whether it answers; the same command resumes the sweep"


@contextmanager
def _reached(
    storage: str, fix: str = "check the URL, and that its driver is installed"
) -> Iterator[None]:
    try:
        yield
    except XferError:
        raise
    except Exception as error:  # every kind of storage has errors of its own
        what = f"{storage} cannot be used ({first_line(error)})"
        raise SweepError("sweep.storage", what, fix, 10) from error


def first_line(error: Exception) -> str:
    """What a storage says. Optuna's own words for a database are the same for whatever ails it."""
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0][:200]
