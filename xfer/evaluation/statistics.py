"""What chance alone does: the interval of a share, and the test of two paired classifiers."""

from __future__ import annotations

import math


def wilson(right: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of ``right`` out of ``n`` (E. B. Wilson, 1927); 95 % by default."""
    if n == 0:
        return 0.0, 1.0
    share, zz = right / n, z * z / n
    centre = (share + zz / 2) / (1 + zz)
    half = z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(first: int, second: int) -> float:
    """The two-sided p of McNemar's exact test (Q. McNemar, 1947).

    ``first`` and ``second`` count the images that only the one or only the other classifier got
    right. Between equally good ones each such image falls to either side like a fair coin.
    """
    n = first + second
    tail, ways = 0, 1
    for k in range(min(first, second) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)  # n over k, exactly, also beyond a float's range
    return min(1.0, 2 * tail / (1 << n))
