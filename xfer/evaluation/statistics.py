"""What chance alone does: the interval of a share, and two classifiers on the same images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from xfer.core.types import LabelScore, Score

_Z = 1.959963984540054


def wilson(right: float, n: float, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval of ``right`` out of ``n`` (E. B. Wilson, 1927); 95 % by default."""
    return wilson_share(right / n, n, z) if n else (0.0, 1.0)


def wilson_share(share: float, n: float, z: float = _Z) -> tuple[float, float]:
    """Wilson's interval of a ``share`` of ``n`` images, which need be no whole number of them."""
    zz = z * z / n
    centre = (share + zz / 2) / (1 + zz)
    half = z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    return max(0.0, centre - half), min(1.0, centre + half)


def resampled(
    share: float, n: int, folds: int, repeats: int, by_group: Sequence[float] = ()
) -> tuple[float, float]:
    """The 95 % interval of a cross-validated accuracy ``share`` on ``n`` images.

    The variance is that of the corrected resampled t-test (C. Nadeau and Y. Bengio, 2003): of one
    test part, times 1 / (folds x repeats) + test images / training images, since the training
    parts overlap; repeats narrow it and add no image. That of one test part is p (1 - p) over its
    images, which is steadier than the spread of a handful of folds. Images of one group are alike,
    so that folds of groups may differ by more: where ``by_group``, the accuracy of each such fold,
    spreads more widely, that spread counts, with Student's t. The interval is never narrower than
    Wilson's, and lies within 0 and 1.
    """
    variance, z = share * (1 - share) * folds / n, _Z
    if len(by_group) > 1 and (spread := statistics.variance(by_group)) > variance:
        from scipy.special import stdtrit

        variance, z = spread, float(stdtrit(len(by_group) - 1, 0.975))
    half = z * math.sqrt((1 / (folds * repeats) + 1 / (folds - 1)) * variance)
    low, high = wilson_share(share, n)
    return max(0.0, min(low, share - half)), min(1.0, max(high, share + half))


def resampled_t(centre: float, values: Sequence[float], folds: int) -> tuple[float, float] | None:
    """The 95 % interval around ``centre`` of a measure that is no share of images, from its
    ``values`` fold by fold in one or several cross-validations of so many ``folds``.

    The half-width is that of the corrected resampled t-test (C. Nadeau and Y. Bengio, 2003): the
    variance of the m values times 1 / m + test images / training images, and Student's t with m - 1
    degrees of freedom. It lies within 0 and 1; ``None`` for fewer than two values.
    """
    from scipy.special import stdtrit

    if (m := len(values)) < 2:
        return None
    variance = (1 / m + 1 / (folds - 1)) * statistics.variance(values)
    half = float(stdtrit(m - 1, 0.975)) * math.sqrt(variance)
    return max(0.0, centre - half), min(1.0, centre + half)


def apart(scores: Mapping[str, Score | LabelScore]) -> list[str]:
    """A line where test is answered worse than val by more than three standard errors of the
    difference of two shares; none where one of the two has no score."""
    val, test = scores.get("val"), scores.get("test")
    if val is None or test is None:
        return []
    share = (val.acc * val.n + test.acc * test.n) / (val.n + test.n)
    error = math.sqrt(share * (1 - share) * (1 / val.n + 1 / test.n))
    if val.acc - test.acc <= 3 * error:
        return []
    return [
        f"test is answered worse than val, and chance does not explain it: {test.acc:.4f} of "
        f"{test.n} images, {val.acc:.4f} of {val.n}. Its images are of another kind, or those of "
        "val are too much like those of train"
    ]


def mcnemar(first: int, second: int) -> float:
    """The two-sided p of McNemar's exact test (Q. McNemar, 1947).

    ``first`` and ``second`` count the images that only the one or only the other classifier got
    right. Between equally good ones each such image falls to either side like a fair coin.
    """
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def paired_difference(first: int, second: int, n: int) -> tuple[float, float]:
    """The 95 % interval of how much more accurate one classifier is than another, on equal images.

    Of ``n`` images the one alone got ``first`` right and the other alone ``second``. Wald's
    interval with half an image added to each cell of their table (A. Agresti and Y. Min, "Simple
    improved confidence intervals for comparing matched proportions", 2005), so that it is not
    empty where the two never differ; within -1 and 1.
    """
    total, one, other = n + 2, first + 0.5, second + 0.5
    share = (one - other) / total
    half = _Z * math.sqrt((one + other) / total - share**2) / math.sqrt(total)
    return max(-1.0, share - half), min(1.0, share + half)
