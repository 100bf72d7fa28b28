"""Paired comparison of two evaluations of one suite: difference of means, bootstrap interval, paired p-value.

Items are paired by (section, key). The interval is the percentile bootstrap of the mean paired difference. The p-value
is two-sided: the exact McNemar test where all differences that are not 0 have one size, as with right/wrong scores, and
a sign-flip permutation test otherwise. Both resamplings draw counts of distinct values, which is the same distribution
as drawing items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from asg_core.config.seeding import derive_seed
from asg_core.errors import PluginError
from asg_core.evaluation.items import EvalItem

RESAMPLES = 10_000
_CELLS = 4_000_000


@dataclass(frozen=True)
class ComparisonRow:
    """Before and after of one section or of one category in it. Scores are means in [0, 1].

    Attributes:
        category: as in the items, or "all" for the whole section, each item counting once.
        n: number of paired items.
        difference: after - before.
        ci_low, ci_high: ends of the 95 % interval of the difference.
        p_value: two-sided, of no difference; 1 where no item changed.
    """

    section: str
    category: str
    n: int
    before: float
    after: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


@dataclass(frozen=True)
class ScoreRow:
    """Mean score of one section or category, as in :class:`ComparisonRow`, with its 95 % bootstrap interval."""

    section: str
    category: str
    n: int
    score: float
    ci_low: float
    ci_high: float


def compare(
    before: Sequence[EvalItem], after: Sequence[EvalItem], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[ComparisonRow]:
    """One row per section ("all" first, then its categories), in the order of ``before``.

    A row depends on its own items and the seed only.

    Raises:
        PluginError: the two do not hold the same items, or one holds an item twice.
    """
    old, new = _by_key(before), _by_key(after)
    if old.keys() != new.keys():
        section, key = min(old.keys() ^ new.keys())
        raise PluginError(
            "the two evaluations cannot be compared",
            f"{len(old.keys() ^ new.keys())} items are in only one of them, e.g. {key!r} of {section!r}",
            "evaluate both with the same seed and limit; if they were, report this to the plugin's author",
        )
    rows = []
    for (section, category), keys in _groups(before).items():
        a = np.array([old[section, key].score for key in keys])
        b = np.array([new[section, key].score for key in keys])
        rng = np.random.default_rng(derive_seed(seed, section, category))
        first, second = float(a.mean()), float(b.mean())
        low, high = bootstrap_interval(b - a, rng, resamples)
        p = paired_p_value(b - a, rng, resamples)
        rows.append(ComparisonRow(section, category, len(keys), first, second, second - first, low, high, p))
    return rows


def score_rows(items: Sequence[EvalItem]) -> list[ScoreRow]:
    """Rows of one evaluation alone, ordered as in :func:`compare`. Raises PluginError if an item is there twice."""
    by_key = _by_key(items)
    rows = []
    for (section, category), keys in _groups(items).items():
        scores = np.array([by_key[section, key].score for key in keys])
        low, high = bootstrap_interval(scores, np.random.default_rng(derive_seed(0, section, category)))
        rows.append(ScoreRow(section, category, len(keys), float(scores.mean()), low, high))
    return rows


def bootstrap_interval(
    values: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """2.5 % and 97.5 % percentiles of the mean of ``values`` (n,) under resampling with replacement, n >= 1."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    means = [rng.multinomial(n, counts / n, size=draws) @ distinct / n for draws in _batches(resamples, len(distinct))]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_p_value(differences: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of paired ``differences`` (n,) under random signs, in (0, 1]."""
    changed = differences[differences != 0]
    sizes, counts = np.unique(np.abs(changed).round(12), return_counts=True)
    if len(changed) == 0:
        return 1.0
    if len(sizes) == 1:
        return _mcnemar(int((changed > 0).sum()), int((changed < 0).sum()))
    observed = abs(changed.sum()) - 1e-9
    extreme = 0
    for draws in _batches(resamples, len(sizes)):
        positive = rng.binomial(counts, 0.5, size=(draws, len(sizes)))
        extreme += int((np.abs((2 * positive - counts) @ sizes) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def _batches(resamples: int, width: int) -> list[int]:
    """How many resamples to draw at a time, so that a table of ``width`` columns stays small."""
    at_once = max(1, _CELLS // width)
    return [min(at_once, resamples - start) for start in range(0, resamples, at_once)]


def _mcnemar(better: int, worse: int) -> float:
    """Exact two-sided binomial test of ``better`` against ``worse`` at even odds."""
    n, k = better + worse, min(better, worse)
    return float(min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n))


def _by_key(items: Sequence[EvalItem]) -> Mapping[tuple[str, str], EvalItem]:
    found: dict[tuple[str, str], EvalItem] = {}
    for item in items:
        if (item.section, item.key) in found:
            raise PluginError(
                f"evaluation item {item.key!r} of {item.section!r} is there twice",
                "an item's key must be unique in its section",
                "report this to the plugin's author",
            )
        found[item.section, item.key] = item
    return found


def _groups(items: Sequence[EvalItem]) -> dict[tuple[str, str], list[str]]:
    """Keys of the items of every row, sections and categories in order of first appearance."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        for category in {"all": None, item.category: None}:
            groups.setdefault((item.section, category), []).append(item.key)
    sections = list(dict.fromkeys(item.section for item in items))
    return dict(sorted(groups.items(), key=lambda row: sections.index(row[0][0])))
