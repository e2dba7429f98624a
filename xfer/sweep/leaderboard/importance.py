"""How much each parameter decided the value, as a random forest sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xfer.core.errors import plural
from xfer.core.types import Array
from xfer.sweep.leaderboard.read_sweep import SweepRecord

FEWEST = 10
_TREES, _SHUFFLES = 200, 20


@dataclass(frozen=True)
class Importance:
    """``drops`` by parameter, the largest first: the mean loss of R² when its column is shuffled,
    and its standard deviation. ``r2`` is the forest's on trials that a tree has not seen; ``why``
    says why there is no forest."""

    drops: dict[str, tuple[float, float]]
    r2: float | None = None
    why: str = ""


def importance(sweep: SweepRecord) -> Importance:
    """Permutation importance (L. Breiman, 2001) for the first objective, by scikit-learn's random
    forest. It is left out where there is too little to learn from."""
    done = [job for job in sweep.jobs if job.has_value and job.parameters]
    if not sweep.varied:
        return Importance({}, why="no parameter varies")
    if len(done) < FEWEST:
        have = "has" if len(done) == 1 else "have"
        why = f"{plural(len(done), 'job')} {have} a value, and at least {FEWEST} are needed"
        return Importance({}, why=why)
    values = np.array([job.values[0] for job in done], np.float64)
    if np.ptp(values) == 0:
        return Importance({}, why="all jobs have the same value")
    columns = [_column([job.parameters.get(name) for job in done]) for name in sweep.varied]
    table = np.column_stack(columns)
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=0).fit(table, values)
    r2 = float(forest.oob_score_)
    if not r2 > 0:
        why = "a forest predicts trials that it has not seen no better than their mean does"
        return Importance({}, r2, f"{why} (R² {r2:.2f})")
    lost = permutation_importance(forest, table, values, n_repeats=_SHUFFLES, random_state=0)
    pairs = zip(lost.importances_mean.tolist(), lost.importances_std.tolist(), strict=True)
    drops = sorted(zip(sweep.varied, pairs, strict=True), key=lambda drop: -drop[1][0])
    return Importance(dict(drops), r2)


def _column(values: Sequence[Any]) -> Array:
    """Numbers as they are, absent ones as NaN; other values by their place in the alphabet."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return np.array(values, np.float64)
    places: Array = np.unique([str(value) for value in values], return_inverse=True)[1]
    return places
