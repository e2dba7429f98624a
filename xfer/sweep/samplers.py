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
from xfer.sweep.space import Choice, Parameter

_POPULATION = 4, 50
"""The smallest that NSGA-II crosses to any use, and Optuna's own."""


def optuna() -> Any:
    """The package. Raises SweepError where it is missing."""
    found = installed("optuna")
    found.logging.set_verbosity(found.logging.ERROR)
    return found


def installed(package: str) -> Any:
    """The package of that name. Raises SweepError where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = f"pip install '{DISTRIBUTION}[sweep]', or sweep.sampler=grid"
        raise SweepError("sweep.sampler", f"{package} is not installed", fix, 9) from error


def check(options: Sweep, space: Sequence[Parameter]) -> None:
    """Raise SweepError for a package that is missing, and for a space in which CMA-ES, which
    moves a normal distribution of numbers, has nothing to move."""
    optuna()
    if options.sampler != "cmaes":
        return
    installed("cmaes")
    if len(unordered(space)) == len(space):
        what = "cmaes learns of numbers alone, and here are only choices, drawn at random"
        fix = "type sweep.sampler=tpe, or a number as interval(a,b) or range(a,b)"
        raise SweepError("sweep.sampler", what, fix, 26)


def unordered(space: Sequence[Parameter]) -> list[str]:
    """The keys that take no number of a range: a choice, or the only number of a range."""
    return [p.key for p in space if isinstance(p, Choice) and not (p.ordered and len(p.texts) > 1)]


def distributions(space: Sequence[Parameter]) -> dict[str, Any]:
    """Optuna's, by key; of a choice its positions."""
    kinds = optuna().distributions
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


def sampler(options: Sweep, number: int) -> Any:
    """That of the job ``number``, which with ``options.seed`` decides what it draws."""
    samplers = optuna().samplers
    digest = hashlib.sha256(f"{options.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are experimental
        if options.sampler == "cmaes":
            # Which parameters it leaves to chance is told once, by the study.
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if options.sampler == "gp":
            return samplers.GPSampler(seed=seed)
        if options.sampler == "nsga2":
            return samplers.NSGAIISampler(
                seed=seed,
                population_size=population(options.n_trials or 0),
                # Optuna's own swaps the values of two parents, or copies one: of few parents that
                # makes the same job again. This one takes numbers from around and between them.
                crossover=samplers.nsgaii.BLXAlphaCrossover(),
                crossover_prob=1.0,
            )
    kinds = {"random": samplers.RandomSampler, "tpe": samplers.TPESampler}
    return kinds[options.sampler](seed=seed)


def population(trials: int) -> int:
    """Of NSGA-II: a quarter of the ``trials``, so that there are four generations. The first one
    is drawn at random, and with Optuna's 50 a sweep of fewer trials never left it."""
    least, most = _POPULATION
    return max(least, min(most, trials // 4))
