"""How well a score tells wrong from right, and how well a share says how often it is right.

Intervals are 95 % percentile bootstraps with a fixed seed, of plain shares Wilson's. A class of fewer than :data:`FEW`
members gives an estimate without an interval: resampling a handful of questions shows how those few scored, not what is
unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEW = 10
"""Fewest members of the smaller class (or of clusters) for which an interval is given."""

RESAMPLES = 2000
Values = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A number and what it rests on.

    Attributes:
        value: None where nothing could be measured (no items, or one class empty).
        low: lower end of the 95 % interval, None where there is too little for one.
        high: upper end.
        n: items.
        positives: items of the class that is looked for; equal to ``n`` for plain means.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int


@dataclass(frozen=True)
class Bin:
    """Questions of one majority share, how many of their majorities are right, and the interval of that share."""

    share: float
    n: int
    right: int
    low: float
    high: float


def auroc(scores: Values, positive: Truth) -> float | None:
    """Probability that a positive scores higher than a negative, ties counting half, in [0, 1].

    Args:
        scores: (n,) finite.
        positive: (n,).

    Returns:
        None if one class is empty.
    """
    values, code = np.unique(scores, return_inverse=True)
    high = np.bincount(code, weights=positive, minlength=len(values))
    low = np.bincount(code, minlength=len(values)) - high
    pairs = high.sum() * low.sum()
    return float((high * (np.cumsum(low) - 0.5 * low)).sum() / pairs) if pairs else None


def auroc_estimate(scores: Values, positive: Truth) -> Estimate:
    """:func:`auroc` with an interval over items, resampled one by one."""
    positives = int(positive.sum())
    n = len(scores)
    value = auroc(scores, positive)
    if min(positives, n - positives) < FEW:
        return Estimate(value, None, None, n, positives)
    return Estimate(value, *_interval(n, lambda i: auroc(scores[i], positive[i])), n, positives)


def reliability(shares: Values, right: Truth) -> list[Bin]:
    """One bin per distinct majority share, rising; a vote of N framings has at most N of them.

    Args:
        shares: (n,) in (0, 1].
        right: (n,) whether the majority is right.
    """
    values, code = np.unique(shares, return_inverse=True)
    counts, rights = np.bincount(code).tolist(), np.bincount(code, weights=right).astype(int).tolist()
    return [
        Bin(share, n, k, *wilson_interval(k, n)) for share, n, k in zip(values.tolist(), counts, rights, strict=True)
    ]


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share k / n, n >= 1; sensible near 0 and 1 and for small n, as resampling is not.

    Wilson 1927, Journal of the American Statistical Association 22.
    """
    z = 1.959964
    share, scale = k / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(shares: Values, right: Truth) -> float:
    """Expected calibration error: sum over the bins of n_bin / n * |share right - majority share|, in [0, 1]; n >= 1.

    Guo et al. 2017, arXiv 1706.04599, with one bin per distinct share. Positive by chance alone in small samples.
    """
    values, code = np.unique(shares, return_inverse=True)
    counts = np.bincount(code, minlength=len(values))
    rights = np.bincount(code, weights=right, minlength=len(values))
    return float(np.abs(rights - counts * values).sum() / len(shares))


def calibration_estimate(shares: Values, right: Truth) -> Estimate:
    """:func:`calibration_error` with an interval over questions; nothing is measured where there is none."""
    n = len(shares)
    if n == 0:
        return Estimate(None, None, None, 0, 0)
    value = calibration_error(shares, right)
    if n < FEW:
        return Estimate(value, None, None, n, int(right.sum()))
    return Estimate(value, *_interval(n, lambda i: calibration_error(shares[i], right[i])), n, int(right.sum()))


def ratio_estimate(parts: Values, wholes: Values) -> Estimate:
    """sum(parts) / sum(wholes) with an interval over clusters, resampled whole: items of one image go together.

    Args:
        parts: (clusters,) sums of what is averaged, e.g. right answers of each image.
        wholes: (clusters,) how many it is averaged over, e.g. all answers of each image; clusters of 0 are left out.
    """
    present = wholes > 0
    parts, wholes = parts[present], wholes[present]
    clusters, n = len(wholes), int(wholes.sum())
    if not clusters:
        return Estimate(None, None, None, 0, 0)
    value = float(parts.sum() / wholes.sum())
    if clusters < FEW:
        return Estimate(value, None, None, n, n)
    low, high = _interval(clusters, lambda i: float(parts[i].sum() / wholes[i].sum()))
    return Estimate(value, low, high, n, n)


def concordance(scores: Values, quality: Values) -> tuple[float, int]:
    """(wins, pairs) of all pairs of one group with different quality: is the better one scored higher? Ties are half.

    Args:
        scores: (n,) what is judged.
        quality: (n,) the truth.
    """
    better = quality[:, None] > quality[None, :]
    wins = (scores[:, None] > scores[None, :]) + 0.5 * (scores[:, None] == scores[None, :])
    return float(wins[better].sum()), int(better.sum())


def _interval(n: int, statistic: Callable[[NDArray[np.int64]], float | None]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    draws = [x for _ in range(RESAMPLES) if (x := statistic(rng.integers(n, size=n))) is not None]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
