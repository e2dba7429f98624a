from __future__ import annotations

import math
from itertools import pairwise

import pytest

from xfer.training.schedule import Constant, Cosine, Step, WarmupDecay

PER_EPOCH = 7


def factors(schedule: Constant | Cosine | Step | WarmupDecay, epochs: int) -> list[float]:
    total = PER_EPOCH * epochs
    return [schedule.factor(step, PER_EPOCH, total) for step in range(total)]


def test_the_tutorials_rate_rises_to_its_base_in_five_epochs_and_falls_to_a_fiftieth() -> None:
    rates = [0.05 * f for f in factors(WarmupDecay(warmup_epochs=5, final=0.02), 60)]
    peak = 5 * PER_EPOCH - 1
    assert rates[0] == pytest.approx(0.05 / (5 * PER_EPOCH))
    assert rates[peak] == max(rates) == 0.05
    assert rates[-1] == pytest.approx(0.001)
    rises, falls = (
        [b - a for a, b in pairwise(part)] for part in (rates[: peak + 1], rates[peak:])
    )
    assert rises == pytest.approx([0.05 / (5 * PER_EPOCH)] * len(rises))
    assert falls == pytest.approx([-0.049 / len(falls)] * len(falls))


@pytest.mark.parametrize("warmup", [0, 1, 2.5])
def test_a_cosine_starts_at_the_base_rate_and_ends_at_its_last_value(warmup: float) -> None:
    found = factors(Cosine(warmup_epochs=warmup, final=0.1), 10)
    peak = math.ceil(max(0, warmup * PER_EPOCH - 1))
    assert all(b > a for a, b in pairwise(found[:peak])) and min(found) > 0
    assert all(b < a for a, b in pairwise(found[peak:]))
    assert max(found) == pytest.approx(1, abs=2e-3) and found[-1] == pytest.approx(0.1)


def test_half_way_down_a_cosine_is_half() -> None:
    assert Cosine().factor(50, 1, 101) == pytest.approx(0.5)
    assert Cosine().factor(0, 1, 101) == 1 and Cosine().factor(100, 1, 101) == 0


def test_steps_divide_by_ten_every_so_many_epochs() -> None:
    found = factors(Step(every=2, gamma=0.1), 5)
    assert found[:: 2 * PER_EPOCH] == pytest.approx([1, 0.1, 0.01])
    assert found[2 * PER_EPOCH - 1] == 1 and found[2 * PER_EPOCH] == pytest.approx(0.1)


def test_constant_is_constant() -> None:
    assert set(factors(Constant(), 3)) == {1.0}


@pytest.mark.parametrize("schedule", [Cosine(5), WarmupDecay(5), Cosine(0), Cosine(1)])
@pytest.mark.parametrize("total", [1, 2, 5])
def test_short_runs_and_the_step_behind_the_last_have_a_factor(
    schedule: Cosine | WarmupDecay, total: int
) -> None:
    assert all(0 <= schedule.factor(step, 1, total) <= 1 for step in range(total + 2))
