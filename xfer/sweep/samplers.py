"""Optuna's samplers and distributions for a sweep's options and space."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from xfer.config.help import DISTRIBUTION
from xfer.core.errors import SweepError
from xfer.core.settings import Sweep
from xfer.sweep.space import Choices, Interval, Parameter

_POPULATION = 4, 50
"""The smallest that NSGA-II crosses to any use, and Optuna's own."""


def installed(package: str = "optuna") -> Any:
    """The package of that name. Raises SweepError where it is missing."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        fix = f"pip install '{DISTRIBUTION}[sweep]', or sweep.sampler=grid"
        raise SweepError("sweep.sampler", f"{package} is not installed", fix, 9) from error
    if package == "optuna":
        module.logging.set_verbosity(module.logging.ERROR)
    return module


def check(options: Sweep, space: Sequence[Parameter]) -> None:
    """Raise SweepError for a package that is missing, and for a space in which CMA-ES, which
    moves a normal distribution of numbers, has nothing to move."""
    installed()
    if options.sampler != "cmaes":
        return
    installed("cmaes")
    if len(unordered(space)) == len(space):
        what = "cmaes learns from numbers alone, and here are only choices, drawn at random"
        fix = "type sweep.sampler=tpe, or a number as interval(a,b) or range(a,b)"
        raise SweepError("sweep.sampler", what, fix, 26)


def unordered(space: Sequence[Parameter]) -> list[str]:
    """The keys that take no number of a range: a choice, or the only number of a range."""
    return [p.key for p in space if isinstance(p, Choices) and not (p.ordered and len(p.texts) > 1)]


def distributions(space: Sequence[Parameter]) -> dict[str, Any]:
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


def sampler(options: Sweep, number: int) -> Any:
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
